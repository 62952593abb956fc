"""Modules beside their namesakes in torch.nn: the same state dicts, the same answers."""

import pytest
import torch
from torch import nn
from zoo_helpers import made

from zoo import nn as znn

E = 24

#: (ours, torch's)
NAMESAKES = {
    "rmsnorm": (lambda: znn.RMSNorm(E, eps=1e-5), lambda: nn.RMSNorm(E, eps=1e-5)),
    "rmsnorm of two axes": (lambda: znn.RMSNorm((5, E)), lambda: nn.RMSNorm((5, E))),
    "rmsnorm, plain": (
        lambda: znn.RMSNorm(E, elementwise_affine=False),
        lambda: nn.RMSNorm(E, elementwise_affine=False),
    ),
    "layernorm": (lambda: znn.LayerNorm(E), lambda: nn.LayerNorm(E)),
    "layernorm without bias": (
        lambda: znn.LayerNorm(E, bias=False),
        lambda: nn.LayerNorm(E, bias=False),
    ),
    "shortconv": (
        lambda: znn.ShortConv(E, 3, bias=True),
        lambda: nn.Conv1d(E, E, 3, groups=E, padding=2),
    ),
    "attention": (
        lambda: znn.Attention(E, 3),
        lambda: nn.MultiheadAttention(E, 3, batch_first=True),
    ),
    "attention without bias": (
        lambda: znn.Attention(E, 3, bias=False),
        lambda: nn.MultiheadAttention(E, 3, bias=False, batch_first=True),
    ),
}  # fmt: skip


def answer(module, x):
    if isinstance(module, znn.ShortConv):
        return module(x)[0]
    if isinstance(module, nn.Conv1d):
        return module(x.mT).mT[:, : x.shape[1]]
    if isinstance(module, znn.Attention):
        return module(x, is_causal=True)[0]
    if isinstance(module, nn.MultiheadAttention):
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1], dtype=x.dtype)
        return module(x, x, x, attn_mask=mask, need_weights=False)[0]
    return module(x)


@pytest.mark.parametrize("name", NAMESAKES)
def test_each_takes_the_others_state(name):
    ours, theirs = (make() for make in NAMESAKES[name])
    with torch.no_grad():
        for k, p in enumerate(theirs.parameters()):
            p.copy_(made(*p.shape, seed=2 * k))
    ours.load_state_dict(theirs.state_dict())
    assert list(ours.state_dict()) == list(theirs.state_dict())
    x = made(2, 5, E, seed=1)
    with torch.no_grad():
        got, want = answer(ours, x), answer(theirs.double(), x.double())
    torch.testing.assert_close(got.double(), want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", NAMESAKES)
def test_initialised_alike(name):
    states = []
    for make in NAMESAKES[name]:
        torch.manual_seed(3)
        states.append(make().state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][n], x) for n, x in states[1].items())


@torch.no_grad()
def test_attention_over_another_sequence_and_a_window():
    torch.manual_seed(0)
    layer, x, y = znn.Attention(E, 3), made(2, 5, E), made(2, 9, E, seed=1)
    twin = nn.MultiheadAttention(E, 3, batch_first=True)
    twin.load_state_dict(layer.state_dict())
    want, weights = layer(x, y)[0], twin(x, y, y, need_weights=False)[0]
    torch.testing.assert_close(want, weights, atol=1e-5, rtol=1e-5)
    layer.window = 1  # the own position only: value and output projections
    alone = twin.out_proj(
        nn.functional.linear(x, *(p.chunk(3)[2] for p in (twin.in_proj_weight, twin.in_proj_bias)))
    )
    torch.testing.assert_close(layer(x)[0], alone, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="need_weights=False"):
        layer(x, need_weights=True)
    with pytest.raises(TypeError, match="unexpected keyword"):
        layer(x, attn_mask=None)


@torch.no_grad()
def test_rotary_depends_on_distances_only():
    turn, q, k = znn.RotaryEmbedding(8), made(1, 1, 2, 10), made(1, 1, 2, 10, seed=1)
    scores = []
    for at in (0, 3, 1000):
        one, _ = turn(q, k, at + 5)
        _, two = turn(q, k, at)
        scores.append((one * two).sum())
    torch.testing.assert_close(scores[0].expand(2), torch.stack(scores[1:]), atol=1e-4, rtol=1e-4)
    assert not turn.state_dict()


@torch.no_grad()
def test_taylor_linear_attention_is_causal_and_goes_on():
    torch.manual_seed(0)
    layer, x = znn.TaylorLinearAttention(E, 2, 5), made(2, 20, E)
    whole, nothing = layer(x)
    first, state = layer(x[:, :7], output_final_state=True)
    rest, _ = layer(x[:, 7:], state)
    assert nothing is None
    torch.testing.assert_close(torch.cat([first, rest], 1), whole, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("reduction", ["none", "mean"])
def test_fused_cross_entropy_is_the_loss_of_a_head(reduction):
    x, head = made(11, E), nn.Linear(E, 37)
    target = torch.arange(11) * 3
    target[4] = -100
    ours = znn.FusedCrossEntropy(reduction=reduction, label_smoothing=0.1)
    want = nn.CrossEntropyLoss(reduction=reduction, label_smoothing=0.1)(head(x), target)
    torch.testing.assert_close(ours(x, target, head.weight, head.bias), want, atol=1e-5, rtol=1e-5)
    plain = znn.FusedCrossEntropy(reduction=reduction)
    want = nn.CrossEntropyLoss(reduction=reduction)(head(x), target)
    torch.testing.assert_close(plain(head(x), target), want, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="need the head's weight"):
        ours(head(x), target)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: znn.ShortConv(E, 5),
        lambda: znn.RotaryEmbedding(7),
        lambda: znn.TaylorLinearAttention(E, 5),
        lambda: znn.TaylorLinearAttention(E, 2, 33),
    ],
)
def test_sizes_that_no_kernel_has_are_refused(wrong):
    with pytest.raises(ValueError):
        wrong()

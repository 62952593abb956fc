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


@pytest.mark.parametrize(
    "name",
    [
        n if n in ("rmsnorm", "layernorm", "shortconv")
        else pytest.param(n, marks=pytest.mark.slow)
        for n in NAMESAKES
    ],
)  # fmt: skip
def test_gradients_are_the_namesakes(name):
    ours, theirs = (make() for make in NAMESAKES[name])
    ours.load_state_dict(theirs.state_dict())
    theirs.double()
    x, weight = made(2, 5, E).requires_grad_(), made(2, 5, E, seed=4)
    y = x.detach().double().requires_grad_()
    (answer(ours, x) * weight).sum().backward()
    (answer(theirs, y) * weight).sum().backward()
    assert_near(x.grad, y.grad)
    for n, p in ours.named_parameters():
        assert_near(p.grad, theirs.get_parameter(n).grad)


def assert_near(got, want):
    torch.testing.assert_close(got.double(), want.double(), atol=1e-5, rtol=1e-5)


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


def test_positions_one_by_one_make_few_tables():
    """Time for a token must not grow with its position."""
    turn, made_at = znn.RotaryEmbedding(8), {}
    for n in range(10, 400):
        tables = turn.tables(n, torch.device("cpu"))
        assert all(len(t) >= n for t in tables)
        made_at[id(tables[0])] = tables
    assert len(made_at) <= 7
    want = znn.RotaryEmbedding(8).tables(399, torch.device("cpu"))
    assert all(torch.equal(a[:399], b) for a, b in zip(tables, want, strict=True))


@pytest.mark.slow
@torch.no_grad()
def test_taylor_linear_attention_goes_on():
    torch.manual_seed(0)
    layer, x = znn.TaylorLinearAttention(E, 2, 5), made(2, 20, E)
    whole, nothing = layer(x)
    first, state = layer(x[:, :7], output_final_state=True)
    rest, _ = layer(x[:, 7:], state)
    assert nothing is None
    torch.testing.assert_close(torch.cat([first, rest], 1), whole, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_taylor_linear_attention():
    torch.manual_seed(0)
    layer, x = znn.TaylorLinearAttention(E, 2, 5), made(1, 20, E)
    y, nothing = layer(x)
    assert nothing is None
    assert_near(y, taylor(layer.double(), x))


@pytest.mark.slow
def test_gradients_of_taylor_linear_attention():
    torch.manual_seed(0)
    layer, x, weight = znn.TaylorLinearAttention(E, 2, 5), made(1, 20, E), made(1, 20, E, seed=2)
    (layer(x)[0] * weight).sum().backward()
    got = [p.grad.clone() for p in layer.parameters()]
    layer.double().zero_grad()
    (taylor(layer, x) * weight).sum().backward()
    for a, p in zip(got, layer.parameters(), strict=True):
        assert_near(a, p.grad)


def taylor(layer, x):
    q, k, v = (
        p(x.double()).unflatten(-1, (2, -1)) for p in (layer.q_proj, layer.k_proj, layer.v_proj)
    )
    s = torch.einsum("bihd,bjhd->bhij", q, k) * 5**-0.5
    a = (1 + s + s * s / 2).tril()
    y = torch.einsum("bhij,bjhv->bihv", a / a.sum(-1, keepdim=True), v)
    return layer.out_proj(y.flatten(2))


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


@pytest.mark.slow
def test_a_fused_loss_trains_the_head():
    head, target = nn.Linear(E, 37), torch.arange(11) * 3
    x = made(11, E).requires_grad_()
    grads = []
    for loss in (
        lambda: znn.FusedCrossEntropy()(x, target, head.weight, head.bias),
        lambda: nn.CrossEntropyLoss()(head(x), target),
    ):
        x.grad = None
        head.zero_grad()
        loss().backward()
        grads.append([t.grad.clone() for t in (x, head.weight, head.bias)])
    for a, b in zip(*grads, strict=True):
        assert_near(a, b)


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


AFTER_A_LINEAR = {
    "rmsnorm": lambda: (znn.RMSNorm(E), nn.RMSNorm(E)),
    "layernorm": lambda: (znn.LayerNorm(E), nn.LayerNorm(E)),
    "shortconv": lambda: (znn.ShortConv(E, 3), nn.Conv1d(E, E, 3, groups=E, padding=2, bias=False)),
}


@pytest.mark.parametrize("name", AFTER_A_LINEAR)
def test_each_takes_what_autocast_gives_its_namesake(name):
    ours, theirs = AFTER_A_LINEAR[name]()
    theirs.load_state_dict(ours.state_dict())
    linear, x = nn.Linear(E, E), made(2, 5, E)
    with torch.autocast("cpu", torch.bfloat16):
        got, want = answer(ours, linear(x)), answer(theirs, linear(x))
    assert got.dtype == want.dtype == torch.bfloat16
    torch.testing.assert_close(got, want, rtol=2e-2, atol=2e-2)
    got.float().sum().backward()
    assert ours.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("name", ["rmsnorm", "layernorm", "attention"])
def test_modules_on_no_device(name):
    layer = NAMESAKES[name][0]().to("meta")
    y = answer(layer, torch.randn(2, 5, E, device="meta"))
    y.sum().backward()
    assert y.is_meta and y.shape == (2, 5, E)
    assert all(p.grad.is_meta and p.grad.shape == p.shape for p in layer.parameters())

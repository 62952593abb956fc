"""The functional forms: layouts, states, packed sequences, and what they refuse."""

import pytest
import torch
import torch.nn.functional as F
from zoo_helpers import made

from tkpy import CallError
from zoo import functional as Z

CUTS = torch.tensor([0, 1, 1, 20, 37])


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


def near(got, want, c=1.0):
    assert got.shape == want.shape
    torch.testing.assert_close(got.double(), want.double(), atol=4e-6 * c, rtol=2e-5 * c)


def heads(n, m, h, g, d, b=2):
    return made(b, n, h, d), made(b, m, g, d, seed=1), made(b, m, g, d, seed=2)


def exact(q, k, v, scale=None, **mask):
    q, k, v = (x.double().transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, scale=scale, enable_gqa=True, **mask).transpose(
        1, 2
    )


def test_attention_is_torchs_with_heads_third():
    q, k, v = heads(33, 33, 4, 2, 20)
    near(Z.attention(q, k, v, 0.3), exact(q, k, v, 0.3))
    i = torch.arange(33)
    band = (i <= i[:, None]) & (i > i[:, None] - 5)
    near(Z.attention(q, k, v, window=5), exact(q, k, v, attn_mask=band))


def test_packed_sequences_do_not_see_each_other():
    q, k, v = heads(37, 37, 2, 2, 20, b=1)
    got = Z.attention(q, k, v, causal=True, cu_seqlens=CUTS)
    few = q[..., :5], k[..., :5], v  # as many features as elsewhere here: nothing more to compile
    linear, states = Z.taylor_linear_attention(*few, None, None, True, CUTS)
    conv, rows = Z.short_conv(v.flatten(2), made(40, 3), None, "silu", None, True, CUTS)
    assert [len(s) for s in states] == [4] * 6 and rows.shape == (4, 2, 40)
    for s, (a, b) in enumerate(zip(CUTS[:-1].tolist(), CUTS[1:].tolist(), strict=True)):
        parts = [x[:, a:b] for x in (q, k, v)]
        if a < b:
            near(got[:, a:b], exact(*parts, is_causal=True))
            one, after = Z.taylor_linear_attention(
                *(x[:, a:b] for x in few), output_final_state=True
            )
            near(linear[:, a:b], one)
            for x, y in zip(states, after, strict=True):
                near(x[s : s + 1], y)
            near(conv[:, a:b], Z.short_conv(v.flatten(2)[:, a:b], made(40, 3), None, "silu")[0])
        else:
            assert all((x[s] == 0).all() for x in states) and (rows[s] == 0).all()


@pytest.mark.parametrize("scale", [None, 0.1])
def test_linear_attention_goes_on_from_its_state(scale):
    q, k, v = made(2, 30, 2, 5), made(2, 30, 2, 5, seed=1), made(2, 30, 2, 23, seed=2)
    s = torch.einsum("bihd,bjhd->bhij", q.double(), k.double()) * (scale or 5**-0.5)
    a = (1 + s + s * s / 2).tril()
    want = torch.einsum("bhij,bjhv->bihv", a / a.sum(-1, keepdim=True), v.double())
    whole, total = Z.taylor_linear_attention(q, k, v, scale, output_final_state=True)
    near(whole, want, 8)
    first, state = Z.taylor_linear_attention(*(x[:, :11] for x in (q, k, v)), scale, None, True)
    rest, state = Z.taylor_linear_attention(*(x[:, 11:] for x in (q, k, v)), scale, state, True)
    near(torch.cat([first, rest], 1), want, 8)
    assert all(x.dtype is torch.float32 for x in state) and (state[0] == 30).all()
    for x, y in zip(state, total, strict=True):
        near(x, y, 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_short_conv_goes_on_from_its_state(dtype):
    x, weight, bias = made(2, 30, 33).to(dtype), made(33, 4, seed=1).to(dtype), made(33).to(dtype)
    whole, _ = Z.short_conv(x, weight, bias, "silu")
    first, state = Z.short_conv(x[:, :2], weight, bias, "silu", None, True)
    assert state.dtype is torch.float32 and state.shape == (2, 3, 33)
    rest, _ = Z.short_conv(x[:, 2:], weight, bias, "silu", state)
    torch.testing.assert_close(torch.cat([first, rest], 1), whole)


@pytest.mark.parametrize("given", [False, True])
def test_short_conv_of_nothing_leaves_its_state(given):
    before, weight = made(2, 3, 33).requires_grad_(), made(33, 4, seed=1)
    with torch.enable_grad():
        y, state = Z.short_conv(made(2, 0, 33), weight, None, None, before if given else None, True)
    assert y.shape == (2, 0, 33) and torch.equal(state, before if given else torch.zeros(2, 3, 33))
    if given:
        (grad,) = torch.autograd.grad(state, before, one := torch.ones(2, 3, 33))
        assert torch.equal(grad, one)
    with pytest.raises(CallError, match="state has shape"):
        Z.short_conv(made(2, 0, 33), weight, None, None, made(2, 2, 33), True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_epsilon_is_that_of_the_statistics(dtype):
    x, w = (made(3, 24) / 1000).to(dtype), made(24, seed=1).to(dtype)
    torch.testing.assert_close(Z.rms_norm(x, w), F.rms_norm(x, (24,), w))


def test_rotary_starts_where_it_is_told():
    x, angle = made(2, 7, 3, 10), torch.arange(20.0)[:, None] * torch.tensor([1.0, 0.2, 0.03])
    whole = Z.rotary(torch.cat([x, x], 1), angle.cos(), angle.sin())
    near(Z.rotary(x, angle.cos(), angle.sin(), 7), whole[:, 7:])
    assert torch.equal(whole[..., 6:], torch.cat([x, x], 1)[..., 6:])
    for offset in (-1, 14):
        with pytest.raises(CallError, match="positions"):
            Z.rotary(x, angle.cos(), angle.sin(), offset)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("ignore", [-100, 3])
def test_losses_are_torchs(reduction, ignore):
    x, weight, bias = made(2, 9, 23), made(41, 23, seed=1), made(41, seed=2)
    target = (torch.arange(18) * 7 % 41).view(2, 9)
    target[1, 2:5] = ignore
    logits = x @ weight.T + bias
    for smoothing in (0.0, 0.1):
        want = F.cross_entropy(
            logits.double().flatten(0, 1), target.flatten(), ignore_index=ignore,
            reduction=reduction, label_smoothing=smoothing,
        )  # fmt: skip
        want = want.view(2, 9) if reduction == "none" else want
        got = Z.linear_cross_entropy(
            x, weight, target, bias, ignore, smoothing, None, None, reduction
        )
        near(got, want, 4)
        if not smoothing:
            near(Z.cross_entropy(logits, target, ignore, reduction), want, 4)
    nothing = torch.full_like(target, ignore)
    assert (
        reduction != "mean"
        or Z.linear_cross_entropy(x, weight, nothing, ignore_index=ignore).isnan()
    )


def test_what_is_refused():
    q, k, v = heads(8, 8, 2, 2, 16, b=1)
    for cuts, said in (
        ([0, 9], "rise from 0 to 8"),
        ([1, 8], "rise"),
        ([0, 5, 3, 8], "rise"),
        ([0], "rise"),
    ):
        with pytest.raises(CallError, match=said):
            Z.attention(q, k, v, cu_seqlens=torch.tensor(cuts))
    for cuts, said in ((torch.tensor([0.0, 8.0]), "not torch.float32"), ([0, 8], "not list")):
        with pytest.raises(CallError, match=said):
            Z.attention(q, k, v, cu_seqlens=cuts)
    with pytest.raises(CallError, match="1 tensors, not 6"):
        Z.taylor_linear_attention(q, k, v, initial_state=(q,))
    with pytest.raises(CallError, match="packed into one row"):
        Z.attention(*heads(8, 8, 2, 2, 16), cu_seqlens=torch.tensor([0, 8]))
    for call in (
        lambda: Z.attention(q, k, v, dropout_p=0.1),
        lambda: Z.taylor_linear_attention(q, k, v, head_first=True),
        lambda: Z.short_conv(v.flatten(2), made(32, 3), chunk_size=3),
    ):
        with pytest.raises(TypeError, match="unexpected keyword"):
            call()
    with pytest.raises(CallError, match="neither None nor 'silu'"):
        Z.short_conv(v.flatten(2), made(32, 3), None, "swish")
    with pytest.raises(CallError, match="3 sequences"):
        q, k = q[..., :5], k[..., :5]
        state = Z.taylor_linear_attention(q, k, v, output_final_state=True)[1]
        Z.taylor_linear_attention(q, k, v, None, state, cu_seqlens=torch.tensor([0, 1, 2, 8]))
    with pytest.raises(CallError, match="not those of weight"):
        Z.rms_norm(q, made(15))
    with pytest.raises(CallError, match="reduction='avg'"):
        Z.cross_entropy(made(3, 4), torch.zeros(3, dtype=torch.long), reduction="avg")


def test_norms_with_a_residual():
    """The norm of the sum, and the sum in the residual's type."""
    x, r, w = made(2, 5, 24).bfloat16(), made(2, 5, 24, seed=1), made(24, seed=2).bfloat16()
    for ours, theirs in ((Z.rms_norm, F.rms_norm), (Z.layer_norm, F.layer_norm)):
        y, total = ours(x, w, eps=1e-5, residual=r)
        assert torch.equal(total, x.float() + r) and y.dtype == torch.bfloat16
        want = theirs(x.double() + r.double(), (24,), w.double(), eps=1e-5)
        torch.testing.assert_close(y.double(), want, atol=1e-2, rtol=1e-2)
        with pytest.raises(CallError, match="not the shape of x"):
            ours(x, w, residual=r[0])


def test_gated_and_skipping_convolutions():
    x, w, gate = made(1, 37, 40), made(40, 3, seed=1), made(1, 37, 40, seed=2)
    plain, _ = Z.short_conv(x, w)
    near(Z.short_conv(x, w, gate=gate, skip=True)[0], plain * gate + x)
    packed, _ = Z.short_conv(x, w, cu_seqlens=CUTS, gate=gate)
    near(packed[:, 20:], Z.short_conv(x[:, 20:], w)[0] * gate[:, 20:])


def test_swiglu():
    x = made(2, 3, 42)
    value, gate = x.double().chunk(2, -1)
    near(Z.swiglu(x), value * F.silu(gate))
    with pytest.raises(CallError, match="no halves"):
        Z.swiglu(made(2, 3))

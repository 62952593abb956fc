"""The nearest code, and the gradients past it: geometry, ties, edges, and defects that are found."""

import importlib.util
from pathlib import Path

import pytest
import torch
from zoo_helpers import agrees, made

import zoo.kernels.vector_quantize as source
from tkpy import CallError
from tkpy.testing import check
from zoo.kernels.codebook import code_sums, owners
from zoo.kernels.vector_quantize import (
    MODES,
    TINY,
    nearest_code,
    rotated,
    vector_quantize,
    vector_quantize_gradient,
)

F = torch.nn.functional
SLOW = pytest.mark.slow


def unit(x):
    return F.normalize(x, dim=-1)


def dense(e, q):
    """R of the paper, [M, D, D]: I - 2 r r^T + 2 q^ e^^T."""
    e, q = unit(e), unit(q)
    r = unit(e + q)
    eye = torch.eye(e.shape[-1], dtype=e.dtype)
    return eye - 2 * r[:, :, None] * r[:, None] + 2 * q[:, :, None] * e[:, None]


def gradient(e, q, g, mode="rotation", kernel=vector_quantize_gradient):
    """The kernel's gradient to e [M, D], in fp64; e, q and g are rounded to fp32 first."""
    e, q, g = (v.float()[None] for v in (e, q, g))
    index = torch.zeros(e.shape[:2], dtype=torch.int64)
    return kernel(e, q, index, from_q=g, mode=mode)[0].double()


def drawn(m=40, d=9, seed=0):
    return [made(m, d, seed=2 * seed + 2 * k).double() for k in range(3)]


def near(got, want, size, within=64):
    """|got - want| of every vector, of what fp32 can tell of ``size``."""
    error = (got - want).norm(dim=-1)
    bound = within * torch.finfo(torch.float32).eps * size
    assert bool((error <= bound).all()), f"{(error / bound).max():.3g} times the bound"


# -- the search ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "m, k, d, metric",
    [
        (130, 129, 9, "euclidean"),
        *(
            pytest.param(*s, metric, marks=SLOW)
            for s in ((1, 1, 1), (1, 33, 5), (130, 129, 17), (50, 200, 3))
            for metric in ("euclidean", "cosine")
        ),
    ],
)
def test_the_nearest_is_cdists_with_ties_to_the_lowest(m, k, d, metric):
    # Whole numbers: distances are exact, many of them equal, and codes occur twice.
    g = torch.Generator().manual_seed(m + k)
    codes = torch.randint(-2, 3, (2, k, d), generator=g).float()
    codes[:, k // 2 :] = codes[:, : k - k // 2]
    x = torch.randint(-2, 3, (2, m, d), generator=g).float()
    if metric == "cosine":  # lengths that divide exactly
        x = F.one_hot(torch.randint(d, (2, m), generator=g), d).float() * 4
        want = (x @ codes.mT).argmax(-1)
    else:
        want = (x[:, :, None] - codes[:, None]).double().square().sum(-1).argmin(-1)
    index = nearest_code(x, codes, metric=metric)
    assert index.dtype == torch.int64
    assert torch.equal(index, want)
    assert torch.equal(vector_quantize(x, codes, metric=metric)[1], want)


def test_the_nearest_of_large_sets_is_as_near_as_fp32_can_tell():
    x, codes = made(1, 500, 9), made(1, 300, 9, seed=2)
    index = nearest_code(x, codes)
    distance = torch.cdist(x.double(), codes.double())
    chosen = distance.gather(2, index[..., None])[..., 0]
    assert bool((chosen <= distance.amin(-1) * (1 + 1e-6)).all())
    assert (index == distance.argmin(-1)).float().mean() > 0.99


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float32,
        pytest.param(torch.bfloat16, marks=SLOW),
        pytest.param(torch.float16, marks=SLOW),
    ],
)
def test_values_are_the_codes_themselves(dtype):
    x, codes = made(2, 70, 9, dtype=dtype, seed=1), made(2, 30, 9, seed=2)
    q, index, commitment, error = vector_quantize(x, codes, error=True)
    picked = codes.gather(1, index[..., None].expand(2, 70, 9))
    assert torch.equal(q, picked.to(dtype))
    want = (x.double() - picked.double()).square().sum(-1)
    torch.testing.assert_close(commitment.double(), want, rtol=1e-5, atol=0)
    assert torch.equal(commitment, error)


def test_vectors_that_are_no_numbers_get_a_code_and_no_distance():
    x, codes = made(1, 5, 9).clone(), made(1, 7, 9, seed=2)
    x[0, 1], x[0, 2, 3] = float("nan"), float("inf")
    _q, index, commitment = vector_quantize(x, codes)
    assert bool((index[0] >= 0).all()) and bool((index[0] < 7).all())
    assert not bool(commitment[0, 1:3].isfinite().any())
    assert bool(commitment[0, [0, 3, 4]].isfinite().all())


@SLOW
def test_agrees_with_the_reference():
    x, codes, mask = made(2, 70, 9, seed=1), made(2, 30, 9), torch.arange(70) % 3 > 0
    agrees(vector_quantize, x, codes, mask=mask)
    q, index = vector_quantize(x, codes, mask=mask)[:2]
    g, gc = made(2, 70, 9, seed=3), made(2, 70, seed=2)
    for mode in MODES:
        for metric in ("euclidean", "cosine"):
            agrees(
                vector_quantize_gradient, x, q, index, from_q=g, from_commitment=gc, mode=mode,
                metric=metric, within=16,
            )  # fmt: skip


def test_what_does_not_fit_is_refused():
    with pytest.raises(CallError, match="D"):
        nearest_code(made(1, 4, 3), made(1, 4, 5))
    with pytest.raises(CallError, match="K >= 1"):
        nearest_code(made(1, 4, 3), torch.zeros(1, 0, 3))
    with pytest.raises(CallError, match="f32"):
        nearest_code(made(1, 4, 3), made(1, 4, 3).half())
    order, starts = owners(torch.zeros(1, 4, dtype=torch.int64), 2)
    with pytest.raises(CallError, match="order"):
        code_sums(made(1, 4, 3), order + 1, starts)


# -- the gradients' geometry ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "m, d", [(40, 9), pytest.param(33, 2, marks=SLOW), pytest.param(20, 64, marks=SLOW)]
)
def test_rotation_is_the_dense_matrix(m, d):
    e, q, g = drawn(m, d)
    r, scale = dense(e, q), q.norm(dim=-1) / e.norm(dim=-1)
    identity = torch.eye(d, dtype=torch.float64).expand(m, d, d)
    # R itself: orthogonal, turns e onto q, its trace tells the angle.
    torch.testing.assert_close(r.mT @ r, identity, atol=1e-12, rtol=0)
    torch.testing.assert_close(torch.linalg.det(r), torch.ones(m).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close((r @ unit(e)[..., None])[..., 0], unit(q), atol=1e-12, rtol=0)
    cosine = (unit(e) * unit(q)).sum(-1)
    trace = r.diagonal(dim1=1, dim2=2).sum(-1)
    torch.testing.assert_close(trace, d - 2 + 2 * cosine, atol=1e-12, rtol=0)
    want = scale[:, None] * (r.mT @ g[..., None])[..., 0]
    # Short of half a turn by an angle s, the sum of both directions has lost 1 / s of its digits.
    size = scale * g.norm(dim=-1) / ((1 + cosine) / 2).sqrt()
    near(gradient(e, q, g), want, size)


def test_angles_and_lengths_are_kept():
    e, q, g = drawn()
    got, scale = gradient(e, q, g), q.norm(dim=-1) / e.norm(dim=-1)
    torch.testing.assert_close(got.norm(dim=-1), scale * g.norm(dim=-1), rtol=1e-5, atol=0)
    kept = F.cosine_similarity(e, got) - F.cosine_similarity(q, g)
    assert float(kept.abs().max()) < 1e-5
    # cos(g, gradient) = 1 - (1 - cos theta) |part of g in their plane|^2 / |g|^2
    basis = torch.linalg.qr(torch.stack([e, q], -1)).Q
    share = (basis.mT @ g[..., None]).square().sum((-1, -2)) / g.square().sum(-1)
    want = 1 - (1 - F.cosine_similarity(e, q)) * share
    assert float((F.cosine_similarity(g, got) - want).abs().max()) < 1e-5


def test_what_is_orthogonal_to_both_passes_unturned():
    e, q, g = drawn()
    basis = torch.linalg.qr(torch.stack([e, q], -1)).Q
    g = g - (basis @ (basis.mT @ g[..., None]))[..., 0]
    scale = (q.norm(dim=-1) / e.norm(dim=-1))[:, None]
    near(gradient(e, q, g), scale * g, (scale * g).norm(dim=-1))


def test_equal_vectors_go_straight_through_and_far_ones_nearly():
    e, q, g = drawn()
    for mode in ("rotation", "ste"):
        near(gradient(e, e, g, mode), g, g.norm(dim=-1), within=8)
    away = []
    for shift in (10, 100, 1000):
        moved = gradient(e + shift, q + shift, g)
        away.append(float(((moved - g).norm(dim=-1) / g.norm(dim=-1)).mean()))
    assert 6 < away[0] / away[1] < 14 and 6 < away[1] / away[2] < 14


@pytest.mark.parametrize("mode", MODES)
def test_turning_everything_turns_the_gradient(mode):
    e, q, g = drawn()
    turn = torch.linalg.qr(made(9, 9, seed=8).double()).Q
    size = (q.norm(dim=-1) / e.norm(dim=-1)).clamp(min=1) * g.norm(dim=-1)
    near(gradient(e @ turn, q @ turn, g @ turn, mode), gradient(e, q, g, mode) @ turn, 4 * size)


@pytest.mark.parametrize("mode", ["rotation", "rotation_tangent", "reflection"])
def test_lengths_scale_the_gradient(mode):
    e, q, g = drawn()
    got = gradient(e, q, g, mode)
    torch.testing.assert_close(gradient(e, 4 * q, g, mode), 4 * got)  # powers of two are exact
    torch.testing.assert_close(gradient(4 * e, q, g, mode), got / 4)


def test_tangent_is_the_rotation_without_its_radial_part():
    e, q, g = drawn()
    full, got = gradient(e, q, g), gradient(e, q, g, "rotation_tangent")
    want = full - unit(e) * (unit(e) * full).sum(-1, keepdim=True)
    near(got, want, full.norm(dim=-1))
    assert float((unit(e) * got).sum(-1).abs().max()) < 1e-5 * float(full.norm(dim=-1).max())


def test_reflection_exchanges_both_directions():
    e, q, g = drawn()
    u = unit(unit(e) - unit(q))
    scale = (q.norm(dim=-1) / e.norm(dim=-1))[:, None]
    near(
        gradient(e, q, g, "reflection"), scale * (g - 2 * u * (u * g).sum(-1, keepdim=True)),
        4 * (scale * g).norm(dim=-1),
    )  # fmt: skip
    near(gradient(e, e, g, "reflection"), g, g.norm(dim=-1))  # nothing to exchange


def test_opposite_short_and_zero_vectors():
    e, q, g = drawn()
    opposite = gradient(e, -2 * e.float(), g)
    want = 2 * (g - 2 * unit(e) * (unit(e) * g).sum(-1, keepdim=True))
    near(opposite, want, want.norm(dim=-1))
    for mode in MODES:
        for a, b in ((e * 1e-6, q), (e, q * 1e-6), (e * 0, q), (e, q * 0), (e * 0, q * 0)):
            assert torch.equal(gradient(a, b, g, mode), g.float().double())
    # Nearly opposite: the gradient stays as long as it is to be, down to where R is ill-defined.
    for angle in (1e-1, 1e-2, 1e-3):
        side = unit(g - unit(e) * (unit(e) * g).sum(-1, keepdim=True))
        q = e.norm(dim=-1, keepdim=True) * (-unit(e) + angle * side)
        got = gradient(e, q, g).norm(dim=-1)
        ratio = got / (q.norm(dim=-1) / e.norm(dim=-1) * g.norm(dim=-1))
        assert float((ratio - 1).abs().max()) < 1e-6 / angle + 1e-5


def test_short_vectors_are_counted():
    x, codes = made(1, 6, 9).clone(), made(1, 5, 9, seed=2).clone()
    x[0, 2] *= 1e-6
    mask = torch.tensor([True] * 5 + [False])
    index, *_, short = vector_quantize(x, codes, fallback=True, mask=mask)[1:]
    assert short.tolist() == [[0, 0, 1, 0, 0, 0]] and index[0, 5] == -1
    codes[0] *= 1e-6
    assert vector_quantize(x, codes, fallback=True)[3].tolist() == [[1] * 6]


# -- through autograd ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mode, metric",
    [
        ("rotation", "euclidean"),
        pytest.param("rotation", "cosine", marks=SLOW),
        pytest.param("ste", "cosine", marks=SLOW),
        pytest.param("ste", "euclidean", marks=SLOW),
    ],
)
def test_autograd_is_that_of_the_definition(mode, metric):
    x, codes = made(2, 45, 9), made(2, 20, 9, seed=2)
    codes = unit(codes) if metric == "cosine" else codes
    mask = torch.arange(45) % 4 > 0
    w, wc, we = made(2, 45, 9, seed=4), made(2, 45, seed=6), made(2, 45, seed=8)
    x.requires_grad_()
    codes.requires_grad_()
    q, index, commitment, error = vector_quantize(
        x, codes, mask=mask, error=True, mode=mode, metric=metric
    )
    ((q * w).sum() + (commitment * wc).sum() + (error * we).sum()).backward()

    y, c = (t.detach().double().requires_grad_() for t in (x, codes))
    e = unit(y) if metric == "cosine" else y
    used = index.clamp(min=0)[..., None].expand(2, 45, 9)
    picked = c.gather(1, used)
    total = (rotated(e, picked, mode) * w)[:, mask].sum()
    total = total + ((e - picked.detach()).square().sum(-1) * wc)[:, mask].sum()
    total = total + ((e.detach() - picked).square().sum(-1) * we)[:, mask].sum()
    total.backward()
    torch.testing.assert_close(x.grad.double(), y.grad, atol=2e-5, rtol=2e-5)
    torch.testing.assert_close(codes.grad.double(), c.grad, atol=2e-5, rtol=2e-5)
    assert not bool(x.grad[:, ~mask].any())


def test_commitment_has_the_gradient_of_a_square():
    x, codes = made(1, 30, 9).requires_grad_(), made(1, 9, 9, seed=2).requires_grad_()
    q, _index, commitment = vector_quantize(x, codes)
    (commitment.mean() / 9).backward()
    want = 2 * (x.detach().double() - q.detach().double()) / x.numel()
    torch.testing.assert_close(x.grad.double(), want, atol=1e-9, rtol=1e-5)
    assert codes.grad is None or not bool(codes.grad.any())


# -- sums by owner -------------------------------------------------------------------------------


@pytest.mark.parametrize("m, k", [(1, 1), (100, 7), (100, 300)])
def test_sums_are_those_of_each_code_and_the_same_in_every_run(m, k):
    x = made(2, m, 9)
    index = torch.randint(-1, k, (2, m), generator=torch.Generator().manual_seed(m))
    order, starts = owners(index, k)
    assert starts.diff().sum() == (index >= 0).sum()
    sums = code_sums(x, order, starts)
    hot = F.one_hot(index + 1, k + 1)[..., 1:].double()
    torch.testing.assert_close(sums.double(), hot.mT @ x.double(), atol=1e-5, rtol=1e-6)
    assert torch.equal(starts.diff(), hot.sum(1).long())
    assert torch.equal(sums, code_sums(x, order, starts))


# -- the tests can fail --------------------------------------------------------------------------

DEFECTS = [
    # kernel, as it is, as it must not be
    ("nearest_code", "top > best", "top >= best"),
    ("nearest_code", "row_argmax(score) + j * cols", "row_argmax(score)"),
    ("nearest_code", "tk.row_sum(c * c)) * 0.5", "tk.row_sum(c * c))"),
    ("vector_quantize", "tk.load(mask, i, rows), at, -1", "tk.load(mask, i, rows), at, 0"),
    ("vector_quantize_gradient", "along_e - qg * 2.0", "along_e - qg"),
    ("vector_quantize_gradient", "tk.sqrt(qq) * to_e", "tk.sqrt(ee) * to_q"),
    ("vector_quantize_gradient", "along_q * to_q)) * scale", "along_q * to_q))"),
    ("vector_quantize_gradient", "(eg + qg * sign) / whole", "(eg + qg) / whole"),
    ("vector_quantize_gradient", "tk.where(long > tiny, ", "tk.where(long < tiny, "),
    ("vector_quantize_gradient", "if tk.min(whole) < 0.0625:", "if tk.min(whole) < -1.0:"),
]


def mutant(right, wrong, folder):
    text = Path(source.__file__).read_text()
    assert right in text, f"no longer says {right!r}; bring the table up to date"
    path = folder / "mutant.py"
    path.write_text(text.replace(right, wrong))
    spec = importlib.util.spec_from_file_location(f"mutant_{abs(hash(wrong))}", path)
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def ties(module):
    codes = torch.ones(1, 200, 3)
    assert not bool(module.nearest_code(made(1, 5, 3), codes).any())


def opposite(module):
    e, q, g = drawn(40, 3)
    q = -e + 1e-3 * q
    scale = q.norm(dim=-1) / e.norm(dim=-1)
    want = (
        scale[:, None] * (dense(e.float().double(), q.float().double()).mT @ g[..., None])[..., 0]
    )
    size = scale * g.norm(dim=-1) * 1e3
    near(gradient(e, q, g, kernel=module.vector_quantize_gradient), want, size)


def turns(module):
    e, q, g = drawn(20, 5)
    want = q.norm(dim=-1) / e.norm(dim=-1) * g.norm(dim=-1)
    got = gradient(e, q, g, kernel=module.vector_quantize_gradient).norm(dim=-1)
    assert float((got / want - 1).abs().max()) < 1e-4


def across(module):
    x, q, g = (made(1, 20, 5, seed=2 * k) for k in range(3))
    index = torch.zeros(1, 20, dtype=torch.int64)
    got = module.vector_quantize_gradient(x, unit(q), index, from_q=g, metric="cosine")
    assert float(F.cosine_similarity(got, x, dim=-1).abs().max()) < 1e-4


#: Defects that random inputs seldom show, and what shows them.
SHARP = {
    "top >= best": ties,
    "if tk.min(whole) < -1.0:": opposite,
    "along_e - qg": turns,
    "tk.where(long < tiny, ": across,
}


@SLOW
@pytest.mark.parametrize("name, right, wrong", DEFECTS)
def test_defect_is_found(name, right, wrong, tmp_path, monkeypatch):
    module = mutant(right, wrong, tmp_path)
    sharp = SHARP.get(wrong)
    if sharp:
        sharp(source)
        with pytest.raises(AssertionError):
            sharp(module)
        return
    monkeypatch.setattr(importlib.import_module("tkpy.testing.check"), "_SHRINK_RUNS", 0)
    assert not check(getattr(module, name), examples=60, poison=False).ok


@SLOW
@pytest.mark.parametrize("name", ["nearest_code", "vector_quantize", "vector_quantize_gradient"])
def test_property_checks(name):
    check(getattr(source, name), examples=40).raise_if_failed()


@SLOW
def test_property_checks_of_codebooks():
    from zoo.kernels.codebook import ema_codebook

    for kernel in (code_sums, ema_codebook):
        check(kernel, examples=30).raise_if_failed()


def test_tiny_is_what_the_kernels_say():
    assert vector_quantize.signature.parameter("tiny").default == TINY


def test_gradients_have_no_derivative():
    x = torch.randn(1, 5, 8).requires_grad_()
    q, index = torch.randn(1, 5, 8), torch.zeros(1, 5, dtype=torch.int64)
    with pytest.raises(CallError, match="takes none of it"):
        vector_quantize_gradient(x, q, index, from_q=torch.ones(1, 5, 8)).sum().backward()

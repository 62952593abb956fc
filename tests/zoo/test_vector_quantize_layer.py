"""VectorQuantize, GroupedVQ, ResidualVQ: averages, resets, masks, shapes, and what is measured."""

import math

import pytest
import torch
from torch import nn
from zoo_helpers import made

from zoo.kernels.vector_quantize import nearest_code
from zoo.nn import GroupedVQ, ResidualVQ, VectorQuantize, usage

F = nn.functional
D, K = 9, 20
SLOW = pytest.mark.slow


def layer(dim=D, size=K, seed=0, kind=VectorQuantize, **options):
    torch.manual_seed(seed)
    return kind(dim, size, **options)


# -- the codebook's averages ---------------------------------------------------------------------


def test_without_memory_codes_are_the_centroids():
    vq, x = layer(decay=0.0, eps=0.0), made(1, 200, D)
    _, index, _ = vq(x)
    hot = F.one_hot(index[0], K).double()
    n = hot.sum(0)
    want = (hot.T @ x[0].double())[n > 0] / n[n > 0, None]
    torch.testing.assert_close(vq.codebook.double()[n > 0], want, atol=1e-6, rtol=1e-5)
    book = vq._codebook
    assert float(book.cluster_size.sum()) == 200
    torch.testing.assert_close(book.embed_avg.sum(1)[0], x[0].sum(0), atol=1e-4, rtol=1e-4)


def test_averages_follow_their_definition():
    vq = layer()
    size, total = torch.ones(K).double(), vq.codebook.double().clone()
    for step in range(4):
        x = made(3, 40, D, seed=2 * step)
        _, index, _ = vq(x)
        hot = F.one_hot(index.reshape(-1), K).double()
        size = 0.8 * size + 0.2 * hot.sum(0)
        total = 0.8 * total + 0.2 * hot.T @ x.reshape(-1, D).double()
        smooth = (size + 1e-5) / (size.sum() + K * 1e-5) * size.sum()
        torch.testing.assert_close(
            vq.codebook.double(), total / smooth[:, None], atol=1e-6, rtol=1e-5
        )


def test_a_code_that_is_never_chosen_fades_as_it_must():
    vq = layer()
    vq._codebook.embed[:, 0], vq._codebook.embed_avg[:, 0] = 100.0, 100.0
    first, sums = vq.codebook[0].double().clone(), 1.0 * K
    for step in range(1, 60):
        vq(made(1, 50, D, seed=2 * step))
        sums = 0.8 * sums + 0.2 * 50
        size = (0.8**step + 1e-5) / (sums + K * 1e-5) * sums
        want = first * 0.8**step / size
        torch.testing.assert_close(vq.codebook[0].double(), want, atol=1e-7, rtol=2e-4)
    assert 0.1 < float(vq.codebook[0, 0]) / 100 < 0.2  # most of the way to the zero vector


def test_the_decoder_sees_codes_from_before_the_update():
    vq, x = layer(), made(1, 50, D)
    before = vq.codebook.clone()
    q, index, _ = vq(x)
    assert torch.equal(q[0], before[index[0]])
    assert not torch.equal(vq.codebook, before)


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"use_cosine_sim": True}, marks=SLOW),
        pytest.param({"codebook_dim": 3}, marks=SLOW),
    ],
    ids=str,
)
@torch.no_grad()
def test_training_and_evaluation_give_the_same_values(options):
    vq, x = layer(**options), made(2, 30, D)
    train = vq(x, freeze_codebook=True)
    test = vq.eval()(x)
    assert torch.equal(train[0], test[0]) and torch.equal(train[1], test[1])
    assert float(test[2]) == 0 and float(train[2]) > 0
    looked_up = vq.get_output_from_indices(test[1])
    torch.testing.assert_close(looked_up, test[0], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("frozen", ["argument", "option", "eval"])
def test_frozen_codes_stay(frozen):
    vq = layer(freeze_codebook=frozen == "option", threshold_ema_dead_code=2)
    if frozen == "eval":
        vq.eval()
    before = {n: t.clone() for n, t in vq.state_dict().items()}
    vq(made(1, 50, D), freeze_codebook=True if frozen == "argument" else None)
    assert all(torch.equal(before[n], t) for n, t in vq.state_dict().items())


# -- resets and k-means --------------------------------------------------------------------------


@pytest.mark.parametrize("rows", [200, 7])
def test_dead_codes_become_vectors_of_the_batch(rows):
    vq = layer(threshold_ema_dead_code=2, reset_cluster_size=3.75, decay=0.55)
    book, resets = vq._codebook, 0
    for step in range(6):
        x = made(1, rows, D, seed=2 * step)
        vq(x)
        assert bool((book.cluster_size >= 2).all())
        reset = book.cluster_size[0] == 3.75  # no average comes to just that
        distance = (book.embed[0][reset][:, None] - x[0]).abs().amax(-1).amin(-1)
        assert not distance.any()  # bit by bit vectors of the batch
        assert torch.equal(book.embed_avg[0][reset], book.embed[0][reset] * 3.75)
        resets += int(reset.sum())
    assert resets


@SLOW
def test_resets_of_a_learned_codebook_and_with_another_count():
    vq = layer(learnable_codebook=True, threshold_ema_dead_code=0.9, reset_cluster_size=5)
    for step in range(12):
        vq(made(1, 30, D, seed=2 * step))
    assert bool((vq._codebook.cluster_size >= 0.9).all())
    assert isinstance(vq._codebook.embed, nn.Parameter)


def test_k_means_places_codes_once():
    centres = made(4, D) * 20
    x = (centres[torch.arange(200) % 4] + made(200, D, seed=2) * 0.01)[None]
    vq = layer(size=4, kmeans_init=True, seed=3)
    vq._codebook._sample = lambda x, mask: x[:, :4].float()  # one vector near every centre
    assert not bool(vq._codebook.initted)
    index = vq(x)[1]
    assert bool(vq._codebook.initted) and index.unique().numel() == 4
    wide = torch.cdist(vq.codebook, x[0].view(50, 4, D).mean(0))
    assert float(wide.amin(1).max()) < 1e-3
    vq._codebook.start = None  # not again
    vq(x)


@SLOW
def test_k_means_leaves_out_masked_vectors_and_keeps_empty_clusters():
    vq, x = layer(kmeans_init=True, use_cosine_sim=True, kmeans_iters=2), made(1, 50, D)
    mask = torch.arange(50)[None] < 10
    x[:, 10:] = 1e6
    vq(x, mask=mask)
    lengths = vq.codebook.norm(dim=-1)
    torch.testing.assert_close(lengths, torch.ones(K), atol=1e-5, rtol=0)
    assert float((vq.codebook @ torch.ones(D) / D**0.5).max()) < 0.999


# -- gradients and losses ------------------------------------------------------------------------


def test_nothing_reaches_averaged_codes_and_learned_ones_get_their_loss():
    x, vq = made(1, 50, D).requires_grad_(), layer()
    q, _, loss = vq(x)
    (q.sum() + loss).backward()
    assert not list(vq.parameters())
    vq = layer(learnable_codebook=True, commitment_weight=0.25, codebook_weight=2.0)
    before = vq.codebook.detach().double()
    q, index, loss = vq(x)
    loss.backward()
    c = before.requires_grad_()
    e, picked = x.detach().double(), c[index]
    want = 0.25 * F.mse_loss(e, picked.detach()) + 2 * F.mse_loss(picked, e)
    torch.testing.assert_close(loss.double(), want.detach(), rtol=1e-6, atol=0)
    want.backward()
    torch.testing.assert_close(vq._codebook.embed.grad[0].double(), c.grad, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(vq.codebook.detach().double(), before)  # no average moved it


@SLOW
def test_under_autocast_statistics_are_fp32():
    x = made(2, 100, D)
    exact, vq = layer(), layer()
    exact(x.bfloat16().float())
    with torch.autocast("cpu", torch.bfloat16):
        q, _, loss = vq(x.bfloat16().requires_grad_())
    assert q.dtype == torch.bfloat16 and loss.dtype == torch.float32
    assert all(t.dtype != torch.bfloat16 for t in vq.state_dict().values())
    torch.testing.assert_close(vq.codebook, exact.codebook, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"use_cosine_sim": True}, marks=SLOW),
        pytest.param({"learnable_codebook": True}, marks=SLOW),
    ],
    ids=str,
)
def test_masked_vectors_count_nowhere(options):
    g = torch.Generator().manual_seed(5)
    x, weight = made(3, 20, D), made(3, 20, D, seed=2)
    mask = torch.rand(3, 20, generator=g) < 0.6
    results = []
    for junk in (1e3, float("nan")):
        vq = layer(threshold_ema_dead_code=0.9, **options)
        leaf = torch.where(mask[..., None], x, junk).requires_grad_()
        q, index, loss = vq(leaf, mask=mask)
        ((q * weight).sum() + loss).backward()
        state = [t.clone() for t in vq.state_dict().values()]
        results.append([q.detach(), index, loss.detach(), leaf.grad, *state])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)
    q, index, loss, grad, *_ = results[0]
    assert not q[~mask].any() and not grad[~mask].any() and bool((index[~mask] == -1).all())
    # And they are what the others alone give.
    vq = layer(threshold_ema_dead_code=0.9, **options)
    alone, at, cost = vq(x[mask][None])
    torch.testing.assert_close(alone[0], q[mask], atol=0, rtol=0)
    assert torch.equal(at[0], index[mask])
    torch.testing.assert_close(cost.detach(), loss, rtol=1e-6, atol=0)
    kept = layer(return_zeros_for_masked_padding=False)
    assert torch.equal(kept(x, mask=mask)[0][~mask], x[~mask])


def test_a_mask_of_nothing():
    vq, x = layer(threshold_ema_dead_code=2), made(1, 9, D).requires_grad_()
    q, index, loss = vq(x, mask=torch.zeros(1, 9, dtype=torch.bool))
    (q.sum() + loss).backward()
    assert float(loss.detach()) == 0 and not x.grad.any() and bool((index == -1).all())
    assert bool(vq.codebook.isfinite().all())


def test_short_vectors_are_counted_over_training():
    vq, x = layer(), made(1, 9, D).clone()
    x[0, :3] = 0
    vq(x, freeze_codebook=True)
    vq.eval()(x)
    assert int(vq.fallbacks) == 3
    assert vq.measure(x)["fallbacks"] == pytest.approx(1 / 3)
    assert "fallbacks" not in vq.state_dict()


# -- shapes and the other quantisers -------------------------------------------------------------


def test_shapes():
    image, rows = made(2, D, 3, 5), made(2, 15, D)
    q, index, _ = layer(accept_image_fmap=True)(image)
    assert q.shape == image.shape and index.shape == (2, 3, 5)
    flat, at, _ = layer()(image.movedim(1, -1))
    assert torch.equal(flat.movedim(-1, 1), q) and torch.equal(at, index)
    q, index, _ = layer(channel_last=False)(rows.mT)
    assert q.shape == (2, D, 15) and index.shape == (2, 15)
    assert layer()(rows[0])[0].shape == (15, D)
    empty = layer(threshold_ema_dead_code=2)(rows[:0])
    assert empty[0].shape == (0, 15, D) and float(empty[2].detach()) == 0


@SLOW
def test_groups_are_quantisers_of_their_own():
    vq, x = layer(kind=GroupedVQ, groups=3), made(2, 40, D).requires_grad_()
    parts = [layer(3, K) for _ in range(3)]
    for k, part in enumerate(parts):
        for name in ("embed", "embed_avg"):
            getattr(part._codebook, name).copy_(getattr(vq._codebook, name)[k : k + 1])
    weight = made(2, 40, D, seed=2)
    q, index, loss = vq(x)
    ((q * weight).sum() + loss).backward()
    got = vq.codebook.clone()
    y = x.detach().requires_grad_()
    alone = [p(t.contiguous()) for p, t in zip(parts, y.split(3, -1), strict=True)]
    want = torch.cat([a[0] for a in alone], -1)
    ((want * weight).sum() + sum(a[2] for a in alone) / 3).backward()
    assert torch.equal(q, want) and torch.equal(index, torch.stack([a[1] for a in alone], -1))
    torch.testing.assert_close(x.grad, y.grad)
    torch.testing.assert_close(got, torch.stack([p.codebook for p in parts]))
    assert torch.equal(vq.eval().get_output_from_indices(vq(x)[1]), vq(x)[0])


def test_residual_output_is_the_sum_of_its_codes():
    vq, x = layer(kind=ResidualVQ, num_quantizers=3), made(2, 40, D).requires_grad_()
    q, index, losses = vq(x)
    (q.sum() + losses.sum()).backward()
    assert index.shape == (2, 40, 3) and losses.shape == (3,) and bool(x.grad.isfinite().all())
    vq.eval()
    q, index, _ = vq(x)
    torch.testing.assert_close(vq.get_output_from_indices(index), q, atol=1e-6, rtol=1e-6)
    left = [float((x - q).detach().square().mean())]
    left.append(float((x - vq.layers[0](x)[0]).detach().square().mean()))
    assert left[0] < left[1]
    mask = torch.arange(40).expand(2, 40) < 30
    assert bool((vq(x, mask=mask)[1][~mask] == -1).all())


@pytest.mark.parametrize(
    "wrong, says",
    [
        (lambda: layer(ema_update=True, learnable_codebook=True), "learned or averaged"),
        (lambda: layer(rotation_trick="sideways"), "is none of"),
        (lambda: layer(1, rotation_trick=True), "are signs"),
        (lambda: layer(0), "dim 0"),
        (lambda: layer(decay=1.5), "decay"),
        (lambda: layer(kind=GroupedVQ, groups=4), "4 groups of 9"),
        (lambda: layer(kind=ResidualVQ, num_quantizers=0), "0 quantisers"),
        (lambda: layer()(made(2, 5)), r"\(2, 5\), not \[\.\.\., 9\]"),
        (lambda: layer(accept_image_fmap=True)(made(2, D)), r"\[B, 9, H, W\]"),
        (lambda: layer()(made(2, 5, D), mask=torch.ones(2, 4) > 0), r"mask is \(2, 4\)"),
        (lambda: layer()(made(2, 5, D), mask=torch.ones(2, 5)), "float32, not"),
        (lambda: usage(torch.tensor([3]), 3), "code 3 of 3"),
    ],
)
def test_what_cannot_be_is_refused(wrong, says):
    with pytest.raises(ValueError, match=says):
        wrong()
    assert layer(1).mode == "ste" and layer().mode == "rotation"


# -- what is measured ----------------------------------------------------------------------------


def test_usage_and_perplexity():
    even = usage(torch.arange(64).view(4, 16) % 8, 8)
    assert even["used"] == 8 and even["usage"] == 1
    assert math.isclose(even["perplexity"], 8, rel_tol=1e-9)
    for seed in range(5):
        index = torch.randint(0, 9, (50,), generator=torch.Generator().manual_seed(seed)) ** 2 // 8
        got = usage(index, 30)
        assert 1 <= got["perplexity"] <= got["used"] + 1e-9 <= 30
        assert got["used"] == index.unique().numel()
    assert usage(torch.tensor([-1, -1]), 5) == {"used": 0, "usage": 0.0, "perplexity": 0.0}
    assert math.isclose(usage(torch.tensor([2, 2, -1]), 5)["perplexity"], 1)


def test_measures():
    vq, x = layer().eval(), made(2, 50, D)
    got = vq.measure(x)
    index = nearest_code(x.view(1, -1, D), vq._codebook.embed)
    distance = (x.view(-1, D) - vq.codebook[index[0]]).double().square().sum(-1)
    assert got["error"] == pytest.approx(float(distance.mean()), rel=1e-5)
    size = x.double().square().sum()
    assert got["relative_error"] == pytest.approx(float(distance.sum() / size), rel=1e-5)
    assert got["used"] == index.unique().numel()
    assert vq.measure(x, mask=torch.zeros(2, 50, dtype=torch.bool))["error"] == 0

"""BASED's model against the same in plain PyTorch: logits, gradients, losses while it trains."""

import dataclasses

import pytest
import torch
from based_helpers import RECALL, SLIDING, SMALL, made, tokens
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo import functional as F
from zoo.based import reference as R
from zoo.based.config import SIZES, BasedConfig, zoology
from zoo.based.data import BasedData, Recall, Text, text
from zoo.based.model import Based
from zoo.based.mqar import accuracy
from zoo.based.reference import BasedReference
from zoo.based.system import bits, system
from zoo.training import ConfigError, Request, Unsupported

SLOW = pytest.mark.slow
FORMS = {"all mixers": SMALL, "zoology": RECALL, "zoology, window": SLIDING}

# --- the reference's own algebra, in float64 ------------------------------------------------------


@st.composite
def heads(draw, most=3.0):
    b, h = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    n = draw(st.sampled_from([1, 2, 3, 4, 5, 6, 7, 15, 16, 17, 35]))
    f, d = draw(st.sampled_from([1, 2, 4, 8, 16])), draw(st.integers(1, 20))
    sigma = draw(st.sampled_from([0.1, 1.0, most]))
    g = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    made = [torch.randn(b, h, n, e, generator=g, dtype=torch.float64) for e in (f, f, d)]
    return made[0] * sigma, made[1] * sigma, made[2]


@settings(max_examples=30, deadline=None)
@given(heads())
def test_b1_b2_both_maps_give_the_kernel(drawn):
    q, k, _ = drawn
    f = q.shape[-1]
    s = q @ k.mT / f**0.5
    want = 1 + s + s * s / 2
    full, few = R.feature_map(q) @ R.feature_map(k).mT, R.compressed_map(q) @ R.compressed_map(k).mT
    # The terms that cancel near s = -1 are as large as 1 + |q|^2 |k|^2.
    size = 1 + q.square().sum(-1)[..., None] * k.square().sum(-1)[..., None, :]
    assert ((full - want).abs() < 1e-14 * size).all() and ((few - want).abs() < 1e-14 * size).all()
    assert R.feature_map(q).shape[-1] == 1 + f + f * f
    assert R.compressed_map(q).shape[-1] == 1 + f + f * (f + 1) // 2
    torch.testing.assert_close(R.weights(q, k), want, atol=1e-12, rtol=1e-12)


@settings(max_examples=30, deadline=None)
@given(heads(), st.sampled_from([1, 5, 16, 64]))
def test_b3_b4_quadratic_recurrent_and_chunked(drawn, chunk):
    """Any chunk, and a recurrence that is cut anywhere."""
    q, k, v = drawn
    want = R.quadratic(q, k, v)
    torch.testing.assert_close(R.chunked(q, k, v, chunk), want, atol=1e-11, rtol=1e-11)
    cut = v.shape[2] // 2
    first, state = R.recurrent(*(x[:, :, :cut] for x in drawn)) if cut else (v[:, :, :0], None)
    rest, (_, z) = R.recurrent(*(x[:, :, cut:] for x in drawn), state)
    torch.testing.assert_close(torch.cat([first, rest], 2), want, atol=1e-11, rtol=1e-11)
    assert (z[..., 0] == v.shape[2]).all()  # B8: its first number counts


@settings(max_examples=15, deadline=None)
@given(heads(1.0))
def test_b13_the_backward_in_closed_form(drawn):
    """d a_ij = (g_i . v_j - g_i . o_i) / Z_i and so on: autograd agrees, and our kernel."""
    q, k, v = (x.requires_grad_() for x in drawn)
    g = torch.randn(v.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    o = R.quadratic(q, k, v)
    got = torch.autograd.grad(o, (q, k, v), g)
    with torch.no_grad():
        s, scale = q @ k.mT / q.shape[-1] ** 0.5, q.shape[-1] ** -0.5
        a = R.weights(q, k).tril()
        z = a.sum(-1, keepdim=True)
        da = ((g @ v.mT - (g * o).sum(-1, keepdim=True)) / z).tril()
        ds = (1 + s) * da
        want = (scale * ds @ k, scale * ds.mT @ q, (a / z).mT @ g)
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)


def test_b13_finite_differences():
    q, k, v = (torch.randn(1, 1, 5, n, dtype=torch.float64, requires_grad=True) for n in (2, 2, 3))
    assert torch.autograd.gradcheck(R.quadratic, (q, k, v), atol=1e-7)
    assert torch.autograd.gradcheck(lambda *x: R.chunked(*x, 2), (q, k, v), atol=1e-7)


@pytest.mark.parametrize("n", [63, *(pytest.param(n, marks=SLOW) for n in (1, 64, 65, 130))])
def test_b13_gradients_of_the_kernels_without_a_state(n):
    """One tile, several, and ragged ones; against float64."""
    torch.manual_seed(n)
    q, k, v = (torch.randn(2, n, 2, w, requires_grad=True) for w in (8, 8, 20))
    y, state = F.taylor_linear_attention(q, k, v)
    wide = [x.detach().double().transpose(1, 2).requires_grad_() for x in (q, k, v)]
    want = R.quadratic(*wide)
    assert state is None
    torch.testing.assert_close(y.double().transpose(1, 2), want, atol=2e-6, rtol=1e-5)
    g = torch.randn(y.shape)
    ours = torch.autograd.grad(y, (q, k, v), g)
    theirs = torch.autograd.grad(want, wide, g.double().transpose(1, 2))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a.double().transpose(1, 2), b, atol=1e-5, rtol=1e-4)


@SLOW
def test_without_a_state_and_with_one():
    """Where the sequence is longer than the state pays for, and where it is not."""
    q, k, v = (torch.randn(1, n, 1, w) for n, w in ((70, 4), (70, 4), (70, 20)))
    short, _ = F.taylor_linear_attention(q[:, :64], k[:, :64], v[:, :64])  # 4 F^2
    long, _ = F.taylor_linear_attention(q, k, v)
    kept, _ = F.taylor_linear_attention(q, k, v, output_final_state=True)
    assert torch.equal(long, kept)
    torch.testing.assert_close(short, long[:, :64], atol=1e-6, rtol=1e-5)


# --- the model ------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Based, BasedReference])
@pytest.mark.parametrize("name, count", [("360m", 362_620_928), ("1.3b", 1_349_453_056)])
def test_b19_published_sizes(name, count, kind):
    with torch.device("meta"):
        model = kind(SIZES[name])
    assert sum(p.numel() for p in model.parameters()) == count
    c = SIZES[name]
    layers = {k: [i for i, x in enumerate(c.layers) if x == k] for k in ("linear", "window")}
    assert layers["window"] == [i + 1 for i in layers["linear"]] and c.layers.count("conv") in (
        17,
        22,
    )


@pytest.mark.parametrize(
    "form", ["zoology", *(pytest.param(n, marks=SLOW) for n in ("all mixers", "zoology, window"))]
)
def test_logits_and_gradients_are_the_references(form):
    ours, theirs = made(FORMS[form]), made(FORMS[form], BasedReference)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    assert all(
        torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True)
    )
    theirs.double()
    ids = tokens()
    torch.testing.assert_close(ours(ids).double(), theirs(ids), atol=2e-5, rtol=1e-4)
    labels = torch.where(tokens(seed=3) < 9, ids, -100)
    one, other = ours(ids, labels), theirs(ids, labels)
    torch.testing.assert_close(one.double(), other, atol=1e-5, rtol=1e-5)
    one.backward()
    other.backward()
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        bound = 1e-5 * float(q.grad.abs().max())
        assert (p.grad.double() - q.grad).abs().max() <= bound, name


@pytest.mark.parametrize("start, size", [("published", 0.02), ("torch", 64**-0.5 / 3**0.5)])
def test_one_seed_gives_both_models_the_same_weights(start, size):
    models = []
    for kind in (Based, BasedReference):
        torch.manual_seed(3)
        models.append(dict(kind(zoology("linear", 64, start=start)).named_parameters()))
    for name, p in models[0].items():
        assert torch.equal(p, models[1][name]), name
    spread = {n: float(p.detach().std()) for n, p in models[0].items() if p.dim() > 1}
    assert spread["blocks.1.mixer.qkv_proj.weight"] == pytest.approx(size, rel=0.1)
    assert spread["embedding.weight"] == pytest.approx(0.02, rel=0.1)
    small = 0.5 if start == "published" else 1
    assert spread["blocks.1.mixer.out_proj.weight"] == pytest.approx(size * small, rel=0.1)
    assert not models[0]["blocks.0.mixer.in_proj.bias"].any()


@pytest.mark.parametrize("form", ["quadratic", "chunked"])
def test_the_references_forms_agree(form):
    model, ids = made(SMALL, BasedReference, form=form).double(), tokens()
    again = made(SMALL, BasedReference, form="quadratic").double()
    torch.testing.assert_close(model(ids), again(ids), atol=1e-10, rtol=1e-10)


@torch.no_grad()
def test_labels_everywhere_and_nowhere_else():
    model, ids = made(SMALL), tokens()
    every = torch.nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.flatten())
    torch.testing.assert_close(model(ids, ids), every, atol=1e-5, rtol=1e-5)
    some = torch.full_like(ids, -100)
    some[1, 7] = 3
    one = -model(ids)[1, 7].log_softmax(-1)[3]
    torch.testing.assert_close(model(ids, some), one, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_the_past_does_not_see_the_future():
    model, ids = made(SMALL), tokens()
    changed = ids.clone()
    changed[:, 40] = (changed[:, 40] + 1) % 40
    before, after = model(ids), model(changed)
    assert torch.equal(before[:, :40], after[:, :40])
    assert not torch.equal(before[:, 40:], after[:, 40:])


@torch.no_grad()
@pytest.mark.parametrize("kind", ["conv", "linear", "window"])
def test_each_mixer_matters(kind):
    model, ids = made(dataclasses.replace(SMALL, layers=(kind,))), tokens(length=9)
    logits = model(ids)
    model.blocks[0].mixer.out_proj.weight.zero_()
    assert (model(ids) - logits).abs().max() > 1e-2


@pytest.mark.parametrize(
    "change, words",
    [({"heads": 3}, "no multiple"), ({"features": 33}, "more than 32"), ({"layers": ()}, "none"),
     ({"layers": ("conf",)}, "none of conv"), ({"taps": 5}, "not 2, 3 or 4"),
     ({"start": "zeros"}, "none of published"), ({"window": 0}, "not positive"), ({"heads": 16}, "no halves"), ({"hidden": -1}, "leaves")],
)  # fmt: skip
def test_sizes_that_cannot_be(change, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(SMALL, **change)


def test_a_mlp_is_twice_as_wide_rounded_up():
    assert BasedConfig(width=104).mlp == 256 and BasedConfig(width=1792).mlp == 3584


# --- training -------------------------------------------------------------------------------------


def losses(model, data, steps):
    """Losses on the same batches with the same AdamW."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    out = []
    for k in range(steps):
        loss = model(*data.batch(order[torch.arange(k * 16, k * 16 + 16) % len(data)]))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        out.append(loss.detach())
    return torch.stack(out)


def trained(kind, steps):
    """From weights large enough that every part matters from the first step on."""
    rows = Recall(BasedData(train=((32, 4, 600),)), RECALL.vocabulary, 0)
    return losses(made(RECALL, kind), rows, steps)


@pytest.mark.parametrize("steps, bound", [(20, 5e-5), pytest.param(200, 1e-3, marks=SLOW)])
def test_training_stays_with_the_reference(steps, bound):
    ours, theirs = trained(Based, steps), trained(BasedReference, steps)
    assert (ours - theirs).abs().max() < bound, (ours - theirs).abs()
    assert ours[-5:].mean() < ours[:5].mean()


def test_a_wrong_scale_shows_while_training(monkeypatch):
    """The comparison can fail: a scale without its square root leaves the reference."""
    theirs = trained(BasedReference, 20)
    plain = F.taylor_linear_attention
    monkeypatch.setattr(F, "taylor_linear_attention", lambda q, k, v: plain(q * 2, k, v))
    assert (trained(Based, 20) - theirs).abs().max() > 1e-4


# --- as a system ----------------------------------------------------------------------------------


def test_presets():
    assert {"mqar-small", "text", "360m", "1.3b"} <= set(system.presets)
    tier_s = system.preset("mqar-small")
    c, d, t = tier_s.model, tier_s.data, tier_s.train
    assert (c.vocabulary, c.width, c.features, t.steps, t.batch, t.lr) == (
        512,
        64,
        16,
        4000,
        64,
        3e-3,
    )
    assert d.train == ((64, 4, 16_000), (64, 8, 8_000), (64, 16, 8_000))
    assert t.steps * t.batch == 8 * sum(rows for _, _, rows in d.train)
    with pytest.raises(ConfigError, match="mqar-small"):
        system.preset("mqar-smal")


def test_rows_of_several_lengths_are_never_mixed():
    preset = system.preset("mqar-small")
    parts = ((16, 2, 10), (32, 2, 9))
    preset = dataclasses.replace(preset, data=BasedData(train=parts))
    data = system.data(preset)
    order = system.order(data, 0, 0, 4)
    assert len(order) == 16 == len(order.unique())
    for index in order.split(4):
        data.batch(index)
    assert not torch.equal(order, system.order(data, 1, 0, 4))


def test_text_is_pythons_own_and_held_out_text_is_apart():
    train, test = (bytes(text(part).tolist()) for part in ("train", "test"))
    assert len(train) > 5 * len(test) > 50_000 and b"Python" in train
    assert test[:200] not in train and test[-200:] not in train
    rows = Text(64)
    index = torch.tensor([0, 5, len(rows) - 1])
    assert torch.equal(rows.batch(index), torch.stack([rows[int(i)] for i in index]))
    assert torch.equal(rows[5][:-1], rows[4][1:])


class Even(torch.nn.Module):
    """Foretells every byte with the same probability."""

    def __init__(self):
        super().__init__()
        self.p = torch.nn.Parameter(torch.zeros(256))

    def forward(self, ids, labels):
        return torch.nn.functional.cross_entropy(
            self.p.expand(labels.numel(), -1), labels.flatten()
        )


def test_evaluation():
    assert bits(Even(), 256) == pytest.approx(8, abs=1e-5)
    preset = dataclasses.replace(
        system.preset("mqar-small"), model=zoology("linear", 16, 40, 4),
        data=BasedData(test=((32, 4, 30), (36, 8, 30))),
    )  # fmt: skip
    with torch.no_grad():
        rows = system.evaluate(made(preset.model), preset)
        again = system.evaluate(made(preset.model, BasedReference), preset)
    assert [r["length/pairs"] for r in rows] == ["32/4", "36/8"]
    assert rows == again and all(0 <= r["accuracy"] <= 1 and r["chance"] == 0.05 for r in rows)
    tokens_, labels = next(iter(preset.data.rows("test", 40, 0)))[1]
    assert accuracy(made(preset.model), tokens_, labels) == rows[0]["accuracy"]


def test_generating():
    preset = system.preset("text")
    model = made(dataclasses.replace(SMALL, vocabulary=256))
    request = Request(prompt="Python", tokens=5, samples=2, seed=3)
    out = "".join(system.generate(model, preset, request))
    assert out.startswith("Python") and out.count("\n\nPython") == 1
    assert out == "".join(system.generate(model, preset, request))
    with pytest.raises(Unsupported, match="generates no text"):
        system.generate(model, system.preset("mqar-small"), request)


def test_saved_and_loaded(tmp_path):
    model = made(SMALL)
    model.save_pretrained(tmp_path)
    for kind in (Based, BasedReference):
        again = kind.from_pretrained(tmp_path)
        assert again.config == SMALL
        assert all(
            torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True)
        )

"""The trainer against a loop written out here, and the promises that its parts make."""

from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_system import Pairs, Source, Toy, system

from zoo.training import ConfigError, Train, override
from zoo.training.batches import Batches
from zoo.training.checkpoint import Run
from zoo.training.log import Diverged, Report
from zoo.training.trainer import Trainer, rate

pytestmark = pytest.mark.usefixtures("one_thread")


def trained(*settings, preset="calm", of=system, out=None, **keywords):
    """The rows that training logged, without what time decides, and the trainer."""
    seen = []

    class Listener(Report):
        def logged(self, row):
            seen.append({k: v for k, v in row.items() if k != "seconds"})

    run = Run("toy_system:system", preset, override(of.preset(preset), settings))
    trainer = Trainer(of, run, out=out, report=Listener())
    trainer.outcome = trainer.fit(**keywords)
    return seen, trainer


def losses(rows):
    return [row["loss"] for row in rows]


def differs(a, b):
    """The largest difference between two lists of numbers."""
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


# --- a step ---------------------------------------------------------------------------------------


def test_it_is_the_loop_written_out():
    """Seed, order, warm-up, cosine, clipping, decay of matrices alone, AdamW by its formula."""
    preset = system.preset("calm")
    train = preset.train
    torch.manual_seed(train.seed)
    model = system.build(preset.model).train()
    data = Pairs(preset.data, preset.model.words)
    order = torch.cat([system.order(data, epoch, train.seed, train.batch) for epoch in range(6)])
    first = {p: torch.zeros_like(p) for p in model.parameters()}
    second = {p: torch.zeros_like(p) for p in model.parameters()}
    expected = []
    for step in range(train.steps):
        if step < train.warmup:
            lr = train.lr * (step + 1) / train.warmup
        else:
            done = (step - train.warmup) / (train.steps - train.warmup)
            lr = train.lr * (1 + math.cos(math.pi * done)) / 2
        items = order[step * train.batch : (step + 1) * train.batch]
        loss = model.terms(data.tokens[items], data.labels[items])
        grads = torch.autograd.grad(loss, list(model.parameters()))
        norm = torch.stack([g.square().sum() for g in grads]).sum().sqrt()
        scale = min(1.0, train.clip / float(norm))
        for p, g in zip(model.parameters(), grads, strict=True):
            g = g * scale
            first[p].mul_(0.9).add_(g, alpha=0.1)
            second[p].mul_(0.95).addcmul_(g, g, value=0.05)
            m, v = first[p] / (1 - 0.9 ** (step + 1)), second[p] / (1 - 0.95 ** (step + 1))
            with torch.no_grad():
                if p.ndim >= 2:
                    p.mul_(1 - lr * train.weight_decay)
                p.sub_(lr * m / (v.sqrt() + train.eps))
        expected.append((loss.item(), lr, norm.item()))
    rows, trainer = trained()
    for name, want in zip(("loss", "lr", "grad_norm"), zip(*expected, strict=True), strict=True):
        assert differs([row[name] for row in rows], want) < 2e-4, name
    for (name, p), q in zip(trainer.model.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=2e-4, rtol=0, msg=name)
    assert rows[-1]["loss"] < 0.6 * rows[0]["loss"]


@torch.no_grad()
def test_it_trains_wherever_it_is_called():
    assert len(trained("train.steps=2")[0]) == 2


def test_two_runs_are_one():
    a, _ = trained(preset="tiny")
    b, _ = trained(preset="tiny")
    c, _ = trained("train.seed=1", preset="tiny")
    assert a == b and losses(a) != losses(c)


def test_evaluation_disturbs_nothing():
    a, one = trained("train.evaluate_every=1", preset="tiny")
    b, two = trained(preset="tiny")
    assert a == b and one.outcome.rows == two.outcome.rows != []
    assert one.model.training


@pytest.mark.parametrize("pieces", [2, 8])
def test_accumulation_is_the_whole_batch(pieces):
    """Items have unequal numbers of terms: a mean of means would show."""
    still = "model.momentum=0.0"
    a, _ = trained(still)
    b, _ = trained(still, f"train.accumulate={pieces}")
    for name in ("loss", "twice", "grad_norm"):
        assert differs([r[name] for r in a], [r[name] for r in b]) < 1e-4, name


def test_a_mean_of_means_would_show():
    class Unweighted(Toy):
        def weight(self, batch):
            return 1.0

    still = "model.momentum=0.0"
    a, _ = trained(still)
    b, _ = trained(still, "train.accumulate=8", of=Unweighted())
    assert differs(losses(a), losses(b)) > 1e-2


def test_autocast():
    class Listening(Toy):
        seen = None

        def loss(self, model, batch):
            self.seen = torch.get_autocast_dtype("cpu"), torch.is_autocast_enabled("cpu")
            return super().loss(model, batch)

    of = Listening()
    a, _ = trained("train.steps=3")
    b, trainer = trained("train.steps=3", "train.autocast=bfloat16", of=of)
    assert of.seen == (torch.bfloat16, True)
    assert 0 < differs(losses(a), losses(b)) < 0.1
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())


def test_what_decays():
    model = system.build(system.preset("tiny").model)
    groups = system.parameter_groups(model, Train())
    assert [g["weight_decay"] for g in groups] == [0.1, 0.0]
    assert {p.ndim for p in groups[0]["params"]} == {2}
    assert {p.ndim for p in groups[1]["params"]} == {1}
    (every,) = system.parameter_groups(model, Train(decay_all=True))
    assert len(every["params"]) == len(list(model.parameters()))


def test_a_group_with_a_rate_of_its_own():
    class Frozen(Toy):
        def parameter_groups(self, model, train):
            kept = [{"params": [model.embedding.weight], "lr_scale": 0.0, "weight_decay": 0.1}]
            return [*kept, {"params": [*model.hidden.parameters(), *model.norm.parameters()]}]

    _, trainer = trained("train.steps=5", of=Frozen())
    torch.manual_seed(0)
    fresh = system.build(system.preset("calm").model)
    assert torch.equal(trainer.model.embedding.weight, fresh.embedding.weight)
    assert not torch.equal(trainer.model.hidden.weight, fresh.hidden.weight)


# --- the rate -------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(
    st.integers(1, 50), st.integers(0, 60), st.floats(0, 1),
    st.sampled_from(["cosine", "linear", "constant"]),
)  # fmt: skip
def test_the_rate(steps, warmup, floor, schedule):
    train = Train(steps=steps, warmup=warmup, floor=floor, schedule=schedule, lr=2.0)
    rates = [rate(train, k) for k in range(steps)]
    rising, falling = rates[:warmup], rates[warmup:]
    assert rising == pytest.approx([2.0 * (k + 1) / warmup for k in range(len(rising))])
    assert falling == sorted(falling, reverse=True)
    assert all(2.0 * floor - 1e-9 <= r <= 2.0 + 1e-9 for r in falling)
    if falling:
        assert falling[0] == 2.0
    if schedule != "constant":
        assert rate(train, max(steps, warmup + 1)) == pytest.approx(2.0 * floor)


# --- batches --------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 23), st.sampled_from([1, 2, 3, 4, 6, 12]), st.integers(0, 9))
def test_every_epoch_has_every_item_once(items, batch, seed):
    preset = override(system.preset("tiny"), [f"train.batch={batch}", f"train.seed={seed}"])
    batches = Batches(system, preset, Pairs(Source(items=items), 11))
    seen = []
    for _ in range(math.ceil(3 * items / batch)):
        seen += batches.indices().tolist()
        batches.take()
    epochs = [seen[k * items : (k + 1) * items] for k in range(3)]
    assert all(sorted(e) == list(range(items)) for e in epochs)
    if items > 9:
        assert epochs[0] != epochs[1]


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 23), st.integers(0, 100))
def test_a_position_is_all_there_is(items, position):
    preset, data = system.preset("tiny"), Pairs(Source(items=items), 11)
    walked, jumped = Batches(system, preset, data), Batches(system, preset, data)
    for _ in range(position):
        walked.take()
    jumped.position = walked.position
    assert torch.equal(walked.indices(), jumped.indices())


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (2, 1), (2, 3), (6, 1), (1, 6)])
@pytest.mark.parametrize("at_once", [True, False])
def test_shares_are_the_batch(world, accumulate, at_once):
    settings = ["train.batch=12", f"train.accumulate={accumulate}"]
    preset = override(system.preset("tiny"), settings)
    data = Pairs(Source(), 11)
    if not at_once:
        data = [data[k] for k in range(len(data))]
    whole = Batches(system, preset, data).indices()
    shares = [Batches(system, preset, data, r, world).take() for r in range(world)]
    assert all(len(s) == accumulate for s in shares)
    tokens = torch.cat([piece[0] for share in shares for piece in share])
    assert torch.equal(tokens, Pairs(Source(), 11).tokens[whole])


def test_batches_that_cannot_be():
    preset, data = system.preset("tiny"), Pairs(Source(), 11)
    with pytest.raises(ConfigError, match=r"8 does not divide among 3 .*\n.*train.batch=9"):
        Batches(system, preset, data, 0, 3)
    with pytest.raises(ConfigError, match="empty"):
        Batches(system, preset, [])

    class Uneven(Toy):
        def order(self, data, epoch, seed, batch):
            return torch.arange(10 + epoch)

    batches = Batches(Uneven(), preset, data)
    batches.take()
    with pytest.raises(ConfigError, match="11 items in epoch 1, but 10 in epoch 0"):
        batches.take()


# --- how it ends ----------------------------------------------------------------------------------


def test_a_loss_that_is_no_number_is_not_saved(tmp_path):
    with pytest.raises(Diverged, match=r"the loss is (nan|inf) at step \d+\n  fix: a lower"):
        trained("train.lr=1e30", "train.clip=none", "train.checkpoint_every=1", out=tmp_path)
    rows = [json.loads(r) for r in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    saved = [int(p.name[5:]) for p in (tmp_path / "checkpoints").glob("step-*")]
    assert all(math.isfinite(r["loss"]) for r in rows if r["step"] <= max(saved, default=0))


def test_weights_that_are_no_numbers_are_not_saved(tmp_path):
    class Breaking(Toy):
        def on_step(self, model, step):
            if step == 5:
                model.hidden.bias.data[2] = math.nan

    settings = ("train.checkpoint_every=2", "train.log_every=0", "train.steps=9")
    with pytest.raises(Diverged, match="is not finite at step 6: nothing is saved"):
        trained(*settings, of=Breaking(), out=tmp_path)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000004"]


def test_the_time_is_up(tmp_path):
    rows, trainer = trained("train.steps=1000000", out=tmp_path, seconds=0.3)
    assert 0 < trainer.outcome.step == len(rows) < 1000000
    assert trainer.outcome.signal is None and trainer.outcome.rows
    assert (tmp_path / "checkpoints" / f"step-{trainer.step:08}" / "run.json").is_file()


def test_rows_that_are_kept(tmp_path):
    settings = ("train.steps=10", "train.log_every=4", "train.evaluate_every=5")
    rows, _ = trained(*settings, out=tmp_path)
    kept = [json.loads(r) for r in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [r["step"] for r in kept] == [4, 5, 8, 10, 10]
    logged = [r for r in kept if "loss" in r]
    assert set(logged[0]) == {"step", "seconds", "loss", "lr", "grad_norm", "twice", "average"}
    assert losses(logged) == losses(rows)
    assert kept[-1]["evaluation"] == [{"part": "held out", "items": 50, **_accuracy(kept[-1])}]


def _accuracy(row):
    (only,) = row["evaluation"]
    assert 0 <= only["accuracy"] <= 1
    return {"accuracy": only["accuracy"]}


def test_checkpoints_by_time_disturb_nothing(tmp_path):
    few = "train.steps=12"
    a, _ = trained(few, preset="tiny")
    b, _ = trained(few, "train.checkpoint_seconds=0.001", preset="tiny", out=tmp_path)
    assert a == b
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["step-00000012"]

"""The VQ-VAE beside its reference in plain PyTorch, its data, and a training that improves."""

import pytest
import torch
from torch import nn

from zoo.training import LoadError
from zoo.vqvae import reference
from zoo.vqvae.data import Images, split
from zoo.vqvae.model import VQVAE, Config
from zoo.vqvae.system import PRESETS, system

pytest.importorskip("sklearn")

TINY = Config(hidden=(8, 16), dim=9, codes=32)

pytestmark = pytest.mark.usefixtures("one_thread")


def trained(model, steps, seed=0, batch=16, lr=2e-3):
    """Losses of a short training; the same draws for the same seed."""
    images = split(Images())[0]
    g = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr, (0.9, 0.99))
    torch.manual_seed(seed)
    losses = []
    for _ in range(steps):
        loss, _ = system.loss(
            model.train(), images.batch(torch.randint(1437, (batch,), generator=g))
        )
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    return torch.tensor(losses)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        pytest.param({"gradient": "ste", "reset": 1.0}, marks=pytest.mark.slow),
        pytest.param({"cosine": True}, marks=pytest.mark.slow),
        pytest.param({"learned": True, "commitment": 0.25}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_trains_as_the_reference_does(changes):
    config = Config(**{"hidden": (8, 16), "dim": 9, "codes": 32, **changes})
    torch.manual_seed(0)
    ours = VQVAE(config)
    torch.manual_seed(0)
    plain = reference.VQVAE(config)
    for (a, x), (b, y) in zip(ours.state_dict().items(), plain.state_dict().items(), strict=True):
        assert a == b and torch.equal(x, y)
    steps = 30
    got, want = trained(ours, steps), trained(plain, steps)
    assert float((got - want).abs().max()) < 1e-3
    assert float(want[-5:].mean()) < 0.8 * float(want[:5].mean())


def test_the_reference_turns_the_gradient():
    e = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    q, g = torch.randn(5, 4).double(), torch.randn(5, 4).double()
    out = reference.rotate_to(e, q)
    torch.testing.assert_close(out.detach(), q)
    out.backward(g)
    scale = q.norm(dim=-1) / e.detach().norm(dim=-1)
    torch.testing.assert_close(e.grad.norm(dim=-1), scale * g.norm(dim=-1))


def test_images_to_codes_and_back():
    torch.manual_seed(0)
    model = VQVAE(TINY).eval()
    images = split(Images())[1].images[:9]
    with torch.no_grad():
        out = model(images)
        index = model.encode(images)
        assert index.shape == (9, 4, 4) and torch.equal(index, out.index)
        torch.testing.assert_close(model.decode(index), out.image)


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{"quantizers": 2}, {"groups": 2}], ids=str)
def test_other_quantisers(changes):
    torch.manual_seed(0)
    model = VQVAE(Config(hidden=(8, 16), dim=4, codes=16, **changes))
    losses = trained(model, 2)
    assert bool(losses.isfinite().all())
    images = split(Images())[1].images[:3]
    model.eval()
    torch.testing.assert_close(model.decode(model.encode(images)), model(images).image)


def test_saved_and_loaded(tmp_path):
    torch.manual_seed(0)
    model = VQVAE(TINY)
    trained(model, 1)
    model.save_pretrained(tmp_path)
    images = split(Images())[1].images[:5]
    for kind in (VQVAE, reference.VQVAE):
        again = kind.from_pretrained(tmp_path)
        torch.testing.assert_close(again(images).image, model.eval()(images).image)
    (tmp_path / "config.json").write_text('{"model_type": "based"}')
    with pytest.raises(LoadError):
        VQVAE.from_pretrained(tmp_path)


def test_data():
    train, test = split(Images())
    assert len(train) == 1437 and len(test) == 360 and train[0].shape == (1, 8, 8)
    seen = {bytes(i.numpy().tobytes()) for i in train.images}
    assert sum(bytes(i.numpy().tobytes()) in seen for i in test.images) == 0
    train, test = split(Images("photos"))
    assert train[0].shape == (3, 16, 16) and len(train) >= 4 * len(test) > 0
    assert float(train.images.min()) >= 0 and float(train.images.max()) <= 1


def test_every_preset_builds_and_evaluates():
    for name, preset in PRESETS.items():
        with torch.device("meta"):
            system.build(preset.model)
        if preset.data.source == "digits":
            assert system.preset_from_json({"model": {}, "data": {}}).model == Config(), name
    model = system.build(TINY).eval()
    with torch.no_grad():
        (row,) = system.evaluate(model, PRESETS["digits"])
    assert row["usage"] <= 1 and row["perplexity"] <= 32 * row["usage"] + 1e-9
    assert {"mse", "error", "relative_error", "length", "probe"} <= set(row)

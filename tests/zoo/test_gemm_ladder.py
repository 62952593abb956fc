"""Every step of the ladder of matrix products is right, and the table can be made of it."""

import importlib
import itertools
import sys
from pathlib import Path

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "gemm_ladder"
sys.path.insert(0, str(FOLDER))
ladder = importlib.import_module("ladder")
sys.path.pop(0)


@pytest.fixture(autouse=True)
def at_home(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))


@pytest.mark.parametrize("step", ladder.STEPS)
def test_a_step_is_right(step):
    gemm = ladder.kernel(step)
    assert 0 < ladder.check(gemm, 256, 128, 192) <= 1
    if step < 5:
        with pytest.raises(ValueError, match="%"):
            ladder.check(gemm, 100, 128, 128)
    else:
        assert 0 < ladder.check(gemm, 300, 77, 65) <= 1
        assert 0 < ladder.check(gemm, 1, 1, 1) <= 1


def test_a_wrong_step_is_seen():
    def wrong(a, b):
        c = a.float() @ b.float()
        c[3, 5] += 1.0
        return c.to(a.dtype)

    wrong.signature = ladder.kernel(5).signature
    with pytest.raises(AssertionError, match="off by"):
        ladder.check(wrong, 32, 32, 64)


def test_the_raster_covers_every_tile_once():
    """Step 6 with bands that do not divide the rows, and with one band for all."""
    gemm = ladder.kernel(6)
    a, b = (torch.randn(*s).bfloat16() for s in ((150, 32), (32, 70)))
    for super_m in (1, 3, 4, 20):
        c = gemm(a, b, rows=16, cols=16, depth=32, super_m=super_m)
        assert torch.equal(c, gemm(a, b, rows=16, cols=16, depth=32, super_m=2))


def test_steps_that_change_no_arithmetic_change_no_bit():
    a, b = ladder.operands(ladder.kernel(8), 200, 300, 130)
    want = ladder.kernel(5)(a, b)
    for step in (6, 7):
        assert torch.equal(ladder.kernel(step)(a, b), want)


def test_the_readme_has_a_row_for_every_step():
    text = (FOLDER / "README.md").read_text()
    for step in ladder.STEPS:
        assert f"| {step} |" in text and f"(step{step}.py)" in text


@pytest.mark.slow
def test_every_step_up_is_no_step_down():
    """On the simulated H100, and the whole ladder is worth a hundred times."""
    seconds = [ladder.on_an_h100(ladder.kernel(step), 4096)[0] for step in ladder.STEPS]
    for below, above in itertools.pairwise(seconds):
        assert above <= 1.03 * below
    assert seconds[0] > 100 * seconds[-1]

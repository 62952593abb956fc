"""The text of attention's derived backward, as a person reads it: what changes it shows here.

``python tests/tkpy/test_golden_backward.py`` writes it anew.
"""

from pathlib import Path

from tkpy.ahead import Setting, backward_for
from zoo.kernels.attention import attention
from zoo.kernels.norm import rmsnorm

GOLDEN = Path(__file__).with_name("attention_backward.golden")


def derived() -> str:
    """The Triton of its programs on a GPU, without what launches them."""
    made = backward_for(attention, Setting("bf16", {"D": 64}))
    return "\n\n".join(p.emitted.source.strip("\n") for p in made.pieces) + "\n"


def test_golden():
    assert derived() == GOLDEN.read_text()


def test_it_is_flash_attention():
    """Two products for dQ's scores and dP and one for dQ; two and two for dK and dV; no tapes."""
    text = GOLDEN.read_text()
    assert "tape" not in text and "tl.atomic" not in text
    programs = text.split("@triton.jit")[1:]
    whole = [p.split("# what is left")[0].count("tl.dot(") for p in programs]
    assert sorted(whole)[-2:] == [3, 4]


def test_a_template_whose_loop_makes_one_trip():
    """There is no pipeline to schedule for a GPU, in the forward that saves."""
    made = backward_for(rmsnorm, Setting("bf16", {"D": 64}))
    assert made.forward.fn.schedule is None and made.pieces


if __name__ == "__main__":
    GOLDEN.write_text(derived())

"""Tile IR as text: what is printed reads back as the same function, after every pass."""

import re
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tkpy"))

from plain import walk
from verbs import CASES

from codegen.emit import emit
from codegen.text import ParseError, parse_function, print_function
from codegen.verify import VerifyError, verify
from codegen.writer import wrapped

SIZES = {"M": 33, "N": 17, "K": 35}


def lowered(name, watch=None):
    kernel, _, make, _ = CASES[name]
    inputs = make(SIZES, torch.Generator().manual_seed(0), torch.float32)
    inputs, outs = inputs if isinstance(inputs, tuple) else (inputs, {})
    return kernel.lower(kernel.key_of(kernel.binder.bind(tuple(inputs), outs)), watch=watch)


def without_comments(source):
    return re.sub(r"^\s*#.*\n", "", source, flags=re.M)


@pytest.mark.parametrize("name", CASES)
def test_round_trip_after_every_pass(name):
    seen = []

    def watch(stage, fn):
        verify(fn)
        text = print_function(fn)
        again = parse_function(text)
        assert print_function(again) == text, stage
        verify(again)
        seen.append(stage)

    low = lowered(name, watch)
    assert {"frontend", "fold", "cse", "bounds", "licm", "split", "dce", "neutral"} <= set(seen)
    again = parse_function(print_function(low.fn))
    assert without_comments(emit(again).source) == without_comments(low.emitted.source)


def walk_key():
    return walk.key_of(walk.binder.bind((torch.zeros(2, 50, 24),), {}))


GOLDEN_TILE = """\
kernel walk(
    x: in f32[`B` `N` `24` as B N D],
    y: out f32[`B` `24` as B D]
) {
  dims B N
  grid b = `B`
  range B: `0` .. none
  range N: `0` .. none
  range b: `0` .. `B - 1`
  range j: `0` .. `(N + 31) // 32 - 1`
  %total = full() {value = 0.0, dtype = !f32, axes = (axis<32[24]>,)} : tile<32[24], f32> @15
  %0 = retype(%total) {axes = (axis<32[24]>,), orient = "row"} : tile<32[24], f32, row> @13
  %total.3 = for(%0) {index = `j`, start = `0`, stop = `N // 32`} : tile<32[24], f32, row> @16 {
    ^(%total.1: tile<32[24], f32, row>)
"""

GOLDEN_TRITON = """\
@triton.jit(do_not_specialize=["N", "stride_x_b", "stride_x_n", "stride_y_b"])
def walk_kernel(x_ptr, y_ptr, N, stride_x_b, stride_x_n, stride_y_b):
    b = tl.program_id(0)
    # total = tk.zeros("D")
    total = tl.zeros((32,), tl.float32)
    x_base = x_ptr + b * stride_x_b
    offs_d = tl.arange(0, 32)
    # for j in tk.range(tk.cdiv("N", 32)):
    for j in range(N // 32):
        offs_n = j * 32 + tl.arange(0, 32)
        # t = tk.load(x, (b, j, 0), shape=(32, "D"), dtype=tk.f32)
        t = tl.load(
            x_base + offs_n[:, None] * stride_x_n + offs_d[None, :],
            mask=(offs_d < 24)[None, :],
        )
        # total = total + tk.col_sum(tk.fill_dead(t, 0))
        total = total + tl.sum(tl.where((offs_d < 24)[None, :], t, 0.0), axis=0)
    # what is left: tiles at an edge or under a mask
    # for j in tk.range(tk.cdiv("N", 32)):
    for j_1 in tl.range(N // 32, (N + 31) // 32, num_stages=1):
"""


def test_golden_tile_ir():
    assert print_function(walk.lower(walk_key()).fn).startswith(GOLDEN_TILE)


def test_golden_triton():
    assert GOLDEN_TRITON in walk.lower(walk_key()).source


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kernl f() { dims\n yield() }", "expected kernel"),
        ("kernel f() {\n dims\n %a = exp(%b) : f32\n yield()\n}", "%b is used before"),
        ("kernel f(x: sideways f32) {\n dims\n yield()\n}", "expected in or out"),
    ],
)
def test_parse_errors(text, message):
    with pytest.raises(ParseError, match=message):
        parse_function(text)


def test_verifier_refuses():
    low = lowered("reductions")
    text = print_function(low.fn)
    with pytest.raises(VerifyError, match="is typed"):
        verify(parse_function(text.replace("f32, col>", "f32, row>", 1)))
    fn = parse_function(text)
    fn.body.ops.insert(0, fn.body.ops.pop(len(fn.body.ops) - 2))
    with pytest.raises(VerifyError, match="before it is defined"):
        verify(fn)
    fn = parse_function(text)
    fn.body.ops.pop()
    with pytest.raises(VerifyError, match="does not end with a yield"):
        verify(fn)


def test_a_long_line_that_is_broken_keeps_its_value():
    """A parenthesis that is no call stays a number, and does not become a tuple."""
    x = 7
    body = " + ".join(["x"] * 40)
    for text in ("x * 2 + (BODY)", "max(BODY, x)", "int(BODY)", "(BODY, x)"):
        line = f"y = {text.replace('BODY', body)}"
        broken, plain = {"x": x}, {"x": x}
        assert len(wrapped(line)) > 1
        exec("\n".join(wrapped(line)), broken)
        exec(line, plain)
        assert broken["y"] == plain["y"]

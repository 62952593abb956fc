"""Defects found by writing kernels, each with the smallest program that shows it."""

from sympy import Integer, Max

from codegen.expr import _MAX_STEPS, Facts, FloorDiv, sym


def test_a_proof_that_does_not_exist_is_given_up_soon():
    # The mask of a sliding window: once some minutes of search.
    m, n, i, j, r, c, w = map(sym, ("M", "N", "i", "j", "_r", "_c", "window"))
    start = FloorDiv(Max(0, m - n + 64 * i - w + 1), 64)
    ranges = {
        m: (Integer(0), None),
        n: (Integer(0), None),
        w: (Integer(1), None),
        i: (Integer(0), FloorDiv(n + 63, 64) - 1),
        j: (start, FloorDiv(m + 63, 64) - 1),
        r: (Integer(0), Integer(63)),
        c: (Integer(0), Integer(63)),
    }
    facts = Facts(ranges)
    assert not facts.nonnegative(-m + n + c - r - 64 * i + 64 * j + w - 1)
    assert facts._steps <= _MAX_STEPS

"""Index expressions: text means what the expression means, and nothing false is ever proved."""

import itertools

import pytest
import sympy
from hypothesis import given, settings
from hypothesis import strategies as st

from codegen.expr import FloorDiv, FloorMod, Max, Min, cdiv, parse, sym, text
from codegen.facts import Facts

N, M, K, i, j = map(sym, ("N", "M", "K", "i", "j"))
ZERO = sympy.Integer(0)


def expressions(symbols):
    leaf = st.sampled_from(symbols) | st.integers(-70, 70).map(sympy.Integer)

    def grow(inner):
        pair = st.tuples(inner, inner)
        positive = st.sampled_from([1, 2, 3, 16, 64]).map(sympy.Integer)
        return st.one_of(
            pair.map(lambda p: p[0] + p[1]),
            pair.map(lambda p: p[0] - p[1]),
            st.tuples(inner, st.integers(-3, 64)).map(lambda p: p[0] * p[1]),
            st.tuples(inner, positive).map(lambda p: FloorDiv(*p)),
            st.tuples(inner, positive).map(lambda p: FloorMod(*p)),
            pair.map(lambda p: Min(*p)),
            pair.map(lambda p: Max(*p)),
        )

    return st.recursive(leaf, grow, max_leaves=6)


def value(e, point):
    return int(sympy.sympify(e).subs(point))


@given(expressions([N, M]), st.integers(-40, 90), st.integers(0, 200))
@settings(max_examples=150, deadline=None, database=None, derandomize=True)
def test_text_is_python_for_the_expression(e, n, m):
    want = value(e, {N: n, M: m})
    scope = {"N": n, "M": m}
    assert eval(text(e), scope) == want
    assert eval(text(e, nonnegative=lambda _: False), scope) == want
    assert value(parse(text(e)), {N: n, M: m}) == want


class Truncating(int):
    """An integer whose // and % truncate towards zero, as Triton's do."""

    def __floordiv__(self, other):
        return Truncating(abs(int(self)) // int(other) * (1 if self >= 0 else -1))

    def __mod__(self, other):
        return Truncating(int(self) - int(self // other) * int(other))

    def __add__(self, other):
        return Truncating(int(self) + int(other))

    __radd__ = __add__

    def __sub__(self, other):
        return Truncating(int(self) - int(other))

    def __rsub__(self, other):
        return Truncating(int(other) - int(self))

    def __mul__(self, other):
        return Truncating(int(self) * int(other))

    __rmul__ = __mul__

    def __neg__(self):
        return Truncating(-int(self))


@given(expressions([N, M]), st.integers(-40, 90), st.integers(0, 200))
@settings(max_examples=100, deadline=None, database=None, derandomize=True)
def test_text_is_right_where_division_truncates(e, n, m):
    want = value(e, {N: n, M: m})
    got = eval(text(e, nonnegative=lambda _: False), {"N": Truncating(n), "M": Truncating(m)})
    assert int(got) == want


@given(expressions([N, M, i, j]), st.sampled_from([16, 48, 64]))
@settings(max_examples=150, deadline=None, database=None, derandomize=True)
def test_what_is_proved_is_true(e, side):
    """Brute force over all points of a small box that the facts allow."""
    facts = Facts({N: (ZERO, None), M: (ZERO, None), i: (ZERO, cdiv(N, side) - 1),
                   j: (ZERO, Min(FloorDiv(M, side), i + 1) - 1)})  # fmt: skip
    if not facts.nonnegative(e):
        return
    for n, m in itertools.product((0, 1, side - 1, side, side + 1, 3 * side + 5), repeat=2):
        for a in range(-(-n // side)):
            for b in range(min(m // side, a + 1)):
                assert value(e, {N: n, M: m, i: a, j: b}) >= 0, (n, m, a, b)


def grid_facts():
    facts = Facts({s: (ZERO, None) for s in (N, M)})
    return facts.extended({i: (ZERO, cdiv(N, 64) - 1), j: (ZERO, FloorDiv(M, 64) - 1)})


@pytest.mark.parametrize(
    ("expr", "proved"),
    [
        (M - 64 * j - 64, True),  # a whole tile
        (N - 64 * i - 64, False),  # the last one may be ragged
        (N - 64 * i - 1, True),  # but has one element
        (64 * i, True),
        (FloorDiv(N + 63, 64) - FloorDiv(N, 64), True),
        (FloorDiv(N, 64) - FloorDiv(N + 63, 64), False),
    ],
)
def test_proofs_that_kernels_need(expr, proved):
    assert grid_facts().nonnegative(expr) is proved


def test_grouped_heads_stay_in_bounds():
    heads, groups, per, h = map(sym, ("H", "G", "per", "h"))
    one = sympy.Integer(1)
    facts = Facts({groups: (one, None), per: (ZERO, None), h: (ZERO, heads - 1)},
                  {heads: groups * per})  # fmt: skip
    assert facts.nonnegative(groups - 1 - FloorDiv(h, FloorDiv(heads, groups)))
    assert not facts.nonnegative(groups - 2 - FloorDiv(h, FloorDiv(heads, groups)))


def test_an_answer_holds_for_its_facts_only():
    facts = Facts({N: (sympy.Integer(1), None)})
    assert facts.nonnegative(N - 1)
    assert not Facts({N: (ZERO, None)}).nonnegative(N - 1)
    facts.ranges[N] = (ZERO, None)
    assert not facts.nonnegative(N - 1)
    facts.equal[N] = sym("half") * 2 + 1
    facts.ranges[sym("half")] = (ZERO, None)
    assert facts.nonnegative(N - 1)


def test_parse_refuses():
    for wrong in ("N +", "f(N)", "N.x", "1.5", "'a'", "[1]"):
        with pytest.raises(ValueError, match="not an integer expression"):
            parse(wrong)

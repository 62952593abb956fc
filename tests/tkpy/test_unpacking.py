"""Taking tuples apart in kernels, with a star and without."""

import pytest
import torch

import tkpy as tk


@tk.function
def three(x):
    return x, x + 1.0, x + 2.0


@tk.kernel
def starred(x: tk.Global["N"], y: tk.Out["3 N"]):
    i = tk.grid(tk.cdiv("N", 16))
    first, *rest = three(tk.load(x, i, 16))
    *_, last = (first, *rest)
    (middle,) = rest[:1]
    empty = [*[], *()]
    for k, t in enumerate([*rest[:0], first, middle, last, *empty]):
        tk.store(y, t, (tk.at(k), i))


def test_a_star_takes_what_is_left():
    x = torch.randn(40)
    assert torch.equal(starred(x), torch.stack([x, x + 1, x + 2]))


@tk.kernel
def too_few(x: tk.Global["N"], y: tk.Out["N"]):
    a, _b, _c, _d, *_e = three(tk.load(x, 0, 16))
    tk.store(y, a, 0)


@tk.kernel
def one_value(x: tk.Global["N"], y: tk.Out["N"]):
    (i,) = tk.grid(tk.cdiv("N", 16))
    tk.store(y, tk.load(x, i, 16), i)


@tk.kernel
def star_of_one(x: tk.Global["N"], y: tk.Out["N"]):
    t = tk.maximum(*tk.load(x, 0, 16))
    tk.store(y, t, 0)


@pytest.mark.parametrize(
    "kernel, line, says",
    [
        (too_few, 32, "5 names for 3 values"),
        (one_value, 38, "is one value, and is taken apart into 1\n.*\n.*\n  fix: i = ..."),
        (star_of_one, 44, "is one value, which \\* does not take apart"),
    ],
)
def test_what_does_not_fit_is_refused(kernel, line, says):
    with pytest.raises(tk.CompileError, match=rf"test_unpacking.py:{line}: .*{says}"):
        kernel(torch.randn(16))


@tk.kernel
def listed(x: tk.Global["N"], y: tk.Out["3 N"], *, most: int = 2):
    i = tk.grid(tk.cdiv("N", 16))
    t = tk.load(x, i, 16)
    shifted = [t + k * j for k in range(3) if k <= most for j in (1.0,)]
    for k, t in enumerate(shifted):
        tk.store(y, t, (tk.at(k), i))
    if most < 2:
        tk.store(y, tk.zeros(16), (tk.at(2), i))


def test_a_list_is_unrolled_in_a_scope_of_its_own():
    x = torch.randn(40)
    want = torch.stack([x, x + 1, x + 2])
    assert torch.equal(listed(x), want)
    assert torch.equal(listed(x, most=1), torch.cat([want[:2], torch.zeros(1, 40)]))


@tk.kernel
def tiles_in_a_list(x: tk.Global["N"], y: tk.Out["N"]):
    i = tk.grid(tk.cdiv("N", 16))
    tiles = [tk.load(x, k, 16) for k in tk.range(tk.cdiv("N", 16))]
    tk.store(y, tiles[0], i)


@tk.kernel
def unknown_condition(x: tk.Global["N"], y: tk.Out["N"]):
    i = tk.grid(tk.cdiv("N", 16))
    tiles = [tk.load(x, i, 16) for k in (1, 2) if i > k]
    tk.store(y, tiles[0], i)


@pytest.mark.parametrize(
    "kernel, says",
    [
        (tiles_in_a_list, "a comprehension is unrolled, over at most 256 constants, not over"),
        (unknown_condition, "what a comprehension leaves out is decided at compile time"),
    ],
)
def test_a_list_of_what_only_the_run_knows_is_refused(kernel, says):
    with pytest.raises(tk.CompileError, match=says):
        kernel(torch.randn(40))


@tk.lcsf(stages=2)
def several(x: tk.Global["N D"], y: tk.Out["N D"], z: tk.Out["N D"]):
    def load(k):
        return [tk.load(x, (k, tk.at(c)), (16, 16)) for c in range(0, tk.static("D"), 16)]

    def compute(k, first, *others):
        return first + 1.0, *[t * 2.0 for t in others]

    def store(k, *tiles):
        for c, t in enumerate(tiles):
            tk.store(y, t, (k, c))
            tk.store(z, -t, (k, c))

    tk.tasks(1)
    tk.run(tk.cdiv("N", 16), None, load, compute, store)


def test_hooks_take_what_is_left_behind_a_star():
    x = torch.randn(40, 48)
    want = torch.cat([x[:, :16] + 1, x[:, 16:] * 2], 1)
    y, z = several(x)
    assert torch.equal(y, want)
    assert torch.equal(z, -want)


@tk.lcsf
def too_many(x: tk.Global["N"], y: tk.Out["N"]):
    def load(k):
        return tk.load(x, k, 16)

    def compute(k, first, second, *others):
        return first

    def store(k, t):
        tk.store(y, t, k)

    tk.tasks(1)
    tk.run(tk.cdiv("N", 16), None, load, compute, store)


def test_a_star_does_not_stand_for_what_is_missing():
    with pytest.raises(tk.CompileError, match=r"compute takes 3 values \(k, first, second, \*oth"):
        too_many(torch.randn(16))

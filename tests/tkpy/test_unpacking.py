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

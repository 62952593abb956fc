"""Two dimensions that need not agree: refused where a shorter one would go unnoticed."""

import pytest
import torch

import tkpy as tk


def scale_rows(x: tk.Global["N D"], w: tk.Global["M"], o: tk.Out["N D"], *, rows: int = 32):
    i = tk.grid(tk.cdiv("N", rows))
    xt = tk.load(x, (i, 0), shape=(rows, "D"))
    wt = tk.load(w, (i,), shape=(rows,))
    tk.store(o, tk.mul_row(xt, wt), (i, 0))


X = torch.randn(40, 16)


def test_a_vector_that_may_be_shorter_than_the_tile():
    with pytest.raises(tk.CompileError) as e:
        tk.kernel(scale_rows)(X, torch.ones(20))
    said = str(e.value)
    assert "places of o may be left unwritten: it has N along axis 0" in said
    assert "lives in M only, as wt does" in said and "test_lengths.py" in said
    assert 'where=["M >= N"]' in said and "until=" in said
    with pytest.raises(tk.CompileError):  # whatever the sizes are this time
        tk.kernel(scale_rows)(X, torch.ones(40))


def test_what_the_author_states_is_checked_by_every_call():
    f = tk.kernel(scale_rows, where=["M >= N"])
    w = torch.randn(90)
    assert torch.equal(f(X, w), X * w[:40, None])
    with pytest.raises(tk.CallError, match=r"M >= N"):
        f(X, torch.ones(39))


def test_tiles_and_columns():
    @tk.kernel
    def f(x: tk.Global["N D"], y: tk.Global["N E"], o: tk.Out["N D"], *, cols: int = 32):
        i, j = tk.grid(tk.cdiv("N", 16), tk.cdiv("D", cols))
        a, b = tk.load(x, (i, j), shape=(16, cols)), tk.load(y, (i, j), shape=(16, cols))
        tk.store(o, tk.exp(a) + b, (i, j))

    with pytest.raises(tk.CompileError, match=r"has D along axis 1.*lives in E only, as b does"):
        f(X, torch.randn(40, 12))


def test_sides_that_are_dimensions():
    @tk.kernel
    def f(x: tk.Global["N D"], y: tk.Global["N E"], o: tk.Out["N D"]):
        i = tk.grid(tk.cdiv("N", 16))
        a, b = tk.load(x, (i, 0), shape=(16, "D")), tk.load(y, (i, 0), shape=(16, "E"))
        tk.store(o, a + b, (i, 0))

    x = torch.randn(20, 40)
    assert torch.equal(f(x, x), x + x)
    with pytest.raises(tk.CompileError, match=r"has D = 40 along axis 1.*lives in 33 only"):
        f(x, torch.randn(20, 33))
    with pytest.raises(tk.CompileError):
        f(torch.randn(20, 33), x[:, :20])


def test_through_a_loop():
    @tk.kernel
    def f(x: tk.Global["N D"], w: tk.Global["M D"], o: tk.Out["N"], *, rows: int = 32):
        i = tk.grid(tk.cdiv("N", rows))
        total = tk.zeros(rows)
        for j in tk.range(tk.cdiv("D", 16)):
            a, b = tk.load(x, (i, j), shape=(rows, 16)), tk.load(w, (i, j), shape=(rows, 16))
            total = total + tk.row_sum(a * b)
        tk.store(o, total, (i,))

    with pytest.raises(tk.CompileError, match=r"lives in M only"):
        f(X, torch.ones(20, 16))


def test_products_of_different_lengths():
    def product(a: tk.Global["N K"], b: tk.Global["L M"], o: tk.Out["N M"]):
        i, j = tk.grid(tk.cdiv("N", 16), tk.cdiv("M", 16))
        acc = tk.zeros(16, 16)
        for k in tk.range(tk.cdiv("K", 16)):
            acc += tk.load(a, (i, k), shape=(16, 16)) @ tk.load(b, (k, j), shape=(16, 16))
        tk.store(o, acc, (i, j))

    a, b = torch.randn(20, 40), torch.randn(24, 20)
    with pytest.raises(tk.CompileError, match=r"inner lengths .* need not agree: K and L"):
        tk.kernel(product)(a, b)
    cut = tk.kernel(product, where=["L <= K"])(a, b)  # said on purpose: the rest is zero
    assert torch.allclose(cut, a[:, :24] @ b, atol=1e-5)

    @tk.kernel
    def whole(a: tk.Global["N K"], b: tk.Global["L M"], o: tk.Out["N M"]):
        i, j = tk.grid(tk.cdiv("N", 16), tk.cdiv("M", 16))
        left, right = tk.load(a, (i, 0), shape=(16, "K")), tk.load(b, (0, j), shape=("L", 16))
        tk.store(o, left @ right, (i, j))

    with pytest.raises(tk.CompileError, match=r"need not agree: 40 and 33"):
        whole(a, torch.randn(33, 20))


def test_a_part_of_an_output_is_no_mistake():
    @tk.kernel
    def joined(x: tk.Global["N D"], y: tk.Global["M D"], o: tk.Out["N+M D"], *, rows: int = 32):
        i = tk.grid(tk.cdiv("N + M", rows))
        if i < tk.cdiv("N", rows):
            a = tk.load(x, (i, 0), shape=(rows, "D"))
            tk.store(o, a + tk.zeros(rows, "D"), (i, 0))
        if i < tk.cdiv("M", rows):
            tk.store(o, tk.load(y, (i, 0), shape=(rows, "D")), (tk.at(tk.dim("N") + i * rows), 0))

    y = torch.randn(70, 16)
    assert torch.equal(joined(X, y), torch.cat([X, y]))


def test_neighbours_are_no_mistake():
    @tk.kernel
    def steps(x: tk.Global["N+1"], o: tk.Out["N"], *, rows: int = 32):
        i = tk.grid(tk.cdiv("N", rows))
        here, there = [tk.load(x, (tk.at(i * rows + n),), shape=(rows,)) for n in (0, 1)]
        tk.store(o, there - here, (i,))

    x = torch.randn(50)
    assert torch.equal(steps(x), x.diff())


def test_a_precondition_alone_and_decorators_called_at_once():
    assert tk.kernel(scale_rows, where="M >= N").where == ("M >= N",)
    assert tk.kernel(where=["M >= N"])(scale_rows).where == ("M >= N",)

"""Defects found by reading the compiler against small kernels, each with the program that shows it."""

import sys
import textwrap
import types
from dataclasses import replace

import pytest
import torch

import tkpy as tk
from tkpy.ahead import Setting, compile_lowered, key_of
from tkpy.errors import TkError


@tk.kernel
def renamed(x: tk.Global["M"], y: tk.Global["M"], o: tk.Out["M"]):
    i = tk.grid(tk.cdiv("M", 16))
    a = tk.load(x, (i,), shape=16)
    kept = (a + 1, 3)
    a = tk.load(y, (i,), shape=16)
    tk.store(o, kept[0] * a, (i,))


def test_a_value_held_in_a_tuple_outlives_the_name_it_was_made_of():
    x, y = torch.randn(20), torch.randn(20)
    torch.testing.assert_close(renamed(x, y), (x + 1) * y)


@tk.kernel
def two_gathers(
    x: tk.Global["M N"], a: tk.Global["K", tk.i32], b: tk.Global["K", tk.i32], o: tk.Out["K N"]
):
    i = tk.grid(tk.cdiv("K", 16))
    idx = tk.load(a, (i,), shape=16)
    first = tk.gather_rows(x, idx, (None, 0), "N")
    idx = tk.load(b, (i,), shape=16)
    tk.store(o, first + tk.gather_rows(x, idx, (None, 0), "N"), (i, 0))


def test_the_mask_of_one_index_is_not_that_of_the_next():
    x = torch.randn(10, 20)
    a, b = torch.tensor([0, -1, 3, 50, 2]).int(), torch.tensor([1, 2, -5, 4, 99]).int()

    def rows(index):
        inside = (index >= 0) & (index < 10)
        return torch.where(inside[:, None], x[index.clamp(0, 9).long()], 0)

    assert torch.equal(two_gathers(x, a, b), rows(a) + rows(b))


@tk.function
def added_and_doubled(c, p):
    return c + p, p * 2


@tk.kernel
def product_twice(x: tk.Global["M N"], y: tk.Global["N K"], o: tk.Out["M K"]):
    i = tk.grid(tk.cdiv("M", 16))
    a, b = tk.load(x, (i, 0), shape=(16, "N")), tk.load(y, (0, 0), shape=("N", "K"))
    u, v = added_and_doubled(tk.zeros(16, "K"), a @ b)
    tk.store(o, u + v, (i, 0))


def test_a_product_that_is_accumulated_may_be_used_again():
    x, y = torch.randn(20, 16), torch.randn(16, 16)
    torch.testing.assert_close(product_twice(x, y), 3 * (x @ y))


def extremes(dtype):
    @tk.kernel
    def of_rows(x: tk.Global["M N", dtype], low: tk.Out["M", dtype], high: tk.Out["M", dtype]):
        i = tk.grid(tk.cdiv("M", 16))
        a = tk.load(x, (i, 0), shape=(16, "N"))
        tk.store(low, tk.row_min(a), (i,))
        tk.store(high, tk.row_max(a), (i,))

    return of_rows


@pytest.mark.parametrize(
    ("dtype", "low", "high"),
    [("uint8", 200, 255), ("int8", -128, -100), ("int64", -(2**62), -(2**61)),
     ("int64", 2**62, 2**62 + 9)],
)  # fmt: skip
def test_dead_integers_are_no_extremes(dtype, low, high):
    ours = {"uint8": tk.u8, "int8": tk.i8, "int64": tk.i64}[dtype]
    x = torch.randint(low, high, (5, 7), dtype=getattr(torch, dtype))
    least, most = extremes(ours)(x)
    assert torch.equal(least, x.min(1).values)
    assert torch.equal(most, x.max(1).values)


@tk.function
def plus(row, col, value):
    return value + 1


@tk.kernel
def applied(x: tk.Global["M N"], o: tk.Out["M N"]):
    i = tk.grid(tk.cdiv("M", 16))
    a = tk.load(x, (i, 0), shape=(16, "N"))
    for k in range(3):
        a = tk.apply(a, lambda r, c, v, k=k: v + k)
    tk.store(o, tk.apply(a, plus), (i, 0))


def test_lambdas_with_defaults_and_inlined_functions_are_applied():
    x = torch.randn(5, 7)
    torch.testing.assert_close(applied(x), x + 4)


@tk.kernel
def numbers(x: tk.Global["M"], o: tk.Out["M"], q: tk.Out["4"]):
    i = tk.grid(1)
    a = tk.load(x, (0,), shape=16) * tk.cast(0.1, x.dtype)
    tk.store(o, a + tk.full(16, i, dtype=x.dtype), (0,))
    tk.store(q, 2.5, (0,))
    tk.store(q, tk.cast(0.1, tk.bf16), (1,))
    tk.store(q, i, (2,))
    tk.store(q, i + 1, (3,))


def test_numbers_are_converted_stored_and_spread():
    for dtype in (torch.float32, torch.bfloat16):
        x = torch.randn(5).to(dtype)
        o, q = numbers(x)
        assert torch.equal(o, x * torch.tensor(0.1, dtype=dtype))
        assert q.tolist() == [2.5, torch.tensor(0.1).bfloat16().item(), 0, 1]


@tk.kernel
def conditions(x: tk.Global["M"], o: tk.Out["M"]):
    i = tk.grid(tk.cdiv("M", 16))
    a = tk.load(x, (i,), shape=16)
    if (i > 0) == (i < 2):
        a = a + 1
    if i > 1.5:
        a = a + 10
    tk.store(o, a, (i,))


def test_conditions_compare_by_what_they_say():
    program = torch.arange(50) // 16
    assert torch.equal(conditions(torch.zeros(50)), (program == 1) + 10.0 * (program > 1.5))


@tk.kernel
def half_of(x: tk.Global["P Q"], o: tk.Out["P Q"]):
    _r, _c = tk.grid(tk.cdiv("P", 16), tk.cdiv("Q", 16))
    stride_x_p = tk.load(x, (_r, _c), shape=(16, 16))
    tk.store(o, tk.tril(stride_x_p, 0, _r * 16, _c * 16), (_r, _c))


def test_the_author_may_call_things_what_the_compiler_calls_its_own():
    x = torch.randn(20, 33)
    assert torch.equal(half_of(x), x.tril())


@pytest.mark.parametrize("name", ["grid", "tl", "min", "x_ptr", "stride_x_m", "product", "M"])
def test_parameters_may_not(name):
    annotations = {"x": tk.Global["M N"], name: tk.f32, "o": tk.Out["M N"]}
    scope: dict = {}
    exec(f"def k(x, {name}, o): pass", scope)
    scope["k"].__annotations__ = annotations
    with pytest.raises(TkError, match=f"{name}.*\n.*fix: "):
        tk.kernel(scope["k"])


@pytest.mark.parametrize(("dtype", "value"), [(tk.u8, 200), (tk.bf16, 0.1), (tk.i64, 2**40)])
def test_scalars_hold_what_their_type_holds(dtype, value):
    @tk.kernel
    def scaled(x: tk.Global["M"], s: dtype, o: tk.Out["M"]):
        i = tk.grid(tk.cdiv("M", 16))
        tk.store(o, tk.load(x, (i,), shape=16) * s, (i,))

    exact = torch.tensor(value).bfloat16().item() if dtype == tk.bf16 else value
    assert scaled(torch.ones(1), value).item() == exact


@tk.kernel
def by_size(x: tk.Global["D N"], o: tk.Out["D N"]):
    i = tk.grid(tk.cdiv("D", 16))
    if tk.static("D") > 32:
        tk.store(o, tk.load(x, (i, 0), shape=(16, "N")), (i, 0))
    else:
        for j in tk.range(tk.cdiv("N", 16)):
            tk.store(o, tk.load(x, (i, j), shape=(16, 16)), (i, j))


def test_other_sizes_may_need_other_static_dimensions():
    for d in (16, 40, 20):
        x = torch.randn(d, 30)
        assert torch.equal(by_size(x), x)


@tk.function
def norm(x):
    return x * 2


inner = norm


@tk.function
def norm(x):
    return inner(x) + 1


@tk.kernel
def normed(x: tk.Global["M"], o: tk.Out["M"]):
    i = tk.grid(tk.cdiv("M", 16))
    tk.store(o, norm(tk.load(x, (i,), shape=16)), (i,))


def test_a_function_may_call_another_of_its_name():
    x = torch.randn(20)
    torch.testing.assert_close(normed(x), x * 2 + 1)


KERNEL = """\
import tkpy as tk

@tk.kernel
def k(x: tk.Global["M N"], o: tk.Out["M N"]):
    i = tk.grid(tk.cdiv("M", 16))
    a = tk.load(x, (i, 0), shape=(16, 16))
    {}
    tk.store(o, a, (i, 0))
"""


@pytest.mark.parametrize(
    "line",
    [
        "a = a + len(5)", "a = a + int('q')", "a = a + abs()", "n = -None", "n = 3 in 5",
        "p, q = zip((1, 2), (3,))", "a = tk.apply(a, lambda r, c: r)", "a = tk.transpose(3)",
        "a = tk.load(x, (i, 0), shape=16, axis='a')", "a = tk.row_outer(3, a)", "a = a @ 3",
        "a = tk.cast(a, 'f32')", "a = tk.cast(a, float)", "a = tk.zeros(16, 16, dtype=float)",
        "a = tk.full((16, 16), 'x')", "a = tk.full((16, 16), None)", "a = a.to('x')",
        "a = tk.fill_dead(a, None)", "a = tk.fill_dead(a, i)", "a = tk.causal(a, fill='x')",
        "i = tk.cdiv('M', 0)", "a = tk.mma_AB(a, a, 3)", "a = tk.concat(a, a, axis=5)",
        "a = tk.load(x, (i, 0), (16, 16), dtype='f')", "a = a * 10**400",
        "a = tk.cast(a, tk.i32); a = tk.causal(a)", "a = tk.cast(a, tk.i32) + tk.neg_infty(16)",
        "a = tk.cast(a, tk.i32) + tk.full((16, 16), 0.5, dtype=tk.i32)",
        "n = []; n.append(1)", "n = tk.neg_infty(16, dtype=tk.i32)", "if i > (i > 2): a = a + 1",
        "for j in tk.range(3): a = a + 1\n    a = a + j",
    ],
)  # fmt: skip
def test_what_python_refuses_at_compile_time_is_said_with_its_line(tmp_path, line):
    path = tmp_path / "k.py"
    path.write_text(textwrap.dedent(KERNEL).format(line))
    scope: dict = {}
    exec(compile(path.read_text(), str(path), "exec"), scope)
    with pytest.raises(tk.CompileError) as e:
        scope["k"](torch.randn(20, 16))
    assert str(e.value).startswith(f"{path}:{8 if 'for' in line else 7}: ")


# -- what only a compiler for GPUs is strict about: one type a variable -----------------------------


def compiles(kernel, dtype="f32", wide=False):
    key = replace(key_of(kernel, Setting(dtype)), wide=wide)
    compile_lowered(kernel, kernel.lower(key), "sm_80")


@tk.kernel
def long_sum(t: tk.Global["N", tk.i64], x: tk.Global["M"], o: tk.Out["M", tk.i64]):
    i = tk.grid("M")
    n = 0
    for j in tk.range("N"):
        n = n + tk.load(t, (j,))
    if n > 7:
        n = i
    tk.store(o, n, (i,))


@tk.kernel
def small_integers(x: tk.Global["M N", tk.i8], o: tk.Out["M N", tk.i8], n: tk.i32):
    i = tk.grid(tk.cdiv("M", 16))
    total, acc = tk.zeros(16, dtype=tk.i8), tk.zeros(16, 16, dtype=tk.i8)
    for j in tk.range(tk.cdiv("N", 16)):
        a = tk.fill_dead(tk.load(x, (i, j), shape=(16, 16)), 0)
        total = tk.row_max(a, total + tk.row_sum(a))
        acc = acc + a * n + tk.where(a > 0, a, n) + tk.cumsum(a, axis=1)
    tk.store(o, acc + total, (i, 0))


@tk.kernel
def picked(x: tk.Global["M N"], o: tk.Out["M M"], s: tk.f32):
    i = tk.grid(tk.cdiv("M", 16))
    a = tk.load(x, (i, 0), shape=(16, 16))
    tk.store(o, tk.mm_ABt(a, tk.where(a > 0, a, s)), (i, i))


def test_run_time_integers_and_scalars_keep_their_type():
    assert long_sum(torch.tensor([2**33, 5]), torch.zeros(1)).tolist() == [0]
    for wide in (False, True):
        compiles(long_sum, wide=wide)
        compiles(small_integers, wide=wide)
    compiles(picked, "bf16")


@tk.kernel
def extreme_at(x: tk.Global["M N"], o: tk.Out["M", tk.i32]):
    i = tk.grid(tk.cdiv("M", 16))
    tk.store(o, tk.row_argmax(tk.load(x, (i, 0), shape=(16, "N"))), (i,))


def test_the_position_of_an_extreme_is_that_of_a_live_element():
    inf, nan = float("inf"), float("nan")
    x = torch.tensor([[-inf] * 5, [1, 2, 2, 1, 2], [nan] * 5, [-inf, nan, 3, 3, nan]])
    assert extreme_at(x).tolist() == x.argmax(1).tolist()


@tk.kernel
def columns(x: tk.Global["M N"], o: tk.Out["N", tk.f32]):
    i = tk.grid(tk.cdiv("M", 16))
    tk.store_add(o, tk.col_sum(tk.load(x, (i, 0), shape=(16, "N"))), (0,))


@tk.kernel
def moved(x: tk.InOut["M"], y: tk.Global["M"], o: tk.Out["M"]):
    i = tk.grid(1)
    tk.store(x, tk.load(y, (i,), shape=16) + 1, (i,))
    tk.store(o, tk.load(y, (i,), shape=16), (i,))


def test_outputs_start_afresh_and_share_no_memory():
    x = torch.randn(40, 5)
    o = torch.full((5,), 7.0)
    columns(x, o=o)
    torch.testing.assert_close(o, x.sum(0))
    with pytest.raises(tk.CallError, match="x shares memory with y"):
        moved(x[0], x[0])
    with pytest.raises(tk.CallError, match="share memory with each other"):
        moved(torch.zeros(1).expand(5), x[0])


def test_the_cache_sees_attributes_of_modules_and_what_helpers_close_over(tmp_path, monkeypatch):
    monkeypatch.setenv("TKPY_CACHE_DIR", str(tmp_path / "cache"))
    source = textwrap.dedent("""\
        import tkpy as tk
        import review_config as cfg

        def times(n):
            @tk.function
            def helper(x):
                return x * n
            return helper

        scaled = times(cfg.OTHER)

        @tk.kernel
        def k(x: tk.Global["M"], o: tk.Out["M"]):
            i = tk.grid(tk.cdiv("M", 16))
            tk.store(o, scaled(tk.load(x, (i,), shape=16)) + cfg.SHIFT, (i,))
        """)
    path = tmp_path / "k.py"
    path.write_text(source)
    config = types.ModuleType("review_config")
    monkeypatch.setitem(sys.modules, "review_config", config)
    for config.OTHER, config.SHIFT in ((2, 0), (3, 0), (3, 1)):
        scope: dict = {}
        exec(compile(source, str(path), "exec"), scope)
        assert scope["k"](torch.ones(1)).item() == config.OTHER + config.SHIFT
    exec(compile(source, str(path), "exec"), scope)
    assert scope["k"](torch.ones(1)).item() == 4
    assert scope["k"]._store.compiled == 0


@tk.kernel(where=["0 <= t"])
def part_of(x: tk.Global["N"], t: tk.Global["1", tk.i32], o: tk.Out["K"]):
    i = tk.grid(1)
    a = tk.fill_dead(tk.load(x, (0,), shape=48), 5)
    part = tk.subtile(a, 16, tk.at(tk.load(t, (i,))))
    tk.store(o, tk.fill_dead(part, 7), (0,))


def test_a_subtile_is_dead_beyond_its_tile():
    x = torch.randn(48)
    for start in (0, 5, 32, 40, 60):
        o = torch.empty(16)
        part_of(x, torch.tensor([start]).int(), o=o)
        live = x[start : start + 16]
        assert torch.equal(o, torch.cat([live, torch.full((16 - len(live),), 7.0)]))

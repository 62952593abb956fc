"""A call like an earlier one takes a short way, on which no check is lost."""

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tkpy as tk
from tkpy import replay


@pytest.fixture(autouse=True)
def _native(monkeypatch):
    monkeypatch.setenv("TKPY_EXECUTOR", "native")


def _make(where=()):
    @tk.kernel(where=where)
    def scaled(
        x: tk.Global["N D"],
        y: tk.Out["N D"],
        factor: tk.f32 = 2.0,
        bias: tk.Global["D"] | None = None,
        sums: tk.Out["N", tk.f32] | None = None,
        shift: tk.i32 = 0,
        *,
        rows: int = 16,
        power: float = 1.0,
    ):
        i = tk.grid(tk.cdiv("N", rows))
        t = tk.load(x, (i, 0), shape=(rows, "D"), dtype=tk.f32) * factor
        t = (t + tk.cast(shift, tk.f32)) * power
        if bias is not None:
            t = t + tk.load(bias, 0, shape="D", dtype=tk.f32)
        tk.store(y, t, (i, 0))
        if sums is not None:
            tk.store(sums, tk.row_sum(t), i)

    return scaled


@pytest.fixture
def scaled():
    return _make()


class Full:
    """Counts the calls of a kernel that are bound in full."""

    def __init__(self, kernel, monkeypatch):
        self.count = 0
        bind = kernel.binder.bind

        def counted(*arguments):
            self.count += 1
            return bind(*arguments)

        monkeypatch.setattr(kernel.binder, "bind", counted)


def test_the_second_call_is_short_and_right(scaled, monkeypatch):
    full = Full(scaled, monkeypatch)
    for factor in (2.0, 3.0, 4):
        x = torch.randn(20, 16)
        assert torch.equal(scaled(x, factor), x * factor)
    assert full.count == 1
    calls = []
    x = torch.randn(20, 16)
    sys.setprofile(lambda frame, event, _: event == "call" and calls.append(frame.f_code))
    scaled(x, 2.0)
    sys.setprofile(None)
    assert not any("sympy" in c.co_filename for c in calls)
    assert len(calls) <= 60, [c.co_name for c in calls]


def test_what_decides_the_code_makes_a_call_of_another_kind(scaled, monkeypatch):
    full = Full(scaled, monkeypatch)
    x, b = torch.randn(20, 16), torch.randn(16)
    want = x * 2
    variations = [
        ((x,), {}, want),
        ((x[:7],), {}, want[:7]),
        ((torch.randn(16, 20).T.copy_(x),), {}, want),
        ((x.bfloat16(),), {}, (x.bfloat16() * 2)),
        ((x,), {"rows": 32}, want),
        ((x,), {"power": 3.0}, want * 3),
        ((x,), {"power": 0.0}, want * 0.0),
        ((x,), {"power": -0.0}, want * -0.0),
        ((x,), {"bias": b}, want + b),
        ((x,), {"bias": None}, want),
        ((x,), {"sums": True}, want),
        ((x,), {"sums": False}, want),
        ((x,), {"y": torch.empty(20, 16)}, want),
        ((x,), {"shift": 1}, want + 1),
        ((x,), {"shift": 2**20}, want + 2**20),
        ((x, 2.0), {}, want),
    ]
    for again in (1, 2):
        for k, (args, kwargs, right) in enumerate(variations):
            out = scaled(*args, **kwargs)
            out, *sums = out if isinstance(out, tuple) else (out,)
            assert torch.allclose(out, right, rtol=1e-6), (again, k)
            if sums:
                assert torch.allclose(sums[0], out.sum(1), rtol=1e-5, atol=1e-5)
        assert full.count == len(variations)


def test_an_output_that_is_given_is_returned_and_kept_apart(scaled):
    x = torch.randn(20, 16)
    for _ in range(3):
        y = torch.full((20, 16), torch.nan)
        assert scaled(x, y=y) is y and torch.equal(y, x * 2)
    for _ in range(2):
        with pytest.raises(tk.CallError, match="shares memory with x"):
            scaled(x, y=x)
        with pytest.raises(tk.CallError, match="share memory with each other"):
            scaled(x, y=torch.empty(16).expand(20, 16))
    both = torch.randn(40, 16)
    assert torch.equal(scaled(both[:20], y=both[20:]), both[:20] * 2)


def test_data_and_scalars_are_checked_every_time():
    @tk.kernel(where=("0 <= label < V", "0 < step", "V % 2 == 0"))
    def pick(
        label: tk.Global["N", tk.i64], w: tk.Global["V"], y: tk.Out["N", tk.f32], step: tk.i32
    ):
        i = tk.grid(tk.cdiv("N", 16))
        at = tk.load(label, i, shape=16)
        tk.store(y, tk.cast(at, tk.f32) * tk.cast(step, tk.f32), i)

    w = torch.randn(8)
    good = torch.tensor([0, 7, 3])
    for _ in range(2):
        assert torch.equal(pick(good, w, 2), good * 2.0)
        with pytest.raises(tk.CallError, match="0 <= label < V"):
            pick(torch.tensor([0, 8, 3]), w, 2)
        with pytest.raises(tk.CallError, match="0 < step"):
            pick(good, w, 0)
        with pytest.raises(tk.CallError, match="V % 2"):
            pick(good, torch.randn(9), 2)
        with pytest.raises(tk.CallError, match="does not fit"):
            pick(good, w, 2**31)
        with pytest.raises(tk.CallError, match="must be a number"):
            pick(good, w, True)


def test_gradients_are_recorded_after_a_call_without_them(scaled):
    x = torch.randn(20, 16, requires_grad=True)
    with torch.no_grad():
        assert torch.equal(scaled(x), x * 2)
        assert torch.equal(scaled(x), x * 2)
    scaled(x).sum().backward()
    assert torch.equal(x.grad, torch.full_like(x, 2.0))
    assert torch.equal(scaled(torch.nn.Parameter(x, requires_grad=False)), x * 2)


def test_outputs_that_are_added_to_start_from_zero():
    @tk.kernel
    def total(x: tk.Global["N D"], y: tk.Out["D", tk.f32]):
        i = tk.grid(tk.cdiv("N", 16))
        tk.store_add(y, tk.col_sum(tk.load(x, (i, 0), shape=(16, "D"), dtype=tk.f32)), 0)

    x = torch.randn(40, 16)
    given_y = torch.full((16,), 9.0)
    for _ in range(3):
        assert torch.allclose(total(x), x.sum(0), rtol=1e-5, atol=1e-5)
        assert torch.allclose(total(x, y=given_y), x.sum(0), rtol=1e-5, atol=1e-5)


def test_a_wrong_executor_is_told_on_a_known_call(scaled, monkeypatch):
    x = torch.randn(20, 16)
    scaled(x)
    monkeypatch.setenv("TKPY_EXECUTOR", "steam")
    with pytest.raises(tk.TkError, match="steam"):
        scaled(x)
    monkeypatch.setenv("TKPY_EXECUTOR", "interpreter")
    assert torch.equal(scaled(x), x * 2)


def test_calls_of_no_kind_are_bound_in_full(scaled):
    x = torch.randn(20, 16)
    for _ in range(2):
        assert torch.equal(scaled(x, torch.tensor(3.0)), x * 3)
        for wrong in ({"nothing": 1}, {"rows": []}, {"rows": 1.5}, {"factor": "2"}):
            with pytest.raises(tk.CallError):
                scaled(x, **wrong)
        with pytest.raises(tk.CallError, match="positional"):
            scaled(x, 1.0, None, 0, 16)
        with pytest.raises(tk.CallError, match="missing"):
            scaled()
        with pytest.raises(tk.CallError, match="not a dense tensor"):
            scaled(x.to_sparse())


def test_shapes_without_end_are_forgotten(scaled, monkeypatch):
    monkeypatch.setattr(replay, "MOST", 3)
    for n in range(1, 9):
        x = torch.randn(n, 16)
        assert torch.equal(scaled(x), x * 2)
        assert len(scaled._replay.plans) <= 3


SHARED = _make()


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(
    n=st.sampled_from([1, 16, 17]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    wide=st.booleans(),
    bias=st.booleans(),
    factor=st.sampled_from([1.0, 2, -0.5]),
    sums=st.sampled_from([None, True, False]),
)
def test_any_order_of_calls(n, dtype, wide, bias, factor, sums):
    x = torch.randn(n, 32 if wide else 16, dtype=torch.float32).to(dtype)
    x = x[:, ::2] if wide else x
    b = torch.randn(16).to(dtype) if bias else None
    out = SHARED(x, factor, b, sums=sums)
    y, *rest = out if sums else (out,)
    want = x.float() * factor + (0 if b is None else b.float())
    assert torch.equal(y, want.to(dtype))
    assert len(rest) == bool(sums)

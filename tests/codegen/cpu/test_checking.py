"""The checking mode: each fault seeded in a small kernel is found where it is, and only there."""

import inspect
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

import codegen.cpu
from codegen.cpu import environment, poison
from codegen.cpu.check import CheckError
from codegen.cpu.lower.guard import POISON


@pytest.fixture(autouse=True)
def checked(monkeypatch):
    monkeypatch.setenv("TKPY_CPU_CHECK", "1")
    poison.install()


def line(kernel, text: str) -> str:
    """``file:line`` of the line of a kernel that contains a text."""
    lines, start = inspect.getsourcelines(kernel.fn)
    (k,) = [k for k, s in enumerate(lines) if text in s]
    return f"{inspect.getsourcefile(kernel.fn)}:{start + k}:"


def faults(launch):
    with pytest.raises(CheckError) as error:
        launch()
    return error.value.faults


@triton.jit
def add(x, y, o, n, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    a = tl.load(x + i, mask=i < n)
    b = tl.load(y + i, mask=i < n)
    tl.store(o + i, a + b, mask=i < n)


def test_a_clean_kernel():
    for n in (1, 63, 64, 200):
        for dtype in (torch.float32, torch.bfloat16, torch.int8, torch.float64):
            x, y = torch.ones(n, dtype=dtype), torch.ones(n, dtype=dtype)
            o = torch.empty(n, dtype=dtype)
            add[(triton.cdiv(n, 64),)](x, y, o, n, 64)
            assert (o == 2).all()
            add[(triton.cdiv(n, 64),)](x, y, x, n, 64)  # in place


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int8, torch.int64])
def test_reading_past_the_end(dtype):
    x, y, o = (
        torch.ones(100, dtype=dtype),
        torch.ones(128, dtype=dtype),
        torch.zeros(128, dtype=dtype),
    )
    (fault,) = faults(lambda: add[(2,)](x, y, o, 128, 64))
    assert (fault.kind, fault.argument, fault.program) == ("bounds", "x", (1, 0, 0))
    assert fault.where.startswith(line(add, "tl.load(x")) and fault.op == "tt.load"
    assert fault.offset == 100 * x.element_size() and fault.count == 28
    assert fault.address == x.data_ptr() + fault.offset
    assert "past the end of its storage" in str(fault) and fault.kernel == "add"
    assert o[:100].eq(2).all() and o[100:].eq(1).all()  # what is outside reads as zero


def test_writing_past_the_end_touches_nothing():
    whole = torch.zeros(256)
    o = torch.from_numpy(whole.numpy()[64:164])  # a storage of its own inside the other's memory
    (fault,) = faults(lambda: add[(2,)](torch.ones(128), torch.ones(128), o, 128, 64))
    assert (fault.kind, fault.argument, fault.op) == ("bounds", "o", "tt.store")
    assert fault.where.startswith(line(add, "tl.store(o"))
    assert whole[64:164].eq(2).all() and whole[:64].eq(0).all() and whole[164:].eq(0).all()


def test_one_tensor_overrun_into_another():
    """Memory of a second argument is not the first one's, though it is valid memory."""
    both = np.zeros(128, np.float32)
    x, y = torch.from_numpy(both[:64]), torch.from_numpy(both[64:])
    (fault,) = faults(lambda: add[(1,)](x, y, torch.empty(128), 65, 128))[:1]
    assert fault.argument == "x" and "inside y" in str(fault)


@triton.jit
def careless(x, o, n, B: tl.constexpr):
    """Only the store is masked: what is read past the end is never seen."""
    i = tl.program_id(0) * B + tl.arange(0, B)
    v = tl.load(x + i)
    tl.store(o + i, tl.exp(v), mask=i < n)


def test_a_fault_that_right_results_hide(monkeypatch):
    x, o = torch.randn(100), torch.empty(100)
    monkeypatch.delenv("TKPY_CPU_CHECK")
    careless[(2,)](x, o, 100, 64)  # as on a GPU: allocations are longer than tensors
    assert torch.allclose(o, x.exp())
    monkeypatch.setenv("TKPY_CPU_CHECK", "1")
    (fault,) = faults(lambda: careless[(2,)](x, o, 100, 64))
    assert (fault.kind, fault.argument, fault.count) == ("bounds", "x", 28)
    assert fault.where.startswith(line(careless, "tl.load"))


@triton.jit
def before(x, o, B: tl.constexpr):
    i = tl.arange(0, B)
    tl.store(o + i, tl.load(x + i - 1))


def test_reading_in_front():
    x = torch.ones(64)
    (fault,) = faults(lambda: before[(1,)](x, torch.empty(64), 64))
    assert fault.offset == -4 and "before its storage begins" in str(fault)
    before[(1,)](torch.ones(65)[1:], torch.empty(64), 64)  # a view may be left, its storage not


def test_unwritten_memory():
    x, y, o = torch.empty(100), torch.ones(100), torch.empty(100)
    x[:70] = 1
    (fault,) = faults(lambda: add[(2,)](x, y, o, 100, 64))
    assert (fault.kind, fault.argument, fault.program) == ("unwritten", "x", (1, 0, 0))
    assert fault.offset == 280 and fault.count == 30 and "x[70]" in str(fault)
    x[70:] = 1  # the host writes the rest, and a kernel's output counts as written
    add[(2,)](x, y, o, 100, 64)
    add[(2,)](o, y, torch.empty_like(o), 100, 64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("make", ["empty", "empty_like", "new_empty", "empty_strided", "poison"])
def test_every_way_to_get_unwritten_memory(make, dtype):
    like = torch.ones(64, dtype=dtype)
    x = {"empty": lambda: torch.empty(64, dtype=dtype), "empty_like": lambda: torch.empty_like(like),
         "new_empty": lambda: like.new_empty(64), "poison": lambda: poison.poison(like.clone()),
         "empty_strided": lambda: torch.empty_strided((64,), (1,), dtype=dtype)}[make]()  # fmt: skip
    (fault,) = faults(lambda: add[(1,)](x, like, torch.zeros_like(like), 64, 64))
    assert fault.kind == "unwritten" and fault.count == 64


def test_poison_covers_storages_of_odd_sizes():
    pattern = POISON.to_bytes(4, "little")
    for n in range(9):
        x = poison.poison(torch.zeros(n, dtype=torch.uint8))
        assert bytes(x.tolist()) == (pattern * 3)[:n]


@triton.jit
def ragged(x, o, B: tl.constexpr):
    """Each program stores one element too many."""
    i = tl.arange(0, B)
    at = tl.program_id(0) * (B - 1) + i
    tl.store(o + at, tl.load(x + at) * tl.program_id(0))


def test_two_programs_write_one_place():
    x = torch.ones(64)
    (fault,) = faults(lambda: ragged[(3,)](x, torch.zeros(64), 16))
    assert (fault.kind, fault.program, fault.other) == ("write-write", (1, 0, 0), (0, 0, 0))
    assert fault.count == 2 and fault.offset == 60 and fault.argument == "o"
    assert fault.where == fault.other_where and fault.where.startswith(line(ragged, "tl.store"))
    ragged[(3,)](torch.zeros(64), torch.zeros(64), 16)  # the same value: no harm


@triton.jit
def shift(x, B: tl.constexpr):
    i = tl.program_id(1) * B + tl.arange(0, B)
    v = tl.load(x + i + 1)
    tl.store(x + i, v)


def test_a_program_writes_what_another_read():
    (fault,) = faults(lambda: shift[(1, 4)](torch.arange(65.0), 16))
    assert (fault.kind, fault.program, fault.other) == ("write-read", (0, 1, 0), (0, 0, 0))
    assert fault.count == 3 and fault.offset == 64
    assert fault.where.startswith(line(shift, "tl.store"))
    assert fault.other_where.startswith(line(shift, "tl.load"))


@triton.jit
def relay(x, o, B: tl.constexpr):
    """A running sum over programs, right only if they run in order."""
    i = tl.arange(0, B)
    p = tl.program_id(0)
    before = tl.load(o + (p - 1) * B + i, mask=i * 0 + p > 0, other=0.0)
    tl.store(o + p * B + i, before + tl.load(x + p * B + i))


def test_a_program_reads_what_another_wrote():
    """On one thread the answer is right, every time: a test of values cannot find this."""
    x, o = torch.arange(64.0), torch.zeros(64)
    (fault,) = faults(lambda: relay[(4,)](x, o, 16))
    assert (fault.kind, fault.program, fault.other) == ("read-write", (1, 0, 0), (0, 0, 0))
    assert fault.count == 48 and fault.where.startswith(line(relay, "before ="))
    assert torch.equal(o.view(4, 16), x.view(4, 16).cumsum(0))


@triton.jit
def last_one_adds(x, part, count, o, n: tl.constexpr, HOW: tl.constexpr):
    """Each program leaves a partial sum; who comes last adds them up."""
    p = tl.program_id(0)
    tl.store(part + p, tl.load(x + p) * 2)
    if HOW == "ordered":
        done = tl.atomic_add(count, 1)
    elif HOW == "relaxed":
        done = tl.atomic_add(count, 1, sem="relaxed")
    else:
        done = tl.load(count)
        tl.store(count, done + 1)
    if done == n - 1:
        tl.store(o, tl.sum(tl.load(part + tl.arange(0, n))))


def test_atomics_order_what_they_are_used_to_order():
    def run(how):
        x, o = torch.randn(8), torch.zeros(1)
        last_one_adds[(8,)](x, torch.empty(8), torch.zeros(1, dtype=torch.int32), o, 8, how)
        assert torch.allclose(o, 2 * x.sum())

    run("ordered")
    (fault,) = faults(lambda: run("relaxed"))
    assert fault.kind == "read-write" and fault.argument == "part" and fault.count == 7
    kinds = {f.kind for f in faults(lambda: run("plain"))}
    assert kinds == {"read-write", "write-read", "write-write"}


@triton.jit
def histogram(x, o, HOW: tl.constexpr, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    bins = tl.load(x + i)
    if HOW == "atomic":
        tl.atomic_add(o + bins, 1)
    elif HOW == "plain":
        tl.store(o + bins, tl.load(o + bins) + 1)
    else:
        tl.atomic_add(o + bins, 1)
        tl.store(o + bins, tl.load(o + bins))


def test_atomics_do_not_race_with_each_other():
    x = torch.randint(0, 10, (64,))
    o = torch.zeros(10, dtype=torch.int32)
    histogram[(4,)](x, o, "atomic", 16)
    assert o.tolist() == torch.bincount(x, minlength=10).tolist()
    for how in ("plain", "mixed"):  # an unused result of an atomic operation orders nothing
        found = faults(lambda how=how: histogram[(4,)](x, o, how, 16))
        assert "read-write" in {f.kind for f in found}
    x[3] = 10
    (fault,) = faults(lambda: histogram[(4,)](x, o, "atomic", 16))
    assert (fault.kind, fault.op, fault.offset) == ("bounds", "tt.atomic_rmw", 40)


@triton.jit
def locked(o, lock, B: tl.constexpr):
    while tl.atomic_cas(lock, 0, 1) == 1:
        pass
    i = tl.arange(0, B)
    tl.store(o + i, tl.load(o + i) + 1)
    tl.atomic_xchg(lock, 0)


def test_a_lock_orders():
    o = torch.zeros(32)
    locked[(5,)](o, torch.zeros(1, dtype=torch.int32), 32)
    assert (o == 5).all()


@triton.jit
def windows(x, o, n, m, B: tl.constexpr):
    d = tl.make_tensor_descriptor(x, [n, m], [m, 1], [B, B])
    e = tl.make_tensor_descriptor(o, [n, m], [m, 1], [B, B])
    for k in range(0, m, B):
        e.store([tl.program_id(0) * B, k], d.load([tl.program_id(0) * B, k]) * 2)


def test_descriptors():
    x, o = torch.randn(40, 24), torch.empty(40, 24)
    windows[(3,)](x, o, 40, 24, 16)
    assert torch.equal(o, 2 * x)
    found = faults(lambda: windows[(3,)](x[:39].clone(), o, 40, 24, 16))
    assert {(f.kind, f.argument, f.program, f.count) for f in found} == {
        ("bounds", "x", (2, 0, 0), 24)
    }
    assert found[0].where.startswith(line(windows, "d.load"))


@triton.jit
def chosen(x, y, o, which):
    if which > 0:  # noqa: SIM108
        p = x
    else:
        p = y
    i = tl.arange(0, 16)
    tl.store(o + i, tl.load(p + i))


def test_a_pointer_of_either_tensor():
    """Where a pointer's tensor is not known, every tensor that was passed is allowed."""
    x, o = torch.ones(16), torch.empty(16)
    chosen[(1,)](x, torch.ones(8), o, 1)
    (fault,) = faults(lambda: chosen[(1,)](x, torch.ones(8), o, 0))
    assert fault.kind == "bounds" and fault.argument == "" and fault.count == 8


@triton.jit
def table(addresses, o, B: tl.constexpr):
    p = tl.load(addresses + tl.program_id(0)).to(tl.pointer_type(tl.float32))
    i = tl.arange(0, B)
    tl.store(o + tl.program_id(0) * B + i, tl.load(p + i))


def test_pointers_from_integers_reach_live_tensors():
    xs = [torch.randn(16) for _ in range(3)]
    addresses = torch.tensor([x.data_ptr() for x in xs])
    o = torch.empty(48)
    table[(3,)](addresses, o, 16)
    assert torch.equal(o, torch.cat(xs))
    addresses[1] = 64
    (fault,) = faults(lambda: table[(3,)](addresses, o, 16))
    assert (fault.kind, fault.address, fault.program) == ("bounds", 64, (1, 0, 0))


@triton.jit
def scalars(x, o, k):
    tl.store(o, tl.load(x + k))


def test_scalars_and_absent_tensors():
    scalars[(1,)](torch.ones(2), torch.empty(1), 1)
    (fault,) = faults(lambda: scalars[(1,)](torch.ones(2), torch.empty(1), 2))
    assert fault.offset == 8
    (fault,) = faults(lambda: scalars[(1,)](torch.ones(0), torch.empty(1), 0))
    assert "through x, which is empty" in str(fault)


@triton.jit
def asserting(x, n):
    i = tl.arange(0, 16)
    v = tl.load(x + i)
    tl.device_assert(v < n, "too large")


def test_assertions_still_hold():
    asserting[(1,)](torch.zeros(16), 1, debug=True)
    with pytest.raises(codegen.cpu.launch.KernelError, match="too large"):
        asserting[(1,)](torch.ones(16), 1, debug=True)
    with pytest.raises(CheckError, match="too large"):
        asserting[(1,)](torch.ones(8), 1, debug=True)


def test_several_faults_come_in_the_order_of_lines():
    found = faults(lambda: add[(2,)](torch.ones(100), torch.empty(90), torch.ones(95), 128, 64))
    assert [(f.kind, f.argument) for f in found] == [
        ("bounds", "x"), ("bounds", "y"), ("unwritten", "y"), ("bounds", "o")]  # fmt: skip


@pytest.mark.slow
def test_the_kernels_of_other_tests_are_clean():
    """They give what they should and are accused of nothing."""
    here = Path(__file__).parent
    names = ("memory", "shapes", "control", "alias", "rest")
    files = [str(here / f"test_{name}.py") for name in names]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:xdist", "-m", "not slow", *files]
    subprocess.run(command, check=True, env={**os.environ, "TKPY_CPU_CHECK": "1"})


def test_off_there_is_nothing_of_it(monkeypatch):
    x, o = torch.ones(64), torch.zeros(64)
    on = add[(1,)](x, x, o, 64, 64)
    monkeypatch.delenv("TKPY_CPU_CHECK")
    off = add[(1,)](x, x, o, 64, 64)
    assert "guard" in on.asm["llir"] and "guard" not in off.asm["llir"]
    assert on.hash != off.hash and not environment.checking()
    direct = codegen.cpu.run(add, (1,), x, x, o, 64, B=64)
    assert "guard" not in direct.asm["llir"]
    monkeypatch.setenv("TKPY_CPU_CHECK", "1")
    assert "guard" in codegen.cpu.run(add, (1,), x, x, o, 64, B=64).asm["llir"]

"""Random programs of a dozen ops give what numpy gives for the same ops."""

import numpy as np
import pytest
import torch
from approx import FLOATS, INTS
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from instructions import PROGRAMS, Program
from programs import Generator

from codegen.module import load

TORCH = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32, "f64": torch.float64,
         "i1": torch.int8}  # fmt: skip


def tensor(data: np.ndarray, dtype: str) -> torch.Tensor:
    return torch.from_numpy(data).to(TORCH[dtype]) if dtype in FLOATS else torch.from_numpy(data)


def check(program: Program) -> int:
    """Run a program and compare; gives the number of elements whose value was certain."""
    kernel = load(program.source(), "program", interpret=False).program
    outs = []
    for o in program.outputs:
        kind = TORCH.get(o.var.dtype) or tensor(np.zeros(1, INTS[o.var.dtype]), o.var.dtype).dtype
        outs.append(torch.full((PROGRAMS * o.size,), 77, dtype=kind))
    scratch = [tensor(np.zeros(PROGRAMS * n, INTS.get(d, np.float64)), d)
               for d, n in program.scratch.items()]  # fmt: skip
    inputs = [tensor(x, d) for d, x in program.inputs.items()]
    kernel[(PROGRAMS,)](*inputs, *program.counts, *scratch, *outs)
    sure = 0
    for o, got, values in zip(program.outputs, outs, program.reference(), strict=True):
        floats = o.var.dtype in FLOATS
        got = (got.double() if floats else got).numpy().reshape(PROGRAMS, o.size)
        untouched = np.ones(o.size, bool)
        untouched[o.places()[o.mask()]] = False
        assert (got[:, untouched] == 77).all(), f"{o.var} was stored where its mask is off"
        for pid, v in enumerate(values):
            have, ok = got[pid][o.places()], o.mask() & v.known
            want = v.x.astype(have.dtype)
            bad = ok & (~(np.abs(have - want) <= v.err) if floats else have != want)
            assert not bad.any(), (
                f"{o.var} in program {pid} at {np.argwhere(bad)[0]}: {have[bad][0]} instead of "
                f"{want[bad][0]} (+- {v.err[bad][0]})\n{program.source()}")  # fmt: skip
            sure += int(ok.sum())
    return sure


def generate(data, length: int) -> Program:
    return Generator(lambda n: data.draw(st.integers(0, n - 1)), length).program


OPTIONS = {"deadline": None, "database": None, "derandomize": True,
           "suppress_health_check": list(HealthCheck)}  # fmt: skip


@settings(max_examples=12, **OPTIONS)
@given(st.data())
def test_programs(data):
    check(generate(data, 12))


@pytest.mark.slow
@settings(max_examples=400, **OPTIONS)
@given(st.data())
def test_many_programs(data):
    check(generate(data, 14))


def test_most_results_are_certain():
    """The bounds say something: of what random programs store, most elements are known."""
    rng = np.random.default_rng(5)
    total = sure = 0
    for _ in range(4):
        program = Generator(lambda n: int(rng.integers(n)), 12).program
        sure += check(program)
        total += sum(int(o.mask().sum()) for o in program.outputs) * PROGRAMS
    assert sure > total / 2


def test_a_wrong_program_is_seen():
    rng = np.random.default_rng(3)
    program = Generator(lambda n: int(rng.integers(n)), 12).program
    first = program.body[0]
    first.text += " + 1" if "+ 1" not in first.text else ""
    with pytest.raises(AssertionError):
        check(program)

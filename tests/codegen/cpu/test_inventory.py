"""What of Triton this backend does, and the test that shows it: nothing without one."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from codegen.cpu.lower.elementwise import TABLE
from codegen.cpu.lower.function import OPS, REASONS

HERE = Path(__file__).parent

# What a kernel may contain: (ops of TTIR, the test).
INVENTORY = {
    "integer arithmetic, wrapping": (
        "arith.addi arith.subi arith.muli arith.divsi arith.remsi arith.divui arith.remui arith.andi "
        "arith.ori arith.xori arith.shli arith.shrsi arith.shrui arith.maxsi arith.minsi arith.maxui "
        "arith.minui arith.cmpi", "test_elementwise.test_int_ops"),
    "other divisions, absolute values": ("arith.ceildivsi arith.floordivsi", "test_ttir.test_binary"),
    "float arithmetic": (
        "arith.addf arith.subf arith.mulf arith.divf arith.maxnumf arith.minnumf arith.maximumf "
        "arith.cmpf arith.select", "test_elementwise.test_float_ops"),
    "float arithmetic that only passes make": ("arith.minimumf arith.remf math.copysign", "test_ttir.test_binary"),
    "negation, rounding, bit counts": (
        "arith.negf math.ceil math.floor math.trunc math.roundeven math.round math.absf math.absi "
        "math.ctpop math.ctlz math.cttz math.tanh", "test_ttir.test_unary"),
    "elementary functions in fp32": (
        "math.exp math.exp2 math.log math.log2 math.sin math.cos math.erf math.rsqrt",
        "test_ulp.test_every_exponent"),
    "fp64 functions": ("math.exp math.log math.sin math.erf math.sqrt", "test_elementwise.test_fp64"),
    "casts of integers": ("arith.extsi arith.trunci arith.extui arith.sitofp arith.uitofp",
                          "test_programs.test_programs"),
    "casts that only passes make": ("arith.fptoui arith.index_cast arith.index_castui",
                                    "test_ttir.test_conversions_of_integers"),
    "float to integer": ("arith.fptosi", "test_elementwise.test_float_to_int_truncates"),
    "float formats": ("arith.extf arith.truncf", "test_elementwise.test_float_casts"),
    "roundings": ("tt.fp_to_fp", "test_conversions.test_narrowing"),
    "every fp8 number": ("tt.fp_to_fp", "test_conversions.test_every_fp8_number"),
    "umulhi": ("tt.mulhiui", "test_elementwise.test_umulhi"),
    "precise operations and clamps": (
        "tt.precise_divf tt.precise_sqrt math.fma tt.clampf", "test_rest.test_precise_operations"),
    "program ids": ("tt.get_program_id tt.get_num_programs", "test_control.test_early_return_and_grid"),
    "ranges and shapes": (
        "tt.make_range tt.splat tt.expand_dims tt.broadcast tt.reshape tt.trans tt.join tt.split tt.cat",
        "test_shapes.test_shapes"),
    "a tensor of one": ("tt.unsplat", "test_ttir.test_a_tensor_of_one_as_a_scalar"),
    "loads and stores with mask and other": ("tt.addptr tt.load tt.store", "test_memory.test_masked_copy"),
    "pointers as integers": ("tt.int_to_ptr tt.ptr_to_int", "test_rest.test_pointers_as_integers"),
    "bitcasts": ("tt.bitcast", "test_elementwise.test_int_ops"),
    "bitcasts of arith": ("arith.bitcast", "test_ttir.test_the_same_bits"),
    "descriptors": ("", "test_dot.test_descriptors"),
    "block pointers": ("", "test_dot.test_block_pointers"),
    "descriptors made on the host": ("", "test_rest.test_descriptors_made_on_the_host"),
    "gather and scatter by descriptors": ("", "test_rest.test_rows_gathered_and_scattered"),
    "reductions by descriptors": ("tt.atomic_rmw", "test_rest.test_descriptor_reductions"),
    "products of every type": ("tt.dot", "test_dot.test_dot"),
    "products into fp16": ("tt.dot", "test_rest.test_dot_into_fp16"),
    "scaled products": ("tt.dot_scaled", "test_scaled.test_dot_scaled"),
    "reductions, argmin, argmax, several operands": ("tt.reduce", "test_shapes.test_reduce"),
    "scans": ("tt.scan", "test_shapes.test_scan"),
    "histogram": ("tt.histogram", "test_shapes.test_histogram_sort_and_topk"),
    "gather": ("tt.gather", "test_shapes.test_gather"),
    "atomics": ("tt.atomic_rmw tt.atomic_cas", "test_memory.test_atomics"),
    "atomics of wide types": ("tt.atomic_rmw", "test_rest.test_every_atomic_of_wide_types"),
    "compare and swap": ("tt.atomic_cas", "test_rest.test_compare_and_swap"),
    "random numbers": ("tt.mulhiui", "test_control.test_random_numbers_match_the_reference"),
    "map_elementwise": ("tt.map_elementwise tt.map_elementwise.return",
                        "test_rest.test_map_elementwise"),
    "packs": ("tt.map_elementwise cf.br", "test_rest.test_map_elementwise_of_packs"),
    "device_print": ("tt.print", "test_rest.test_device_print"),
    "device_assert": ("tt.assert", "test_control.test_device_assert"),
    "loops and branches": ("scf.for scf.if scf.while scf.yield", "test_control.test_control"),
    "early return": ("cf.cond_br tt.return", "test_control.test_early_return_and_grid"),
    "calls": ("tt.call", "test_control.test_noinline_call"),
    "calls that return early": ("tt.call", "test_rest.test_functions_that_return_early"),
    "library functions": ("tt.extern_elementwise", "test_library.test_functions"),
    "barriers": ("gpu.barrier ttg.barrier tt.debug_barrier", "test_ttir.test_barriers_are_nothing"),
    "hints": ("llvm.intr.assume", "test_library.test_hints_and_barriers"),
    "what nothing depends on": ("ub.poison", "test_ttir.test_poison_is_a_value"),
    "inline assembly is refused": ("tt.elementwise_inline_asm",
                                   "test_rest.test_inline_assembly_is_refused_with_the_reason"),
}  # fmt: skip


@pytest.mark.parametrize("what", INVENTORY)
def test_each_has_a_test(what):
    ops, test = INVENTORY[what]
    file, name = test.split(".")
    source = (HERE / f"{file}.py").read_text()
    functions = {f.name for f in ast.walk(ast.parse(source)) if isinstance(f, ast.FunctionDef)}
    assert name in functions, f"{file} has no {name}"
    for op in ops.split():
        assert op in TABLE or op in OPS or op in REASONS, f"{op} is not in the backend"


@pytest.mark.slow
def test_each_test_compiles_what_it_stands_for(tmp_path):
    """Run them all with an empty cache, and look at what they have compiled."""
    env = {
        **os.environ,
        "TRITON_CACHE_DIR": str(tmp_path / "cache"),
        "TKPY_OPS_FILE": str(tmp_path / "ops"),
    }
    env["PYTHONPATH"] = os.pathsep.join(
        [str(HERE), str(HERE.parents[2]), os.environ.get("PYTHONPATH", "")]
    )
    tests = sorted(
        {HERE.name + "/{}.py::{}".format(*test.split(".")) for _, test in INVENTORY.values()}
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "recorder", "-p", "no:xdist", *tests]
    subprocess.run(command, env=env, cwd=HERE.parent, check=True)
    seen = json.loads((tmp_path / "ops").read_text())
    missing = {what: set(ops.split()) - set(seen[test]) for what, (ops, test) in INVENTORY.items()}
    assert not {what: ops for what, ops in missing.items() if ops}


def test_nothing_is_there_without_a_test():
    shown = {op for ops, _ in INVENTORY.values() for op in ops.split()}
    made = {op for op in OPS if op.startswith("strip.")}  # of other ops: see test_strips.py
    assert not ({*TABLE, *OPS, *REASONS} - shown - made)


def test_the_names_are_ttir():
    assert all(re.fullmatch(r"[a-z]+(\.\w+)+", op) for op in (*TABLE, *OPS))

"""What of Triton this backend does, and the test that shows it: nothing without one."""

import ast
import re
from pathlib import Path

import pytest

from codegen.cpu.lower.elementwise import TABLE
from codegen.cpu.lower.function import OPS, REASONS

HERE = Path(__file__).parent

# What a kernel may contain: (ops of TTIR, the test, what of that test's file calls for it).
INVENTORY = {
    "integer arithmetic, wrapping": (
        "arith.addi arith.subi arith.muli arith.divsi arith.remsi arith.divui arith.remui arith.andi "
        "arith.ori arith.xori arith.shli arith.shrsi arith.shrui arith.maxsi arith.minsi arith.maxui "
        "arith.minui arith.ceildivsi arith.floordivsi math.absi",
        "test_elementwise.test_int_ops", "a // b"),
    "the same in programs": ("arith.cmpi arith.select", "test_programs.test_programs", "given("),
    "float arithmetic": (
        "arith.addf arith.subf arith.mulf arith.divf arith.maxnumf arith.minnumf arith.maximumf "
        "arith.minimumf arith.cmpf arith.negf arith.remf", "test_elementwise.test_float_ops", "propagate_nan"),
    "fp64 functions": ("math.exp math.log math.erf math.sqrt", "test_elementwise.test_fp64", "tl.erf"),
    "elementary functions in fp32": (
        "math.exp2 math.log2 math.sin math.cos math.tanh math.rsqrt", "test_ulp.test_every_exponent", "worst("),
    "rounding": ("math.floor math.ceil math.absf math.trunc math.roundeven math.round math.copysign",
                 "test_library.test_functions", "libdevice"),
    "bit counts": ("math.ctpop math.ctlz math.cttz", "test_library.test_counts_of_bits", "popc"),
    "casts": ("arith.extsi arith.extui arith.trunci arith.index_cast arith.index_castui arith.sitofp arith.uitofp",
              "test_elementwise.test_int_casts", ".to("),
    "float to integer": ("arith.fptosi arith.fptoui", "test_elementwise.test_float_to_int_truncates", ".to("),
    "float formats": ("arith.extf arith.truncf", "test_elementwise.test_float_casts", "bfloat16"),
    "roundings and fp8": ("tt.fp_to_fp", "test_conversions.test_narrowing", "fp_downcast_rounding"),
    "every fp8 number": ("tt.fp_to_fp", "test_conversions.test_every_fp8_number", "float8_e4m3fn"),
    "umulhi": ("tt.mulhiui", "test_elementwise.test_umulhi", "tl.umulhi"),
    "precise operations and clamps": (
        "tt.precise_divf tt.precise_sqrt math.fma tt.clampf", "test_rest.test_precise_operations", "tl.div_rn"),
    "program ids": ("tt.get_program_id tt.get_num_programs", "test_control.test_early_return_and_grid", "tl.num_programs"),
    "ranges and shapes": (
        "tt.make_range tt.splat tt.unsplat tt.expand_dims tt.broadcast tt.reshape tt.trans tt.join tt.split tt.cat",
        "test_shapes.test_shapes", "tl.cat("),
    "loads and stores": ("tt.addptr tt.load tt.store", "test_memory.test_masked_copy", "other="),
    "pointers as integers": ("tt.int_to_ptr tt.ptr_to_int tt.bitcast arith.bitcast",
                             "test_rest.test_pointers_as_integers", "tl.pointer_type"),
    "descriptors and block pointers": ("", "test_dot.test_block_pointers", "make_block_ptr"),
    "descriptors made on the host": ("", "test_rest.test_descriptors_made_on_the_host", "TensorDescriptor("),
    "gather and scatter of rows": ("", "test_rest.test_rows_gathered_and_scattered", ".scatter("),
    "reductions to memory": ("", "test_rest.test_descriptor_reductions", "d.atomic_max"),
    "products of every type": ("tt.dot", "test_dot.test_dot", "tl.dot("),
    "products into fp16": ("tt.dot", "test_rest.test_dot_into_fp16", "out_dtype=tl.float16"),
    "scaled products": ("tt.dot_scaled", "test_scaled.test_dot_scaled", "tl.dot_scaled("),
    "reductions": ("tt.reduce", "test_shapes.test_reduce", "tl.reduce("),
    "argmin, argmax": ("tt.reduce", "test_shapes.test_reduce", "tl.argmin("),
    "scans": ("tt.scan", "test_shapes.test_scan", "tl.associative_scan("),
    "histogram": ("tt.histogram", "test_shapes.test_histogram_sort_and_topk", "tl.histogram("),
    "gather": ("tt.gather", "test_shapes.test_gather", "tl.gather("),
    "atomics": ("tt.atomic_rmw", "test_memory.test_atomics", "tl.atomic_xor"),
    "atomics of wide types": ("tt.atomic_rmw", "test_rest.test_every_atomic_of_wide_types", "tl.atomic_max"),
    "compare and swap": ("tt.atomic_cas", "test_rest.test_compare_and_swap", "tl.atomic_cas"),
    "random numbers": ("", "test_control.test_random_numbers_match_the_reference", "tl.randint("),
    "map_elementwise": ("tt.map_elementwise tt.map_elementwise.return", "test_rest.test_map_elementwise", "tl.map_elementwise("),
    "packs": ("tt.map_elementwise", "test_rest.test_map_elementwise_of_packs", "pack=2"),
    "device_print": ("tt.print", "test_rest.test_device_print", "tl.device_print("),
    "device_assert": ("tt.assert", "test_control.test_device_assert", "tl.device_assert("),
    "loops and branches": ("scf.for scf.if scf.while scf.yield", "test_control.test_control", "while "),
    "early return": ("cf.br cf.cond_br tt.return", "test_control.test_early_return_and_grid", "return"),
    "calls": ("tt.call", "test_control.test_noinline_call", "noinline"),
    "calls that return early": ("tt.call", "test_rest.test_functions_that_return_early", "noinline=True"),
    "library functions": ("tt.extern_elementwise", "test_library.test_functions", "libdevice"),
    "nothing to do, or nothing known": (
        "gpu.barrier ttg.barrier tt.debug_barrier llvm.intr.assume ub.poison",
        "test_library.test_hints_and_barriers", "debug_barrier"),
    "inline assembly is refused": ("tt.elementwise_inline_asm", "test_rest.test_inline_assembly_is_refused_with_the_reason", "inline_asm"),
}  # fmt: skip


@pytest.mark.parametrize("what", INVENTORY)
def test_each_has_a_test(what):
    ops, test, text = INVENTORY[what]
    file, name = test.split(".")
    source = (HERE / f"{file}.py").read_text()
    functions = {f.name for f in ast.walk(ast.parse(source)) if isinstance(f, ast.FunctionDef)}
    assert name in functions, f"{file} has no {name}"
    assert text in source, f"nothing in {file} says {text!r}"
    for op in ops.split():
        assert op in TABLE or op in OPS or op in REASONS, f"{op} is not in the backend"


def test_nothing_is_there_without_a_test():
    shown = {op for ops, _, _ in INVENTORY.values() for op in ops.split()}
    assert not ({*TABLE, *OPS, *REASONS} - shown)


def test_the_names_are_ttir():
    assert all(re.fullmatch(r"[a-z]+(\.\w+)+", op) for op in (*TABLE, *OPS))

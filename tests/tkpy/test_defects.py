"""The tests can fail: plausible defects, put into right kernels and into the compiler, are found.

Each row changes one place of a kernel of the zoo, as a tired author might; ``check`` must find
it, and must not object to the kernel as it is.
"""

import importlib
import importlib.util
import sys
from pathlib import Path

import check_kernels
import pytest

import zoo.kernels
from codegen import passes
from codegen.ir import Function, loop_parts
from codegen.passes import bounds, neutral
from tkpy.kernel import Kernel
from tkpy.testing import check

ZOO = Path(zoo.kernels.__file__).parent

SLOW = pytest.mark.slow

DEFECTS = [
    # (file, kernel, as it is, as it must not be, what is wrong)
    ("attention", "attention", "tk.causal(s, first, ", "tk.causal(s, first - 1, ", "diagonal lost"),
    ("attention", "attention", "tk.mma_ABt(qt, kt) * to_bits", "tk.mma_ABt(qt, kt) * LOG2E", "scale forgotten"),
    ("attention", "attention", 'tk.range(start, tk.cdiv("M", cols), ', 'tk.range(start, tk.dim("M") // cols, ', "ragged tail of keys dropped"),
    ("attention", "attention", "tk.triu(s, 1 - window, ", "tk.triu(s, -window, ", "window off by one"),
    ("attention", "attention", 'g = h // tk.dim("H // G")', 'g = h % tk.dim("G")', "heads interleaved"),
    ("attention", "attention", "total, acc * decay + tk.cast", "total, acc + tk.cast", "accumulator not rescaled"),
    ("attention", "attention", "total * decay + tk.row_sum(p)", "total + tk.row_sum(p)", "normaliser not rescaled"),
    ("attention", "attention", "+ tk.log2(total)) * LN2", "+ tk.log2(total))", "lse in the wrong base"),
    ("softmax", "softmax", "total * tk.exp(top - new_top) + ", "total + ", "normaliser not rescaled"),
    ("softmax", "softmax", "for j in tk.range(tk.cdiv", "for j in tk.range(1, tk.cdiv", "first tile skipped"),
    ("norm", "rmsnorm", "tk.rsqrt(power + eps)", "tk.rsqrt(power)", "eps forgotten"),
    ("norm", "layernorm", "else h + tk.load(residual", "else h + 2.0 * tk.load(residual", "residual added twice"),
    ("norm", "layernorm", 'stream(x, residual, i, j, width)) / tk.static("D")', "stream(x, residual, i, j, width)) / width", "mean over the padding too"),
    ("norm", "rmsnorm", "i, j, width) - mean) ** 2) / ", "i, j, width) - mean) * 2.0) / ", "sum instead of sum of squares"),
    ("gemm", "gemm", "return acc + at @ bt", "return tk.cast(tk.cast(acc + at @ bt, a.dtype), tk.f32)", "sums kept in 16 bits"),
    ("gemm", "gemm", "acc += tk.load(bias, j, cols, dtype=tk.f32)", "acc += tk.col_vec(tk.load(bias, i, rows, dtype=tk.f32))", "bias along the wrong axis"),
    ("gemm", "gemm", "tk.load(b, (k, j), (depth, cols))", "tk.load(b, (k, i), (depth, cols))", "column tile of the row"),
    ("rotary", "rotary", "one * c - two * s", "one * c + two * s", "turned the wrong way"),
    ("rotary", "rotary", "tk.load(t, (i, 0)", "tk.load(t, (0, 0)", "angles of the first tile"),
    ("short_conv", "short_conv", 'tk.load(weight, (j, k), cols,', 'tk.load(weight, (j, tk.static("W") - 1 - k), cols,', "taps in reverse"),
    ("short_conv", "short_conv", 't - past + tk.dim("W - 1")', "t - past", "state read from the wrong end"),
    ("short_conv", "short_conv", 'inputs(x, state, b, tk.dim("N"), j', "inputs(x, state, b, 0, j", "stale state returned"),
    ("based", "based", "tk.col_sum(k, t1), tk.mma", "tk.col_sum(k), tk.mma", "state of the normaliser lost between chunks"),
    ("based", "based", "1 + s + s * s / 2", "1 + s + s * s", "half forgotten"),
    ("based", "based", "n0 + i * rows, n1", "n0, n1", "keys before the chunk not counted"),
    ("based", "based", 'end(new_t0, n0 + tk.dim("N")', 'end(new_t0, n0 + tk.cdiv("N", rows) * rows', "padded keys counted"),
]  # fmt: skip


#: One like a defect of softmax, in which it is found sooner, and the dearest.
TWICE = {("attention", n) for n in ("normaliser not rescaled", "window off by one")}


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    """No shrinking; and no variant from a cache, for the compiler may be the one that is broken."""
    monkeypatch.setattr(importlib.import_module("tkpy.testing.check"), "_SHRINK_RUNS", 0)
    monkeypatch.setenv("TKPY_CACHE_DIR", str(tmp_path / "cache"))


def kernel_from(text: str, name: str, folder: Path) -> Kernel:
    path = folder / f"mutant_{name}.py"
    path.write_text(text)
    spec = importlib.util.spec_from_file_location(f"{path.stem}_{abs(hash(text))}", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return getattr(module, name)


@pytest.mark.parametrize(
    "file, kernel, right, wrong",
    [
        pytest.param(
            *d[:4],
            id=f"{d[1]}-{d[4]}",
            marks=SLOW if d[1] == "based" or (d[1], d[4]) in TWICE else (),
        )
        for d in DEFECTS
    ],
)
def test_defect_is_found(file, kernel, right, wrong, tmp_path):
    text = (ZOO / f"{file}.py").read_text()
    assert right in text, f"{file}.py no longer says {right!r}; bring the table up to date"
    mutant = kernel_from(text.replace(right, wrong), kernel, tmp_path)
    result = check(mutant, examples=60, poison=False)
    assert not result.ok
    assert "expected" in result.failure, "refused or crashed instead of being wrong"


@pytest.mark.parametrize(
    "file, name",
    [
        pytest.param(*d, marks=SLOW if d[1] in ("based", "attention", "gemm") else ())
        for d in sorted({d[:2] for d in DEFECTS})
    ],
)
def test_as_it_is_nothing_is_found(file, name, tmp_path):
    kernel = kernel_from((ZOO / f"{file}.py").read_text(), name, tmp_path)
    check(kernel, examples=10, poison=False).raise_if_failed()


# -- defects of the compiler -----------------------------------------------------------------


def fresh(kernel: Kernel) -> Kernel:
    out = Kernel(kernel.fn, kernel.where)
    out.reference(kernel.reference_fn, **kernel.reference_options)
    return out


def replaced(name: str, run) -> list:
    assert any(n == name for n, _ in passes.PIPELINE)
    return [(n, run(f) if n == name else f) for n, f in passes.PIPELINE]


def nothing_is_neutralised(monkeypatch):
    monkeypatch.setattr(passes, "neutralise", lambda fn, trust=True: None)


def dead_elements_are_trusted(monkeypatch):
    monkeypatch.setattr(neutral, "_holds", lambda value, wanted, fills: True)


def zero_is_taken_for_minus_infinity(monkeypatch):
    original = neutral.build

    def build(fn, kind, operands, attrs, **rest):
        return original(fn, kind, operands, {**attrs, "value": 0.0}, **rest)

    monkeypatch.setattr(neutral, "build", build)


def every_access_is_proved(monkeypatch):
    def without_checks(original):
        def run(fn: Function):
            original(fn)
            for op in fn.body.walk():
                if "checks" in op.attrs:
                    op.attrs["checks"] = tuple((False, False) for _ in op.attrs["checks"])

        return run

    monkeypatch.setattr(passes, "PIPELINE", replaced("bounds", without_checks))


def every_mask_is_proved(monkeypatch):
    monkeypatch.setattr(bounds, "_always", lambda op, facts: True)


def the_rest_of_loops_is_dropped(monkeypatch):
    def without_rest(original):
        def run(fn: Function):
            original(fn)
            for op in fn.body.walk():
                if op.kind == "for" and op.attrs.get("num_stages") == 1:
                    op.attrs["stop"] = loop_parts(op)[1]

        return run

    monkeypatch.setattr(passes, "PIPELINE", replaced("split", without_rest))


COMPILER = [
    (nothing_is_neutralised, "softmax"),
    (nothing_is_neutralised, "segment_sum"),
    (dead_elements_are_trusted, "softmax"),
    (zero_is_taken_for_minus_infinity, "largest"),
    (every_access_is_proved, "softmax"),
    (every_access_is_proved, "pick"),
    (the_rest_of_loops_is_dropped, "pick"),
    (the_rest_of_loops_is_dropped, "attention"),
    (every_mask_is_proved, "attention"),
]


@pytest.mark.parametrize("damage, name", COMPILER, ids=[f"{d.__name__}-{n}" for d, n in COMPILER])
def test_defect_of_the_compiler_is_found(damage, name, monkeypatch):
    from zoo.kernels.attention import attention

    damage(monkeypatch)
    if damage is every_access_is_proved:  # in native code it would write to anybody's memory
        monkeypatch.setenv("TKPY_EXECUTOR", "interpreter")
    kernel = fresh(attention if name == "attention" else getattr(check_kernels, name))
    result = check(kernel, examples=50)
    assert not result.ok and "reproduce" in result.failure

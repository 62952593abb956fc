"""``tkpy.testing.check``: what it draws, what it compares with, what it prints."""

import contextlib
import math
import os
import re
from pathlib import Path

import check_kernels as kernels
import forked
import pytest
import torch

import tkpy as tk
from tkpy.call import holds
from tkpy.errors import TkError
from tkpy.signature import Condition
from tkpy.testing import Model, check, compare, conditioning, laid_out, tensor
from tkpy.testing.data import KINDS, LAYOUTS
from tkpy.testing.plan import Plan
from tkpy.testing.sizes import Constraint, Solver
from tkpy.testing.strategies import Choices, example

ALL = [
    kernels.softmax,
    kernels.pick,
    kernels.segment_sum,
    kernels.update,
    kernels.scatter,
    kernels.largest,
]


def drawn(kernel, count=80, **options):
    options = {"sizes": kernel.reference_options.get("sizes"), **options}
    plan = Plan(kernel, count, 0, **options)
    uncapped = b"\xff" * 64
    raw = [uncapped + k.to_bytes(8, "big") for k in range(count)]
    return plan, [example(plan, Choices(r)) for r in raw]


@pytest.mark.parametrize("kernel", ALL, ids=lambda k: k.name)
def test_right_kernels_pass(kernel):
    result = check(kernel, examples=30, seed=1)
    result.raise_if_failed()
    assert (result.name, result.examples, result.ok) == (kernel.name, 30, True)
    assert 0 <= result.worst_error <= 1


def test_same_seed_same_examples():
    seen = []
    for _ in range(2):
        lines = []

        def reference(x, lines=lines):
            lines.append((tuple(x.shape), x.sum().item()))
            return x.softmax(-1)

        check(kernels.softmax, reference, examples=12, seed=5, terms=lambda x: x.softmax(-1) * 1e4)
        seen.append(repr(lines))
    assert seen[0] == seen[1]


# -- what is drawn ---------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", ALL, ids=lambda k: k.name)
def test_inputs_meet_the_preconditions(kernel):
    plan, examples = drawn(kernel)
    for e in examples:
        args = plan.arguments(e)
        call = kernel.binder.bind((), args)
        values = {**call.sizes, **call.tensors, **call.scalars, **call.constants}
        for c in kernel.signature.conditions:
            assert holds(c, values)


def test_sizes_sit_around_tile_sides():
    _, examples = drawn(kernels.pick)
    rows, cols = ({e.sizes[n] for e in examples} for n in ("N", "V"))
    assert {0, 1, 15, 16, 17} <= rows
    assert {1, 31, 32, 33} <= cols
    assert any(e.sizes["N"] != e.sizes["V"] for e in examples)


def test_empty_where_it_is_legal_only():
    _, examples = drawn(kernels.pick)
    assert all(e.sizes["V"] > 0 or e.sizes["N"] == 0 for e in examples)
    _, examples = drawn(kernels.update)
    assert all(e.sizes["G"] > 0 for e in examples)
    assert any(e.sizes["H"] > e.sizes["G"] > 1 for e in examples)


def test_variants_are_few_and_cover_every_choice():
    settings = [s for seed in range(3) for s in Plan(kernels.update, 200, seed).settings]
    assert all(len(Plan(kernels.update, 200, seed).settings) <= 12 for seed in range(2))
    for dtype in ("f32", "bf16", "f16"):
        assert any(("T", dtype) in s.variables for s in settings)
    assert {dict(s.constants)["twice"] for s in settings} == {False, True}
    for name in ("scale", "shift"):
        assert {name in s.present for s in settings} == {False, True}
    assert {s.unit for s in settings} == {False, True}
    assert {s.poison for s in settings} == {False, True}


def test_every_kind_and_layout_occurs():
    _, examples = drawn(kernels.scatter, 300)
    recipes = [e.recipes["x"] for e in examples]
    assert {r.kind for r in recipes} == set(KINDS)
    assert {r.layout for r in recipes} == set(LAYOUTS)


def test_bounds_dtypes_constants_and_special_are_respected():
    _, examples = drawn(
        kernels.pick,
        dtypes=[torch.float16],
        constants={"sign": [-1]},
        special=False,
        sizes={"N": (3, 9), "V": [4]},
    )
    assert {e.sizes["V"] for e in examples} == {4}
    assert {3 <= e.sizes["N"] <= 9 for e in examples} == {True}
    assert {dict(e.setting.variables)["T"] for e in examples} == {"f16"}
    assert {dict(e.setting.constants)["sign"] for e in examples} == {-1}
    assert not any(r.kind == "special" for e in examples for r in e.recipes.values())


@pytest.mark.parametrize(
    "option",
    (
        {"sizes": {"X": (1, 2)}},
        {"constants": {"X": [1]}},
        {"special": ["X"]},
        {"dtypes": [torch.int8]},
    ),
)
def test_options_that_name_nothing_are_refused(option):
    with pytest.raises(TkError):
        check(kernels.softmax, **option)


def test_sizes_are_solved_not_tried():
    conditions = ["H % G == 0", "G * 3 <= H", "D == 2 * R", "R >= 5", "H < 100"]
    solver = Solver(["H", "G", "R", "D"], [Constraint.of(Condition.of(c)) for c in conditions], {})
    known = {}
    for name in solver.order():
        options = solver.options(name, known)
        assert options, name
        known[name] = options[-1]
    assert all(holds(Condition.of(c), known) for c in conditions)
    assert not solver.completes({"H": 7, "G": 3})


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", [(), (1,), (5,), (0, 3), (2, 3), (2, 1, 4)])
def test_layouts_hold_the_same_values(layout, shape):
    values = torch.zeros(shape) if layout == "expanded" else torch.randn(shape)
    out = laid_out(values, layout)
    assert out.shape == values.shape and torch.equal(out, values)
    if layout == "expanded" and len(shape) > 1 and shape[0] > 1:
        assert out.stride(0) == 0
    if layout == "strided" and shape == (2, 3):
        assert out.stride() == (6, 2)
        assert torch.tensor([]).set_(out.untyped_storage()).isnan().sum() > 6


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_tensors_are_reproducible_and_within_bounds(kind, dtype):
    a, b = (tensor(kind, (7, 9), dtype, seed=3, low=-0.5, high=2.0) for _ in range(2))
    assert torch.equal(a, b) and a.dtype == dtype
    assert a.min() >= -0.5 and a.max() <= 2.0


# -- the error model -------------------------------------------------------------------------


def test_nan_and_infinities_equal_only_themselves():
    expected = torch.tensor([math.nan, math.inf, -math.inf, 1.0]).double()
    bound = torch.full((4,), 1e-3).double()
    assert compare(expected.float(), expected, bound).ok
    for k, wrong in [(0, 0.0), (1, -math.inf), (1, 3e38), (2, math.nan), (3, math.nan), (3, 1.01)]:
        out = expected.float()
        out[k] = wrong
        verdict = compare(out, expected, bound)
        assert not verdict.ok and verdict.index == (k,)


def test_overflow_of_short_outputs():
    expected = torch.tensor([65519.0, 65521.0, 1e6, -1e6]).double()
    bound = torch.full((4,), 1e-3).double()
    out = torch.tensor([65504.0, math.inf, math.inf, -math.inf], dtype=torch.float16)
    assert compare(out, expected, bound + 16).ok
    assert not compare(-out, expected, bound + 16).ok
    assert not compare(out.clamp(max=65504), expected, bound).ok


def test_rounding_alone_is_within_the_bound():
    x = torch.randn(4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1e3
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        bound = Model(c=0, roundings=0).bound(x, x.abs(), dtype, [x.to(dtype)])
        assert compare(x.to(dtype), x, bound).ok
        assert compare(x.to(dtype), x, bound).ratio > 0.9  # and hardly anything more


def test_derived_terms_of_a_product_are_the_sum_of_terms():
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(30, 30, dtype=torch.float64, generator=g) for _ in range(2))
    fn = lambda t: [t[0] @ t[1]]  # noqa: E731
    (derived,) = conditioning(fn, [a, b], fn([a, b]), seed=0)
    ratio = derived / (a.abs() @ b.abs())  # both factors and the sum itself are moved
    assert 2 < ratio.median() < 8 and ratio.min() > 0.4 and ratio.max() < 100


def test_derived_terms_see_cancellation_between_intermediates():
    x = torch.full((50,), 0.75, dtype=torch.float64)
    fn = lambda t: [torch.exp(t[0] * 0) * 1e6 - 1e6 + t[0]]  # noqa: E731
    (derived,) = conditioning(fn, [x], fn([x]), seed=0)
    assert derived.median() > 1e6


# -- failures --------------------------------------------------------------------------------


def test_a_failure_is_small_and_its_program_runs(tmp_path):
    result = check(kernels.pick, lambda x, labels, sign: x[:, 0] * sign, examples=40)
    assert not result.ok and result.worst_error > 1
    assert "V=2" in result.failure and "N=1" in result.failure
    with pytest.raises(AssertionError, match="pick"):
        result.raise_if_failed()
    program = re.split(r"reproduce:\n\n", result.failure)[1]
    program = "\n".join(line[4:] for line in program.splitlines())
    said = run_program(program, tmp_path)
    expected = re.search(r"print\(.*\)  # ([^,]+), expected", program).group(1)
    assert expected in said.replace("tensor(", "").replace(".)", ")")


def test_a_program_for_a_kernel_that_cannot_be_imported(tmp_path):
    file = tmp_path / "own.py"
    file.write_text(Path(kernels.__file__).read_text())
    sys_path = {"__name__": "own_kernels", "__file__": str(file)}
    exec(compile(file.read_text(), str(file), "exec"), sys_path)
    result = check(sys_path["softmax"], lambda x: x * 0, examples=5, special=False)
    program = "\n".join(line[4:] for line in result.failure.split("reproduce:\n\n")[1].splitlines())
    assert "runpy" in program
    run_program(program, tmp_path)


def run_program(text, folder):
    path = folder / "program.py"
    path.write_text(text)
    root = Path(__file__).resolve().parents[2]
    found = os.pathsep.join([str(Path(__file__).parent), str(root)])
    done = forked.python(
        f"import runpy; runpy.run_path({str(path)!r}, run_name='__main__')",
        env={"PYTHONPATH": found, "TKPY_CACHE_DIR": str(folder), "HOME": "/"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_unordered_results_are_found(monkeypatch):
    """A kernel whose answer depends on something else than its input."""
    original, count = tk.kernel(kernels.softmax.fn), [0]
    launch = type(original).variant

    def unsteady(self, key, interpret):
        variant = launch(self, key, interpret)
        count[0] += 1

        def run(x, y, *rest):
            variant.launch(x, y, *rest)
            if y.numel() and count[0] % 2:
                y.view(-1)[0].add_(torch.finfo(y.dtype).eps)

        return type(variant)(variant.key, variant.source, run)

    monkeypatch.setattr(type(original), "variant", unsteady)
    result = check(original, lambda x: x.softmax(-1), examples=20, c=1e9, special=False)
    assert "differs between two runs" in result.failure


@pytest.mark.parametrize(
    "damage, said",
    [
        (lambda x, y: x.fill_(0), "changed its input x"),
        (
            lambda x, y: (
                y.as_strided((1,), (1,), y.storage_offset() + y.numel()).fill_(0)
                if y.numel() and y.storage_offset()
                else None
            ),
            "outside of y",
        ),
    ],
)
def test_damage_is_found(monkeypatch, damage, said):
    kernel = tk.kernel(kernels.softmax.fn)
    launch = type(kernel).variant

    def damaging(self, key, interpret):
        variant = launch(self, key, interpret)

        def run(x, y, *rest):
            variant.launch(x, y, *rest)
            damage(x, y)

        return type(variant)(variant.key, variant.source, run)

    monkeypatch.setattr(type(kernel), "variant", damaging)
    result = check(kernel, lambda x: x.softmax(-1), examples=20)
    assert said in result.failure


def test_calls_that_must_be_refused(monkeypatch):
    from tkpy.call import Binder

    monkeypatch.setattr(Binder, "_conditions", lambda self, call: None)
    for kernel, said in [
        (kernels.pick, "0 <= labels < V"),
        (kernels.segment_sum, "sorted(cu)"),
        (kernels.update, "H % G == 0"),
        (kernels.scatter, "distinct(rows)"),
    ]:
        result = check(kernel, examples=1)
        assert not result.ok and said in result.failure and "is not refused" in result.failure


@pytest.mark.parametrize(
    "name, said",
    [
        ("_devices", "another device"),
        ("_sizes", "axis"),
    ],
)
def test_structure_that_must_be_refused(monkeypatch, name, said):
    from tkpy.call import Binder

    original = getattr(Binder, name)

    def lenient(self, call):
        with contextlib.suppress(TkError):
            original(self, call)

    monkeypatch.setattr(Binder, name, lenient)
    result = check(kernels.scatter, examples=1)
    assert not result.ok and said in result.failure


# -- references ------------------------------------------------------------------------------


def test_no_reference():
    with pytest.raises(TkError, match="there is no reference"):
        check(tk.kernel(kernels.softmax.fn))


def test_a_reference_may_say_nan_for_what_does_not_count():
    """0 * inf under the mask: the reference says NaN where the kernel never looked."""

    def reference(x, labels, sign):
        at = torch.nn.functional.one_hot(labels.long(), x.shape[1])
        return (x * at).sum(1) * sign

    check(kernels.pick, reference, examples=150, sizes={"V": (2, 5)}).raise_if_failed()


def test_a_reference_that_does_not_fit():
    with pytest.raises(TkError, match="takes z"):
        check(kernels.softmax, lambda z: z)
    with pytest.raises(TkError, match="returned 2 tensors"):
        check(kernels.softmax, lambda x: (x, x))
    assert "has shape" in check(kernels.softmax, lambda x: x[..., None], examples=3).failure
    result = check(kernels.softmax, lambda x: x.nonsense, examples=3)
    assert "the reference raised AttributeError" in result.failure


def test_without_hypothesis(tmp_path):
    (tmp_path / "hypothesis.py").write_text("raise ImportError('not here')")
    found = os.pathsep.join([str(tmp_path), str(Path(__file__).resolve().parents[2])])
    said = forked.python(
        "import tkpy\nimport tkpy.testing", env={"PYTHONPATH": found, "HOME": "/"}
    ).stderr
    assert "pip install 'tkpy[test]'" in said

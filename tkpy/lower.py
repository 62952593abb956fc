"""One variant of a kernel: its signature with everything settled, lowered and written out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import sympy

from codegen.emit import Emitted, emit
from codegen.expr import Expr, FloorDiv, Symbol, parse, sym
from codegen.grad.errors import NoGradient
from codegen.grad.plan import Derivation, derive, prepare
from codegen.host import module_source
from codegen.ir import DTYPES, DType, Function, Param, Region, f32
from codegen.lengths import LengthError, check_lengths
from codegen.ops.base import IRError
from codegen.ops.mask import COL, ROW
from codegen.passes import optimise
from codegen.verify import verify
from tkpy.builder import _CURRENT, Builder, TensorRef
from tkpy.errors import CompileError, NeedStatic, TkError
from tkpy.frontend import Source, Walker
from tkpy.signature import ConstSpec, ScalarSpec, Signature, TensorSpec
from tkpy.template.knobs import Template
from tkpy.template.plan import plan, plan_piece


@dataclass(frozen=True)
class VariantKey:
    """All that a compiled kernel depends on besides its source; hashable.

    constants: value of every compile-time parameter; dtypes: of every tensor that is present;
    present: the optional parameters that were given; static: sizes of the dimensions that are
    tile sides; unit: all innermost strides are one; wide: offsets may pass 2^31; aligned: all
    other strides, and rows' lengths, are multiples of 16 (told apart on GPUs only, where copies
    gain by it).
    Of templates on a GPU also machine: the one whose schedule it is, and described: addresses and
    strides suit tensor descriptors.
    """

    constants: tuple[tuple[str, object], ...]
    dtypes: tuple[tuple[str, str], ...]
    present: frozenset[str]
    static: tuple[tuple[str, int], ...] = ()
    unit: bool = True
    wide: bool = False
    aligned: bool = False
    machine: str = ""
    described: bool = False


@dataclass
class Lowered:
    """What the front end made of a kernel, and what the passes and the printer made of that."""

    fn: Function
    emitted: Emitted
    source: str
    walker: Walker | None = None
    stages: list[tuple[str, str]] = field(default_factory=list)


def find_static(
    fn: Callable,
    signature: Signature,
    key: VariantKey,
    sizes: dict[str, int],
    template: Template | None = None,
):
    """The names of dimensions that are tile sides, found by lowering until none is missing."""
    static: dict[str, int] = dict(key.static)
    while True:
        try:
            _walk(fn, signature, _with_static(key, static), template)
            return frozenset(static)
        except NeedStatic as need:
            fresh = need.names - set(static)
            if not fresh:
                raise TkError(f"dimensions {sorted(need.names)} do not settle") from None
            static |= {n: sizes[n] for n in fresh}


def _with_static(key: VariantKey, static: dict[str, int]) -> VariantKey:
    return replace(key, static=tuple(sorted(static.items())))


def lower(
    fn: Callable,
    signature: Signature,
    key: VariantKey,
    num_warps: int = 4,
    num_stages: int = 3,
    template: Template | None = None,
    poison: bool = False,
    watch: Callable[[str, Function], None] | None = None,
    split: bool | str = True,
) -> Lowered:
    """Front end, passes and emission of one variant.

    ``split``: whether loops may be specialised by warp; a text says why not.

    Raises:
        CompileError: if the kernel is not legal for these dtypes, constants and sizes.
    """
    ir, walker = _walk(fn, signature, key, template)
    if watch:
        watch("frontend", ir)
    try:
        check_lengths(ir)
    except LengthError as e:
        raise CompileError(e.loc, str(e)) from None
    return finish(ir, key, num_warps, num_stages, template, poison, watch, split, walker)


def finish(
    ir: Function,
    key: VariantKey,
    num_warps: int = 4,
    num_stages: int = 3,
    template: Template | None = None,
    poison: bool = False,
    watch: Callable[[str, Function], None] | None = None,
    split: bool | str = True,
    walker: Walker | None = None,
) -> Lowered:
    """Passes and emission of ``ir``, in place."""
    if template is not None and key.machine:
        ir.schedule = plan(template, ir, key.machine, key.described)
        if ir.schedule.specialise and split is not True:
            why = split or "nobody asked"
            notes = (*ir.schedule.notes, f"not specialised: {why}")
            # Through pointers: without warps of their own descriptors cost the consumers registers.
            ir.schedule = replace(ir.schedule, specialise=False, described=False, notes=notes)
    optimise(ir, poison, watch)
    verify(ir)
    emitted = emit(ir, poison)
    return Lowered(ir, emitted, module_source(ir, emitted, num_warps, num_stages), walker)


@dataclass
class Differentiated:
    """A kernel's backward, lowered: the forward that saves what it asks for, and its programs."""

    derivation: Derivation
    forward: Lowered
    pieces: list[Lowered]


def differentiate(
    fn: Callable,
    signature: Signature,
    key: VariantKey,
    wrt: tuple[str, ...],
    given: tuple[str, ...],
    num_warps: int = 4,
    num_stages: int = 3,
    template: Template | None = None,
    deterministic: bool = True,
    poison: bool = False,
    joint: bool = False,
    segments: Mapping[int, int] | None = None,
) -> Differentiated:
    """The backward of one variant with respect to ``wrt``, from the cotangents of ``given``.

    ``joint``, ``segments``: as ``codegen.grad.plan.derive`` has them.

    Raises:
        CompileError: if the kernel is not legal, or no gradient flows through what it is made of;
            with the line of the kernel and what to do instead.
    """
    derivation, walker = derivation_of(
        fn, signature, key, wrt, given, template, deterministic, joint, segments
    )
    ir = derivation.forward
    if not any("rings" in op.attrs for op in ir.body.walk()):
        template = None  # its loop makes one trip, and is none any more
    forward = finish(ir, key, num_warps, num_stages, template, poison, walker=walker)
    pieces = []
    for piece in derivation.pieces:
        if key.machine:
            piece.fn.schedule = plan_piece(piece.fn, key.machine, num_warps, num_stages)
        pieces.append(finish(piece.fn, key, num_warps, num_stages, None, poison, walker=walker))
    return Differentiated(derivation, forward, pieces)


def derivation_of(
    fn: Callable,
    signature: Signature,
    key: VariantKey,
    wrt: tuple[str, ...],
    given: tuple[str, ...],
    template: Template | None = None,
    deterministic: bool = True,
    joint: bool = False,
    segments: Mapping[int, int] | None = None,
) -> tuple[Derivation, Walker]:
    """The tile IR of a backward before any pass, and the walk that it came from; as above."""
    ir, walker = _walk(fn, signature, key, template)
    prepare(ir)
    try:
        derivation = derive(ir, wrt, given, deterministic, joint, segments)
    except (NoGradient, IRError) as e:
        loc = e.op.loc if isinstance(e, NoGradient) and e.op is not None else ir.loc
        fix = f"\n  fix: {e.fix}" if e.fix else ""
        raise CompileError(loc, f"{signature.name} has no derivative: {e.message}{fix}") from None
    return derivation, walker


def _walk(
    fn: Callable, signature: Signature, key: VariantKey, template: Template | None = None
) -> tuple[Function, Walker]:
    static = dict(key.static)
    signature = signature.settled(dict(key.constants))
    subs = {sym(n): sympy.Integer(v) for n, v in static.items()}
    ir = Function(signature.name, wide=key.wide, aligned=key.aligned)
    ir.dims = [d for d in signature.dims if d.name not in static]
    dtypes = {n: DTYPES[d] for n, d in key.dtypes}
    for d in ir.dims:
        ir.facts.ranges[d] = (sympy.Integer(0), None)
    _dimension_facts(signature, ir, subs)
    constants = dict(key.constants)
    arguments: dict[str, object] = {}
    symbols = {d.name for d in ir.dims}
    for p in signature.parameters:
        if isinstance(p.spec, ConstSpec):
            arguments[p.name] = constants[p.name]
            continue
        if p.spec.optional and p.name not in key.present:
            arguments[p.name] = None
            continue
        if isinstance(p.spec, TensorSpec):
            dims = tuple(d.subs(subs) for d in p.spec.dims)
            labels = tuple(str(d) for d in p.spec.dims)
            param = Param(p.name, p.spec.role, dtypes[p.name], dims, key.unit, labels=labels)
            if param.dtype.is_complex:
                param.dtype, param.pair = f32, True
                param.dims, param.labels = (*dims, sympy.Integer(2)), (*labels, "2")
            arguments[p.name] = TensorRef(param)
        else:
            param = Param(p.name, "scalar", p.spec.dtype)
        ir.params.append(param)
    # Every name that the generated text may use is taken from the start.
    symbols |= {p.name for p in signature.parameters} | {d.name for d in signature.dims}
    symbols |= {ROW.name, COL.name}
    builder = Builder(ir, static, _value_facts(signature, subs), [Region()], symbols=symbols)
    ir.body = builder.regions[0]
    source = Source.of(fn)
    ir.loc = source.loc(source.tree)
    builder.loc = ir.loc
    builder.template = template
    _bind_scalars(signature, key, builder, arguments)
    walker = Walker(builder)
    token = _CURRENT.set(builder)
    try:
        walker.run(fn, arguments)
        _finish(signature, builder, source)
    except IRError as e:
        raise CompileError(ir.loc, str(e)) from None
    finally:
        _CURRENT.reset(token)
    return ir, walker


def _bind_scalars(signature: Signature, key: VariantKey, b: Builder, arguments: dict) -> None:
    for p in signature.parameters:
        if not isinstance(p.spec, ScalarSpec) or (p.spec.optional and p.name not in key.present):
            continue
        if p.spec.dtype.is_float:
            arguments[p.name] = b.op("argument", attrs={"param": p.name})
            arguments[p.name].hint = p.name
        else:
            s = sym(p.name)
            low, high = b.conditions.get(p.name, (None, None))
            b.fn.facts.ranges[s] = (low, high)
            arguments[p.name] = s


def _finish(signature: Signature, b: Builder, source: Source) -> None:
    b.emit("yield", [])
    if b.template is not None and not b.fn.pipelined:
        raise IRError(
            f"a tk.{b.template.kind} kernel runs no hooks",
            "tk.run(count, setup, load, compute, ...) at its end",
        )
    if not b.fn.grid:
        raise IRError("the kernel has no grid", 'i = tk.grid(tk.cdiv("N", rows)) at its top')
    for p in b.fn.params:
        if p.role == "out" and p.name not in b.stored:
            raise IRError(
                f"the output {p.name} is never stored", f"tk.store({p.name}, tile, coord)"
            )
        stores = {op.kind for op in b.fn.body.walk() if op.attrs.get("param") == p.name}
        p.zeroed = p.role == "out" and bool(stores) and stores <= {"store_add", "scatter_add_rows"}


def _dimension_facts(signature: Signature, fn: Function, subs: dict) -> None:
    """Preconditions on dimensions as facts: divisibility as an equation, order as a range."""
    names = {d.name for d in signature.dims}
    for c in signature.conditions:
        if not c.names <= names:
            continue
        try:
            e = parse(c.source).subs(subs)
        except ValueError:
            continue
        for part in sympy.And.make_args(e):
            _one_fact(part, fn)


def _one_fact(part: Expr, fn: Function) -> None:
    from codegen.expr import FloorMod

    if isinstance(part, sympy.Eq) and isinstance(part.lhs, FloorMod) and part.rhs == 0:
        whole, divisor = part.lhs.args
        # The sizes in a product are at least one if the product is; in a sum they need not be.
        if isinstance(whole, Symbol) and all(
            f.is_Integer or isinstance(f, Symbol) for f in sympy.Mul.make_args(divisor)
        ):
            quotient = sym(f"_{whole.name}_by_{divisor}")
            fn.facts.ranges[quotient] = (sympy.Integer(0), None)
            fn.facts.equal[whole] = quotient * divisor
            for s in divisor.free_symbols:
                fn.facts.ranges[s] = (sympy.Integer(1), None)
    elif isinstance(part, sympy.Ge | sympy.Gt) and isinstance(part.lhs, Symbol):
        low = part.rhs + (1 if isinstance(part, sympy.Gt) else 0)
        fn.facts.ranges[part.lhs] = (low, None)
    elif isinstance(part, sympy.Le | sympy.Lt) and isinstance(part.rhs, Symbol):
        low = part.lhs + (1 if isinstance(part, sympy.Lt) else 0)
        fn.facts.ranges[part.rhs] = (low, None)


def _value_facts(signature: Signature, subs: dict) -> dict:
    """Ranges of integers loaded from tensors or passed as scalars, from ``0 <= t < V``."""
    import ast

    out: dict[str, tuple[Expr | None, Expr | None]] = {}
    tensors = {p.name for p in signature.tensors} | {p.name for p in signature.scalars}
    for c in signature.conditions:
        if not isinstance(c.tree, ast.Compare):
            continue
        sides = [c.tree.left, *c.tree.comparators]
        for a, op, b in zip(sides, c.tree.ops, sides[1:], strict=False):
            if not isinstance(op, ast.Lt | ast.LtE | ast.Gt | ast.GtE):
                continue
            less, more = (a, b) if isinstance(op, ast.Lt | ast.LtE) else (b, a)
            strict = 1 if isinstance(op, ast.Lt | ast.Gt) else 0
            for name_node, other, is_low in ((more, less, True), (less, more, False)):
                if not (isinstance(name_node, ast.Name) and name_node.id in tensors):
                    continue
                try:
                    bound = parse(ast.unparse(other)).subs(subs)
                except ValueError:
                    continue
                if {s.name for s in bound.free_symbols} & tensors:
                    continue
                low, high = out.get(name_node.id, (None, None))
                out[name_node.id] = (bound + strict, high) if is_low else (low, bound - strict)
    return out


__all__ = ["DType", "FloorDiv", "Lowered", "VariantKey", "find_static", "lower"]

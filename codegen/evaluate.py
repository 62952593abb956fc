"""What tile IR means: an evaluator on numpy arrays that hold live elements and nothing else.

It is the third opinion beside Triton's interpreter and compiled code, and the one in which dead
elements cannot matter because they do not exist. Floats are float64 throughout, so it also tells
what a kernel computes without rounding. One program of the grid runs after the other.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import sympy

from codegen.expr import Boolean, Expr, Symbol, symbols_of, text
from codegen.ir import Axis, DType, Function, Op, Region, Type, Value, bool_
from codegen.ops import TABLE
from codegen.ops.elementwise import integers
from codegen.ops.mask import COL, ROW


def evaluate(
    fn: Function,
    tensors: Mapping[str, np.ndarray],
    scalars: Mapping[str, float | int],
    known: Mapping[Symbol, int] | None = None,
) -> None:
    """Runs all programs of ``fn``; arrays in ``tensors`` named as outputs are written in place.

    Args:
        tensors: an array for every tensor parameter, of the parameter's rank. Floats in float64.
        scalars: a number for every scalar parameter.
        known: sizes that the shapes of the arrays do not tell, or not simply.
    """
    sizes: dict[Symbol, int] = dict(known or {})
    for p in fn.params:
        if p.role == "scalar":
            sizes[Symbol(p.name, integer=True)] = scalars[p.name]  # type: ignore
            continue
        for size, n in zip(p.dims, tensors[p.name].shape, strict=True):
            if isinstance(size, Symbol):
                sizes[size] = n
            elif len(size.free_symbols) == 1 and not size.free_symbols & set(sizes):
                (s,) = size.free_symbols
                sizes[s] = (n - int(size.coeff(s, 0))) // int(size.coeff(s, 1))
    counts = [int(count.subs(sizes)) for _, count in fn.grid]
    for position in itertools.product(*map(range, counts)):
        program = dict(zip((s for s, _ in fn.grid), position, strict=True))
        _Program(fn, dict(tensors), dict(scalars), {**sizes, **program}).region(fn.body)


@functools.lru_cache(1 << 12)
def _compiled(e: Expr | Boolean) -> tuple[Callable[..., int | bool], tuple[Symbol, ...]]:
    """``e`` as a function of its symbols, and these in order: sympy would substitute slowly."""
    needed = tuple(sorted(symbols_of(e), key=lambda s: s.name))
    names = {s: f"s{k}" for k, s in enumerate(needed)}
    return eval(f"lambda {', '.join(names.values())}: {text(e, names.__getitem__)}"), needed


@dataclass
class _Program:
    fn: Function
    tensors: dict[str, np.ndarray]
    scalars: dict[str, float | int]
    symbols: dict[Symbol, int]
    values: dict[Value, object] = field(default_factory=dict)

    def number(self, e: Expr | int) -> int:
        return e if isinstance(e, int) else int(self._at(e))

    def truth(self, e: Boolean) -> bool:
        return e if isinstance(e, bool) else bool(self._at(e))

    def _at(self, e: Expr | Boolean) -> int | bool:
        function, needed = _compiled(e)
        return function(*[self.symbols[s] for s in needed])

    def extent(self, axis: Axis) -> tuple[int, ...]:
        return tuple(
            max(0, min([f.side, *(self.number(b) for b in f.bounds)])) for f in axis.factors
        )

    def shape(self, type_: Type) -> tuple[int, ...]:
        return tuple(int(np.prod(self.extent(a))) for a in type_.axes)

    # -- regions ---------------------------------------------------------------------------

    def region(self, region: Region) -> list[object]:
        for op in region.ops:
            if op.kind == "yield":
                return [self.values[v] for v in op.operands]
            self.op(op)
        return []

    def bind(self, value: Value, x: object) -> None:
        if value.type.axes:
            # A value may be used where a smaller live extent is expected.
            x = np.asarray(x)[tuple(slice(n) for n in self.shape(value.type))]
            if value.type.dtype.kind == "int":
                x = x.astype(integers(value.type.dtype))  # wraps
        self.values[value] = x
        if value.symbol is not None:
            self.symbols[value.symbol] = int(x)  # type: ignore

    def op(self, op: Op) -> None:
        handler = getattr(self, f"do_{op.kind}", None)
        if handler is not None:
            out = handler(op)
        elif TABLE[op.kind].elementwise:
            out = self.elementwise(op)
        else:
            meaning = TABLE[op.kind].numpy
            assert meaning is not None, op.kind
            with np.errstate(all="ignore"):
                out = meaning(op, *[self.values[v] for v in op.operands])
        if isinstance(out, list):  # one a result
            for v, x in zip(op.results, out, strict=True):
                self.bind(v, x)
        elif op.results:
            self.bind(op.result, out)

    def do_for(self, op: Op) -> list[object]:
        carried = [self.values[v] for v in op.operands]
        body = op.regions[0]
        trips = range(self.number(op.attrs["start"]), self.number(op.attrs["stop"]))  # type: ignore
        for k in reversed(trips) if op.attrs.get("reverse") else trips:
            self.symbols[op.attrs["index"]] = k  # type: ignore
            for a, x in zip(body.args, carried, strict=True):
                self.bind(a, x)
            carried = self.region(body)
        return carried

    def do_if(self, op: Op) -> list[object]:
        taken = self.truth(op.attrs["cond"]) if "cond" in op.attrs else self.values[op.operands[0]]  # type: ignore
        return self.region(op.regions[0 if taken else 1])

    def do_associative_scan(self, op: Op) -> list[object]:
        axis, region = op.attrs["axis"], op.regions[0]
        shape = self.shape(op.result.type)
        cut = tuple(slice(n) for n in shape)
        arrays = [np.asarray(self.values[v])[cut] for v in op.operands]
        if op.attrs["reverse"]:
            arrays = [np.flip(x, axis) for x in arrays]  # type: ignore[call-overload]
        lines = [np.moveaxis(x, axis, 0) for x in arrays]  # type: ignore[arg-type]
        outs = [np.empty_like(x) for x in lines]
        for k in range(shape[axis]):  # type: ignore[index]
            now = [x[k] for x in lines]
            if k:
                for v, x in zip(region.args, [o[k - 1] for o in outs] + now, strict=True):
                    self.values[v] = x
                now = self.region(region)  # type: ignore[assignment]
            for o, x in zip(outs, now, strict=True):
                o[k] = x
        back = [np.moveaxis(o, 0, axis) for o in outs]  # type: ignore[arg-type]
        return [np.flip(o, axis) if op.attrs["reverse"] else o for o in back]  # type: ignore

    # -- creation --------------------------------------------------------------------------

    def do_const(self, op: Op):
        return op.attrs["value"]

    def do_argument(self, op: Op):
        return self.scalars[op.attrs["param"]]  # type: ignore

    def do_index(self, op: Op):
        return self.number(op.attrs["expr"])  # type: ignore

    def do_cond(self, op: Op):
        return self.truth(op.attrs["expr"])  # type: ignore

    def do_full(self, op: Op):
        return np.full(self.shape(op.result.type), op.attrs["value"], _numpy(op.result.type.dtype))

    def do_splat(self, op: Op):
        value = self.values[op.operands[0]]
        return np.full(self.shape(op.result.type), value, _numpy(op.result.type.dtype))

    def do_iota(self, op: Op):
        return self.number(op.attrs["start"]) + np.arange(self.shape(op.result.type)[0])  # type: ignore

    # -- maps ------------------------------------------------------------------------------

    def elementwise(self, op: Op):
        if op.kind == "cast":
            dtype = op.attrs["dtype"]
            x = np.asarray(self.values[op.operands[0]])
            return x.astype(_numpy(dtype)) if dtype.kind != "float" else x.astype(np.float64)  # type: ignore
        shape = self.shape(op.result.type)
        arrays = []
        for v in op.operands:
            x = np.asarray(self.values[v])
            if v.type.rank == 1 and len(shape) == 2:
                n = shape[0] if v.type.orient == "col" else shape[1]
                x = x[:n, None] if v.type.orient == "col" else x[None, :n]
            elif v.type.rank:
                x = x[tuple(slice(n) for n in shape)]
            arrays.append(x)
        dtype = op.result.type.dtype
        if dtype == bool_:
            dtype = max((v.type for v in op.operands), key=lambda t: t.rank).dtype
        if dtype.kind == "int" and any(v.type.rank for v in op.operands):
            # A shift's count and a condition have types of their own.
            skip = {"shl": 1, "shr": 1, "where": 0}.get(op.kind)
            arrays = [x if k == skip else x.astype(integers(dtype)) for k, x in enumerate(arrays)]
        meaning = TABLE[op.kind].numpy
        assert meaning is not None
        with np.errstate(all="ignore"):
            out = np.asarray(meaning(*arrays))
            return np.broadcast_to(out, shape) if shape else out

    def do_keep(self, op: Op):
        x = np.asarray(self.values[op.operands[0]])
        pred = sympy.sympify(op.attrs["pred"]).subs(self.symbols)
        if pred in (sympy.true, sympy.false):
            mask = np.full(x.shape, bool(pred))
        else:
            rows, cols = np.meshgrid(*map(np.arange, x.shape), indexing="ij")
            mask = np.broadcast_to(sympy.lambdify((ROW, COL), pred, "numpy")(rows, cols), x.shape)
        return np.where(mask, x, op.attrs["value"])  # type: ignore

    def do_retype(self, op: Op):
        return self.values[op.operands[0]]

    def do_fill_dead(self, op: Op):
        x = np.asarray(self.values[op.operands[0]])
        out = np.full(self.shape(op.result.type), op.attrs["value"], x.dtype)
        out[tuple(slice(n) for n in x.shape)] = x
        return out

    # -- structure -------------------------------------------------------------------------

    def do_subtile(self, op: Op):
        meaning = TABLE["subtile"].numpy
        assert meaning is not None
        return meaning(op, self.values[op.operands[0]], self.number(op.attrs["start"]))  # type: ignore

    def do_place(self, op: Op):
        x, axis = np.asarray(self.values[op.operands[0]]), op.attrs["axis"]
        out = np.zeros(self.shape(op.result.type), x.dtype)
        start = self.number(op.attrs["start"])  # type: ignore
        cut: list[slice] = [slice(n) for n in out.shape]
        cut[axis] = slice(start, start + x.shape[axis])  # type: ignore
        into = out[tuple(cut)]
        into[...] = x[tuple(slice(n) for n in into.shape)]
        return out

    def do_barrier(self, op: Op) -> None:
        return None

    def do_concat(self, op: Op):
        shape, axis = self.shape(op.result.type), op.attrs["axis"]
        parts = []
        for v in op.operands:
            x = np.asarray(self.values[v])
            cut = [slice(None) if k == axis else slice(n) for k, n in enumerate(shape)]
            parts.append(x[tuple(cut)])
        return np.concatenate(parts, axis)  # type: ignore

    def do_broadcast(self, op: Op):
        v = np.asarray(self.values[op.operands[0]])
        spread: np.ndarray = v[:, None] if op.attrs["orient"] == "col" else v[None, :]
        return np.broadcast_to(spread, self.shape(op.result.type))

    def do_mma(self, op: Op):
        arrays = [np.asarray(self.values[v]) for v in op.operands]
        a = arrays[0].T if op.attrs["ta"] else arrays[0]
        b = arrays[1].T if op.attrs["tb"] else arrays[1]
        if a.dtype.kind in "iu":
            a, b = a.astype(np.int64), b.astype(np.int64)
        inner = min(a.shape[1], b.shape[0])  # live where both are
        out = a[:, :inner] @ b[:inner]
        if len(arrays) == 3:
            rows, cols = self.shape(op.result.type)
            out = out[:rows, :cols] + arrays[2][:rows, :cols]
        return out

    def do_row_outer(self, op: Op):
        a, b = (np.asarray(self.values[v]) for v in op.operands)
        n = min(len(a), len(b))
        return (a[:n, :, None] * b[:n, None, :]).reshape(n, -1)

    # -- memory ----------------------------------------------------------------------------

    def _where(self, op: Op, shape_of: Type | None) -> tuple[list[np.ndarray], np.ndarray]:
        """Open index arrays into the tensor and the mask of elements inside it, tile-shaped."""
        tensor = self.tensors[op.attrs["param"]]  # type: ignore
        starts = [self.number(e) for e in op.attrs["start"]]  # type: ignore
        tile = op.attrs["tile"]
        axes = shape_of.axes if shape_of else ()
        index: list[np.ndarray] = [np.array(s) for s in starts]
        rank = len(tile)  # type: ignore
        for a, which in enumerate(tile):  # type: ignore
            extents = self.extent(axes[a])
            grids = np.unravel_index(np.arange(int(np.prod(extents))), extents) if extents else ()
            for d, g in zip(which, grids, strict=True):
                spread = [1] * rank
                spread[a] = -1
                index[d] = (starts[d] + g).reshape(spread)
        if "row_dim" in op.attrs:
            return index, np.array(True)
        inside = np.array(True)
        for d, i in enumerate(index):
            inside = inside & (i >= 0) & (i < tensor.shape[d])
        for which, limit in zip(tile, op.attrs["limit"], strict=True):  # type: ignore
            if limit is not None:
                inside = inside & (index[which[0]] < self.number(limit))
        return index, inside

    def do_load(self, op: Op):
        tensor = self.tensors[op.attrs["param"]]  # type: ignore
        index, inside = self._where(op, op.result.type if op.attrs["tile"] else None)
        safe = [np.clip(i, 0, max(0, n - 1)) for i, n in zip(index, tensor.shape, strict=True)]
        x = tensor[tuple(safe)] if tensor.size else np.zeros(np.broadcast(*safe).shape)
        return np.where(inside, x, 0) if op.attrs["tile"] else (x.item() if inside else 0)

    def _store(self, op: Op, combine: np.ufunc | None) -> None:
        tensor = self.tensors[op.attrs["param"]]  # type: ignore
        value = self.values[op.operands[0]]
        index, inside = self._where(op, op.operands[0].type if op.attrs["tile"] else None)
        full = np.broadcast_arrays(np.asarray(value), inside, *index)
        mask = full[1].astype(bool)
        places = tuple(i[mask] for i in full[2:])
        if combine is not None:
            combine.at(tensor, places, full[0][mask])
        else:
            tensor[places] = full[0][mask]

    def do_store(self, op: Op) -> None:
        self._store(op, None)

    def do_store_add(self, op: Op) -> None:
        self._store(op, np.add)

    def do_store_min(self, op: Op) -> None:
        self._store(op, np.fmin)

    def do_store_max(self, op: Op) -> None:
        self._store(op, np.fmax)

    def _rows(self, op: Op, rows: np.ndarray, axis: Axis):
        tensor = self.tensors[op.attrs["param"]]  # type: ignore
        d = op.attrs["row_dim"]
        index, _ = self._where(op, Type(DTYPE, (axis,)))
        index = [i[None, :] if i.ndim == 1 else i for i in index]
        index[d] = rows[:, None]  # type: ignore
        inside = np.array(True)
        for i, n in zip(index, tensor.shape, strict=True):
            inside = inside & (i >= 0) & (i < n)
        return tensor, np.broadcast_arrays(inside, *index)

    def do_gather_rows(self, op: Op):
        rows = np.asarray(self.values[op.operands[0]])
        tensor, (inside, *index) = self._rows(op, rows, op.result.type.axes[1])
        safe = [np.clip(i, 0, max(0, n - 1)) for i, n in zip(index, tensor.shape, strict=True)]
        return np.where(inside, tensor[tuple(safe)], 0)

    def _scatter(self, op: Op, add: bool) -> None:
        value, rows = (np.asarray(self.values[v]) for v in op.operands)
        n = min(len(value), len(rows))
        tensor, (inside, *index) = self._rows(op, rows[:n], op.operands[0].type.axes[1])
        places = tuple(i[inside] for i in index)
        if add:
            np.add.at(tensor, places, value[:n][inside])
        else:
            tensor[places] = value[:n][inside]

    def do_scatter_rows(self, op: Op) -> None:
        self._scatter(op, False)

    def do_scatter_add_rows(self, op: Op) -> None:
        self._scatter(op, True)


def _numpy(dtype: DType):
    if dtype.kind == "int":
        return integers(dtype)
    return {"float": np.float64, "bool": np.bool_}[dtype.kind]


DTYPE = DType("f32", "float32", 32, "float")

"""Where a tile lies in memory, as Triton says it: index vectors, masks, pointers, descriptors."""

from __future__ import annotations

import sympy

from codegen.expr import And, Expr, Not, Or
from codegen.ir import (
    Axis,
    Factor,
    Op,
    Type,
    Value,
)
from codegen.ops.base import ADD, ATOM, MUL
from codegen.ops.mask import COL, ROW
from codegen.writer import Writer, stride_name


class Access(Writer):
    """Writes index vectors, masks of live elements, and accesses."""

    def vector(self, start: Expr, block: int, wanted: str) -> str:
        """The name of ``start + arange(0, block)``."""
        start = sympy.expand(start)
        lanes = f"tl.arange(0, {block})" + (".to(tl.int64)" if self.fn.wide else "")
        body = (
            lanes
            if start == 0
            else f"{self.index(start, ADD) if start.is_Add else self.index(start)} + {lanes}"
        )
        return self.share(("vector", start, block), wanted, body, start.free_symbols)

    def factor_vectors(self, axis: Axis, starts: list[Expr], wanted: list[str]) -> list[str]:
        """One index vector a factor; those of a flattened axis count within it."""
        if axis.simple:
            return [self.vector(starts[0], axis.block, wanted[0])]
        out, stride = [], axis.block
        flat = self.vector(sympy.Integer(0), axis.block, "flat")
        for k, (f, start, want) in enumerate(zip(axis.factors, starts, wanted, strict=True)):
            stride //= f.block
            body = flat if stride == 1 else f"{flat} // {stride}"
            if k:
                body = f"{body} % {f.block}" if stride == 1 else f"({body}) % {f.block}"
            if start != 0:
                body = f"{self.index(start, ADD)} + {body}"
            blocks = tuple(g.block for g in axis.factors)
            key = ("factor", start, blocks, k)
            out.append(self.share(key, want, body, start.free_symbols))
        return out

    def _below(self, bound: Expr, axis: Axis, k: int, names: list[str]) -> str:
        """The condition that element ``bound`` of factor ``k`` has not been reached."""
        bound = sympy.expand(bound)
        start = sympy.Integer(0)
        for term in sympy.Add.make_args(bound):
            if term.free_symbols and term.as_coeff_Mul()[0] < 0:
                start -= term
        limit = sympy.expand(bound + start)
        if not axis.simple:
            blocks = [sympy.Integer(0)] * len(axis.factors)
            return f"{self.factor_vectors(axis, blocks, names)[k]} < {self.index(bound)}"
        return f"{self.vector(start, axis.block, names[0])} < {self.index(limit)}"

    def axis_mask(self, axis: Axis, names: list[str] | None = None) -> list[str]:
        """Conditions, as vectors along ``axis``, under which an element is live."""
        names = names or ["lane"] * len(axis.factors)
        out = []
        for k, f in enumerate(axis.factors):
            bounds = list(f.bounds)
            if f.side < f.block and not any(b.is_Integer for b in bounds):
                bounds.append(sympy.Integer(f.side))
            out += [self._below(b, axis, k, names) for b in bounds]
        return out

    def live_mask(self, type_: Type, axes: tuple[int, ...] | None = None) -> str:
        """The mask of live elements, along ``axes`` only if they are given."""
        conditions = [
            (c, k)
            for k, a in enumerate(type_.axes)
            if axes is None or k in axes
            for c in self.axis_mask(a)
        ]
        return self._join(conditions, type_.rank, [])

    def _join(self, conditions: list[tuple[str, int]], rank: int, scalars: list[str]) -> str:
        """Conditions a (text, axis) joined along each axis, then across axes, then scalars."""
        parts = []
        for k in range(rank):
            mine = list(dict.fromkeys(c for c, axis in conditions if axis == k))
            if not mine:
                continue
            body = " & ".join(f"({c})" for c in mine) if len(mine) > 1 else mine[0]
            spread = "" if rank == 1 else ("[:, None]" if k == 0 else "[None, :]")
            parts.append(f"({body}){spread}" if spread else body)
        parts += [f"({c})" for c in scalars]
        if len(parts) == 1:
            return parts[0]
        body = " & ".join(p if p.startswith("(") and " & " not in p else f"({p})" for p in parts)
        return self.share_text(body, "live") if len(body) > 30 else body

    def relation(self, pred, type_: Type) -> str:
        """The mask tile of a predicate over ``_r`` and ``_c``."""
        if isinstance(pred, And | Or):
            glue = " & " if isinstance(pred, And) else " | "
            parts = sorted((self.relation(a, type_) for a in pred.args), key=str)
            return glue.join(f"({p})" for p in parts)
        if isinstance(pred, Not):
            return f"~({self.relation(pred.args[0], type_)})"
        if pred in (sympy.true, sympy.false):
            return f"tl.full({self.shape(type_)}, {int(pred == sympy.true)}, tl.int1)"
        word = pred.rel_op
        diff = sympy.expand(pred.lhs - pred.rhs)
        c, r = diff.coeff(COL), diff.coeff(ROW)
        rest = sympy.expand(diff - c * COL - r * ROW)
        if not {c, r} <= {-1, 0, 1} or rest.has(ROW, COL):
            raise ValueError(f"mask predicate is not affine in row and column: {pred}")
        if c == -1 or (c == 0 and r == -1):
            c, r, rest = -c, -r, -rest
            word = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "==": "==", "!=": "!="}[word]
        terms = sympy.Add.make_args(sympy.expand(rest))
        down = -sympy.Add(*[t for t in terms if t.as_coeff_Mul()[0] < 0])
        up = sympy.expand(rest + down)
        rows, cols = type_.block
        if c and r == -1:
            # What does not change in the loop goes to the rows, whose vector is made before it.
            outer = sympy.Add(*[t for t in terms if not t.free_symbols & self.scopes[-1].symbols])
            left = self.vector(rest - outer, cols, "col") + "[None, :]"
            return f"{left} {word} {self.vector(-outer, rows, 'row')}[:, None]"
        if c and r == 1:
            left = f"{self.vector(up, cols, 'col')}[None, :]"
            right = f"{self.vector(sympy.Integer(0), rows, 'row')}[:, None]"
            return f"{left} + {right} {word} {self.index(down)}"
        if c:
            return f"({self.vector(up, cols, 'col')} {word} {self.index(down)})[None, :]"
        return f"({self.vector(up, rows, 'row')} {word} {self.index(down)})[:, None]"

    # -- memory ----------------------------------------------------------------------------

    def stride(self, param: str, d: int) -> str | None:
        """The text of a stride, or None where it is known to be one."""
        p = self.fn.param(param)
        if p.pair and d >= len(p.dims) - 2 and (p.unit_inner or d == len(p.dims) - 1):
            return "2" if d == len(p.dims) - 2 else None
        if d == len(p.dims) - 1 and p.unit_inner:
            return None
        return stride_name(p, d)

    def _base(self, op: Op, tiled: set[int]) -> tuple[str, list[str]]:
        """The pointer to the tile's first row and column, and the scalar conditions it needs."""
        param = self.fn.param(op.attrs["param"])
        terms, symbols, conditions = [f"{param.name}_ptr"], set(), []
        for d, start in enumerate(op.attrs["start"]):
            if d in tiled:
                continue
            low, high = op.attrs["checks"][d]
            if low:
                conditions.append(f"{self.index(start)} >= 0")
            if high:
                conditions.append(f"{self.index(start)} < {self.index(param.dims[d])}")
            if start == 0:
                continue
            stride = self.stride(param.name, d)
            terms.append(
                f"{self.index(start, MUL)} * {stride}" if stride else self.index(start, MUL)
            )
            symbols |= start.free_symbols
        if len(terms) == 1:
            return terms[0], conditions
        key = (
            "base",
            param.name,
            tuple(op.attrs["start"][d] if d not in tiled else None for d in range(len(param.dims))),
        )
        return self.share(key, f"{param.name}_base", " + ".join(terms), symbols), conditions

    def _vector_name(self, param, d: int) -> str:
        label = param.label(d)
        return f"offs_{label.lower()}" if label.isidentifier() else f"offs_{param.name}{d}"

    def _offset(self, vector: str, param: str, d: int, spread: str) -> str:
        stride = self.stride(param, d)
        return f"{vector}{spread}" + (f" * {stride}" if stride else "")

    def _axis_access(self, op: Op, a: int, axis: Axis, spread: str):
        """Offsets and conditions of tile axis ``a`` of an access."""
        param = self.fn.param(op.attrs["param"])
        which, limit = op.attrs["tile"][a], op.attrs["limit"][a]
        starts = [op.attrs["start"][d] for d in which]
        names = [self._vector_name(param, d) for d in which]
        vectors = self.factor_vectors(axis, starts, names)
        offsets, conditions = [], []
        for k, (d, v) in enumerate(zip(which, vectors, strict=True)):
            offsets.append(self._offset(v, param.name, d, spread))
            low, high = op.attrs["checks"][d]
            covered = set()
            if low:
                conditions.append(f"{v} >= 0")
            if high:
                conditions.append(f"{v} < {self.index(param.dims[d])}")
                covered.add(sympy.expand(param.dims[d] - starts[k]))
            if limit is not None:
                conditions.append(f"{v} < {self.index(limit)}")
                covered.add(sympy.expand(limit - starts[k]))
            f = axis.factors[k]
            bounds = [b for b in f.bounds if b not in covered]
            padded = f.side < f.block and not any(b.is_Integer for b in bounds)
            if padded and not (high and _reaches(param.dims[d] - starts[k], f.side)):
                bounds.append(sympy.Integer(f.side))
            for b in bounds:
                if high and sympy.expand(b + starts[k]) == param.dims[d]:
                    continue
                conditions.append(self._below(b, axis, k, names))
        return offsets, [(c, a) for c in conditions]

    def access(self, op: Op, tile, type_: Type) -> tuple[str, str | None]:
        """Pointer and mask of a load or store of ``type_`` (a scalar has no tile axes)."""
        tiled = {d for which in tile for d in which}
        base, scalars = self._base(op, tiled)
        rank = len(tile)
        parts, conditions = [base], []
        axes = type_.axes or tuple(
            Axis(tuple(Factor(s) for s in sides)) for sides in op.attrs["sides"]
        )
        for a in range(rank):
            spread = "" if rank == 1 else ("[:, None]" if a == 0 else "[None, :]")
            offsets, conds = self._axis_access(op, a, axes[a], spread)
            parts += offsets
            conditions += conds
        mask = self._join(conditions, rank, scalars) if conditions or scalars else None
        if mask and rank and not conditions:
            mask = f"tl.full({self.shape(type_)}, 1, tl.int1) & {mask}"
        return " + ".join(parts), mask

    def described(self, op: Op, type_: Type) -> tuple[str, str]:
        """The tensor descriptor of an access, made once, and the coordinates of its block."""
        param = self.fn.param(op.attrs["param"])
        dims = [which[0] for which in op.attrs["tile"]]
        base, _ = self._base(op, set(dims))
        ends = [
            param.dims[d] if limit is None else limit
            for d, limit in zip(dims, op.attrs["limit"], strict=True)
        ]
        shape = ", ".join(self.index(e) for e in ends)
        strides = ", ".join(self.stride(param.name, d) or "1" for d in dims)
        block = ", ".join(map(str, type_.block))
        body = f"tl.make_tensor_descriptor({base}, [{shape}], [{strides}], [{block}])"
        starts = [s for d, s in enumerate(op.attrs["start"]) if d not in dims]
        symbols = {x for e in (*starts, *ends) for x in e.free_symbols}
        name = self.share(("descriptor", body), f"{param.name}_desc", body, symbols)
        return name, ", ".join(self.index(op.attrs["start"][d]) for d in dims)

    def access_rows(self, op: Op, rows: Value, type_: Type) -> tuple[str, str]:
        """Pointer and mask of rows chosen by an index vector."""
        param, d = self.fn.param(op.attrs["param"]), op.attrs["row_dim"]
        tiled = {d} | {x for which in op.attrs["tile"] for x in which}
        base, scalars = self._base(op, tiled)
        names = self.ref(rows, ATOM)
        offset = f"{names}[:, None]"
        stride = self.stride(param.name, d)
        wide = ".to(tl.int64)" if self.fn.wide else ""
        offset = f"{offset}{wide} * {stride}" if stride else offset + wide
        conditions = [(c, 0) for c in self.axis_mask(type_.axes[0])]
        conditions += [(c, 0) for c in self.axis_mask(rows.type.axes[0])]
        conditions += [(f"{names} >= 0", 0), (f"{names} < {self.index(param.dims[d])}", 0)]
        # The access describes only the columns; seen from it they are its first tile axis.
        offsets, conds = self._axis_access(op, 0, type_.axes[1], "[None, :]")
        conditions += [(c, 1) for c, _ in conds]
        return " + ".join([base, offset, *offsets]), self._join(conditions, 2, scalars)

    # -- operations ------------------------------------------------------------------------


def _reaches(bound: Expr, side: int) -> bool:
    """True if the tensor's own bound already stops at the side."""
    bound = sympy.expand(bound)
    return bool(bound.is_Integer and int(bound) <= side)

"""Python's syntax as the walker sees it: operator tables, small questions about trees."""

from __future__ import annotations

import ast
import difflib
import operator

import sympy

from codegen.expr import FloorDiv, FloorMod
from codegen.ir import Region, Type, Value

OPERATORS = {
    ast.Add: ("add", operator.add),
    ast.Sub: ("sub", operator.sub),
    ast.Mult: ("mul", operator.mul),
    ast.Div: ("div", operator.truediv),
    ast.FloorDiv: ("floordiv", lambda a, b: FloorDiv(sympy.sympify(a), sympy.sympify(b))),
    ast.Mod: ("mod", lambda a, b: FloorMod(sympy.sympify(a), sympy.sympify(b))),
    ast.BitAnd: ("and", operator.and_),
    ast.BitOr: ("or", operator.or_),
    ast.BitXor: ("xor", operator.xor),
    ast.Pow: ("pow", operator.pow),
    ast.MatMult: ("mma", None),
    ast.LShift: ("shl", operator.lshift),
    ast.RShift: ("shr", operator.rshift),
}
COMPARISONS = {
    ast.Lt: ("lt", operator.lt, sympy.Lt),
    ast.LtE: ("le", operator.le, sympy.Le),
    ast.Gt: ("gt", operator.gt, sympy.Gt),
    ast.GtE: ("ge", operator.ge, sympy.Ge),
    ast.Eq: ("eq", operator.eq, sympy.Eq),
    ast.NotEq: ("ne", operator.ne, sympy.Ne),
}


MAX_UNROLL = 256  # trips of a Python loop in a kernel

INSTEAD = {
    "With": "there is nothing to manage in a kernel",
    "Try": "a kernel cannot fail part-way; state preconditions in @tk.kernel(where=[...])",
    "Raise": "state preconditions in @tk.kernel(where=[...])",
    "FunctionDef": "define it outside and decorate it with @tk.function",
    "ClassDef": "use tuples",
    "GeneratorExp": "write a list, [...]; it is unrolled",
    "DictComp": "use tuples",
    "Dict": "use tuples",
    "Set": "use tuples",
    "Import": "import at the top of the file",
    "ImportFrom": "import at the top of the file",
    "Global": "kernels only read globals",
    "Nonlocal": "kernels only read outer names",
    "Delete": "names need not be deleted",
    "Break": "bound the loop with tk.range(..., until=...)",
    "Continue": "use an `if`",
    "Await": "kernels are not coroutines",
    "Yield": "kernels are not generators",
    "NamedExpr": "assign on a line of its own",
}


def words(node: ast.AST) -> str:
    text = ast.unparse(node).splitlines()[0]
    return text if len(text) < 60 else text[:57] + "..."


def sign(op: ast.operator) -> str:
    return {
        ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.FloorDiv: "//", ast.Mod: "%",
        ast.Pow: "**", ast.MatMult: "@", ast.BitAnd: "&", ast.BitOr: "|", ast.BitXor: "^",
        ast.LShift: "<<", ast.RShift: ">>",
    }[type(op)]  # fmt: skip


def sign_of(kind: str) -> str:
    return {"floordiv": "//", "mod": "%", "and": "&", "or": "|", "xor": "^", "shl": "<<",
            "shr": ">>"}[kind]  # fmt: skip


def target_names(target: ast.expr) -> list[str]:
    if isinstance(target, ast.Name):
        return [target.id]
    if isinstance(target, ast.Tuple) and all(isinstance(t, ast.Name) for t in target.elts):
        return [t.id for t in target.elts]  # type: ignore[attr-defined]
    return []


def assigned(body: list[ast.stmt]) -> list[str]:
    """Names that a block may assign, in order of appearance."""
    out: dict[str, None] = {}
    for statement in body:
        for node in ast.walk(statement):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                out[node.id] = None
    return list(out)


def same(a: object, b: object) -> bool:
    if a is b:
        return True
    if isinstance(a, Value) or isinstance(b, Value):
        return False
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    try:
        return type(a) is type(b) and bool(a == b)
    except Exception:
        return False


def same_axes(a: Type, b: Type) -> bool:
    return all(x.same_shape(y) for x, y in zip(a.axes, b.axes, strict=True))


def compatible(a: Type, b: Type) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.orient == b.orient and same_axes(a, b)


def defined_symbols(region: Region) -> set:
    out = {v.symbol for op in region.walk() for v in op.results if v.symbol is not None}
    out |= {op.attrs["index"] for op in region.walk() if op.kind == "for"}
    return out | {a.symbol for a in region.args if a.symbol is not None}


def hashable(x: object) -> bool:
    try:
        hash(x)
    except TypeError:
        return False
    return True


def closest(name: str, among) -> str:
    found = difflib.get_close_matches(name, [n for n in among if not n.startswith("__")], 1)
    return found[0] if found else ""

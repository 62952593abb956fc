"""A private second copy of `triton.language`, imported from Triton's own files.

Stock Triton interprets every kernel of a process or none: it reads TRITON_INTERPRET when it is
imported and patches `triton.language` in place while a kernel runs. Here the files of
`triton.language` and of the interpreter are imported a second time under the name
`tkpy_interpreted_triton`, with their imports of each other redirected. The copy is bound to numpy
once and for ever (interpreter_ops.py), so nothing is patched at a launch, no lock is needed, and
the real `triton.language` never notices.

The same rewriting gives a `@jit` function, in the copy or in a generated module, the meaning that
Triton's compiler gives to Python: see `_Redirect`.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import importlib.abc
import importlib.util
import math
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import triton

PRIVATE = "tkpy_interpreted_triton"


class _Redirect(ast.NodeTransformer):
    """Point imports at the private copy, and give jit functions the compiler's meaning of Python.

    Inside a `@jit` function: `x = 3` makes a tensor, loop indices are tensors, `and`/`or`/`not`
    work on tiles, and `range`, `min`, `max` are Triton's. Line numbers are kept, so tracebacks stay
    true.
    """

    def __init__(self, package: str = "", facade: bool = False):
        self.package = package  # the real package that relative imports start from
        self.facade = facade  # a generated module: plain `triton` is redirected as well
        self.depth = 0  # inside how many jit functions
        self.shadowed: set[str] = set()

    def _map(self, name: str) -> str:
        if name == "triton.runtime.jit" or (name == "triton" and self.facade):
            return PRIVATE
        for real in ("triton.language", "triton.runtime.interpreter"):
            if name == real or name.startswith(real + "."):
                return PRIVATE + name[len("triton") :]
        return name

    def visit_Module(self, node: ast.Module) -> ast.Module:
        self.shadowed = {n.name for n in node.body if isinstance(n, ast.FunctionDef)}
        return self.generic_visit(node)  # type: ignore[return-value]

    def visit_Import(self, node: ast.Import) -> Any:
        out: list[ast.stmt] = []
        for alias in node.names:
            mapped = self._map(alias.name)
            out.append(ast.Import([ast.alias(mapped, alias.asname)]))
            if mapped != alias.name and not alias.asname:  # `import triton.language` binds `triton`
                out[-1] = ast.Import([ast.alias(mapped, "_")])
                out.append(ast.Import([ast.alias(PRIVATE, "triton")]))
        return [ast.fix_missing_locations(ast.copy_location(n, node)) for n in out]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.ImportFrom:
        name = node.module or ""
        if node.level:
            base = self.package.split(".")
            base = base[: len(base) - node.level + 1]
            name = ".".join([*base, *([node.module] if node.module else [])])
        if name == "triton" and any(a.name == "language" for a in node.names):
            name = PRIVATE
        return ast.copy_location(ast.ImportFrom(self._map(name), node.names, 0), node)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.FunctionDef:
        jit = any(
            ast.unparse(d.func if isinstance(d, ast.Call) else d).split(".")[-1] == "jit"
            for d in node.decorator_list
        )
        self.depth += jit
        self.generic_visit(node)
        self.depth -= jit
        return node

    def _call(self, name: str, node: ast.expr, *args: ast.expr) -> ast.expr:
        call = ast.Call(ast.Name(f"__tk_{name}", ast.Load()), list(args), [])
        return ast.fix_missing_locations(ast.copy_location(call, node))

    def visit_Assign(self, node: ast.Assign) -> ast.Assign:
        self.generic_visit(node)
        if self.depth:
            node.value = self._call("value", node.value, node.value)
        return node

    def _visit_test(self, node: Any) -> Any:
        self.generic_visit(node)
        if self.depth:
            node.test = self._call("truth", node.test, node.test)
        return node

    visit_If = visit_While = visit_IfExp = visit_Assert = _visit_test

    def visit_BoolOp(self, node: ast.BoolOp) -> Any:
        self.generic_visit(node)
        if not self.depth:
            return node
        name = "and" if isinstance(node.op, ast.And) else "or"
        result = node.values[0]
        for value in node.values[1:]:  # the right side is delayed: constants short-circuit
            no_args = ast.arguments([], [], None, [], [], None, [])
            result = self._call(name, node, result, ast.Lambda(no_args, value))
        return result

    def visit_UnaryOp(self, node: ast.UnaryOp) -> Any:
        self.generic_visit(node)
        if self.depth and isinstance(node.op, ast.Not):
            return self._call("not", node, node.operand)
        return node

    def visit_Name(self, node: ast.Name) -> ast.Name:
        names = ("range", "min", "max")
        load = self.depth and isinstance(node.ctx, ast.Load)
        if load and node.id in names and node.id not in self.shadowed:
            node.id = f"__tk_{node.id}"
        return node


class _Loader(importlib.abc.Loader):
    """Executes one of Triton's own files as part of the private copy (and writes no .pyc)."""

    def __init__(self, real: str, path: str, is_package: bool):
        self.path = path
        self.package = real if is_package else real.rpartition(".")[0]

    def create_module(self, spec: Any) -> None:
        return None

    def exec_module(self, module: types.ModuleType) -> None:
        with open(self.path, encoding="utf-8") as file:
            tree = _Redirect(self.package).visit(ast.parse(file.read(), self.path))
        module.__dict__.update(HELPERS)
        exec(compile(tree, self.path, "exec", dont_inherit=True), module.__dict__)


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if not name.startswith(PRIVATE + "."):
            return None
        real = importlib.util.find_spec("triton" + name[len(PRIVATE) :])
        if real is None or real.origin is None:
            return None
        is_package = real.submodule_search_locations is not None
        loader = _Loader(real.name, real.origin, is_package)
        return importlib.util.spec_from_file_location(
            name, real.origin, loader=loader, submodule_search_locations=[] if is_package else None
        )


# --- what rewritten code calls --------------------------------------------------------------------


def plain(value: Any) -> Any:
    """The Python value inside any number of `tl.constexpr` wrappers."""
    while isinstance(value, core.constexpr):
        value = value.value
    return value


def _value(x: Any) -> Any:
    """The right-hand side of an assignment: Python numbers become tensors, as in the compiler."""
    if isinstance(x, core.tensor):
        return x
    if isinstance(x, tuple):
        return tuple(map(_value, x))
    x = plain(x)
    return semantic().to_tensor(x) if isinstance(x, (bool, int, float)) else x


def _truth(x: Any) -> bool:
    # Not __bool__: Triton's own code asks `if other` to see whether there is a tensor at all.
    if not isinstance(x, core.tensor):
        return bool(plain(x))
    if x.handle.data.size != 1:
        raise TypeError(f"a tile of shape {x.handle.data.shape} has no truth value: use tl.where")
    return bool(x.handle.data.item())


def _and(left: Any, right: Callable[[], Any]) -> Any:
    if isinstance(left, core.tensor):
        return semantic().logical_and(left, semantic().to_tensor(right()))
    return right() if plain(left) else left


def _or(left: Any, right: Callable[[], Any]) -> Any:
    if isinstance(left, core.tensor):
        return semantic().logical_or(left, semantic().to_tensor(right()))
    return left if plain(left) else right()


def _not(x: Any) -> Any:
    return semantic().not_(x) if isinstance(x, core.tensor) else not plain(x)


def _range(*bounds: Any, **_options: Any) -> Iterator[Any]:
    """`range` and `tl.range`: the index is a scalar tensor of the bounds' common integer type."""
    low, high, step = (0, *bounds, 1) if len(bounds) == 1 else (*bounds, 1)[:3]
    types = {x.dtype for x in (low, high, step) if isinstance(x, core.tensor)}
    dtype = max(types, key=lambda t: t.primitive_bitwidth) if types else core.int32
    for i in range(int(plain(low)), int(plain(high)), int(plain(step))):
        yield semantic().scalar_constant(i, dtype)


def _static_range(*bounds: Any, **named: Any) -> range:
    bounds = (*bounds, *(named[k] for k in ("end", "step") if k in named))
    return range(*(int(plain(b)) for b in bounds))


def _extreme(name: str) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        if not any(isinstance(a, core.tensor) for a in args):
            return getattr(builtins, name)(*map(plain, args))
        result = args[0]
        for arg in args[1:]:
            result = getattr(language, f"{name}imum")(result, arg)
        return result

    return call


# Bound in every module of the copy and in every generated module.
HELPERS: dict[str, Any] = {
    "__tk_value": _value,
    "__tk_truth": _truth,
    "__tk_and": _and,
    "__tk_or": _or,
    "__tk_not": _not,
    "__tk_range": _range,
    "__tk_min": _extreme("min"),
    "__tk_max": _extreme("max"),
}


def semantic() -> Any:
    """Triton's semantic analysis, on the numpy builder that interpreter_ops.py installs."""
    return interpreter.interpreter_semantic


# --- importing the copy ---------------------------------------------------------------------------


def _jit(fn: Any = None, **options: Any) -> Any:
    if fn is None:
        return lambda fn: _jit(fn, **options)
    if fn.__module__.startswith(PRIVATE):
        return fn  # part of Triton's standard library: only ever called from a kernel
    from codegen.interpreter import InterpretedKernel

    return InterpretedKernel(fn)


def _constexpr_function(fn: Any) -> Any:
    def call(*args: Any, _semantic: Any = None, **kwargs: Any) -> Any:
        return fn(*map(plain, args), **{k: plain(v) for k, v in kwargs.items()})

    call.__name__ = fn.__name__
    return call


class _Never:
    """Stands for Triton's JITCallable, of which the copy makes none."""


def _package(name: str, **members: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__path__ = []
    module.__dict__.update(members)
    sys.modules[name] = module
    return module


def _fallback(name: str) -> Any:
    """What generated host code and Triton's own files find in the real triton."""
    owner = triton if hasattr(triton, name) else triton.runtime.jit
    return getattr(owner, name)


_top = _package(
    PRIVATE,
    jit=_jit,
    constexpr_function=_constexpr_function,
    JITCallable=_Never,
    __getattr__=_fallback,
)
# libdevice is given numpy functions; that of cuda and hip would need a device's bitcode.
libdevice = _package(f"{PRIVATE}.language.extra.libdevice")
_extra = _package(f"{PRIVATE}.language.extra", libdevice=libdevice)
for _vendor in ("cuda", "hip"):
    sys.modules[f"{PRIVATE}.language.extra.{_vendor}.libdevice"] = libdevice
    _extra.__dict__[_vendor] = _package(f"{PRIVATE}.language.extra.{_vendor}", libdevice=libdevice)
_package(f"{PRIVATE}.runtime")
sys.meta_path.insert(0, _Finder())
language: Any = importlib.import_module(f"{PRIVATE}.language")
core: Any = importlib.import_module(f"{PRIVATE}.language.core")
interpreter: Any = importlib.import_module(f"{PRIVATE}.runtime.interpreter")
language.extra = _extra
_top.__dict__.update(language=language, runtime=triton.runtime)
language.range = core.range = _range
language.static_range = core.static_range = _static_range


def _share_shapes() -> None:
    """Build the shape of each tile type once: it is half the time of a small operation."""
    block_init = core.block_type.__init__
    types: dict[Any, dict[str, Any]] = {}
    shapes: dict[Any, tuple[Any, Any]] = {}

    def init_block(self: Any, element_ty: Any, shape: Any) -> None:
        key = (element_ty.name, *(s.value if isinstance(s, core.constexpr) else s for s in shape))
        if key not in types:
            block_init(self, element_ty, shape)
            types[key] = vars(self).copy()
        vars(self).update(types[key])

    def init_tensor(self: Any, handle: Any, type: Any) -> None:
        if type.name not in shapes:
            sizes = [core.constexpr(s) for s in type.shape] if type.is_block() else []
            total = math.prod(s.value for s in sizes)
            shapes[type.name] = core.constexpr(total), core.tuple(sizes)
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.numel, self.shape = shapes[type.name]

    core.block_type.__init__, core.tensor.__init__ = init_block, init_tensor


_share_shapes()


def execute(source: str, module: types.ModuleType, filename: str) -> None:
    """Execute a generated module's text so that its jit functions are interpreted."""
    tree = _Redirect(facade=True).visit(ast.parse(source, filename))
    module.__dict__.update(HELPERS)
    exec(compile(tree, filename, "exec", dont_inherit=True), module.__dict__)

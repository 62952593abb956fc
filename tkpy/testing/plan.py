"""Which compiled variants a run uses, and what one example consists of.

A new variant costs seconds, an example milliseconds. So the constants, dtypes, optional
parameters and static sizes are drawn once a run, into a few *settings* that between them take
every value of every axis where there are enough of them; examples vary everything else.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch

from codegen.expr import Expr, Symbol, text
from codegen.ir import DTYPES, Function
from tkpy.errors import TkError
from tkpy.kernel import Kernel
from tkpy.lower import VariantKey, _walk
from tkpy.signature import FLOATS, REQUIRED, TORCH_NAMES, DType, TensorSpec
from tkpy.testing.data import tensor
from tkpy.testing.domains import Domain, Range, domains_of, resolve
from tkpy.testing.sizes import Constraint, Solver

_SMALL = [1, 2, 3, 5, 0]
_STATIC = [16, 1, 40, 17, 64, 7, 33, 48, 80]
_PROGRAMS = 8  # most programs of a grid in one example
_ELEMENTS = 20_000  # most elements of one tensor


@dataclass(frozen=True)
class Setting:
    """What an example shares with others of the same variant."""

    constants: tuple[tuple[str, object], ...] = ()
    variables: tuple[tuple[str, str], ...] = ()
    present: frozenset[str] = frozenset()
    static: tuple[tuple[str, int], ...] = ()
    unit: bool = True
    poison: bool = False


@dataclass(frozen=True)
class Recipe:
    """How one tensor is made: see ``data.tensor``."""

    kind: str = "normal"
    seed: int = 0
    layout: str = "contiguous"


@dataclass
class Example:
    """One call of the kernel, as small as its description can be."""

    setting: Setting
    sizes: dict[str, int]
    scalars: dict[str, float | int | None]
    recipes: dict[str, Recipe]
    guard: int = 0  # how preallocated outputs are laid out: 0 contiguous, 1 padded rows


@dataclass
class Shapes:
    """What lowering a setting tells about sizes: tile sides of each dimension, and the grid."""

    sides: dict[str, set[int]] = field(default_factory=dict)
    grid: list[Expr] = field(default_factory=list)

    @staticmethod
    def of(fn: Function) -> Shapes:
        out = Shapes(grid=[count for _, count in fn.grid])
        for op in fn.body.walk():
            if "tile" not in op.attrs or "sides" not in op.attrs:
                continue
            dims = fn.param(op.attrs["param"]).dims
            for which, sides in zip(op.attrs["tile"], op.attrs["sides"], strict=True):
                for d, side in zip(which, sides, strict=True):
                    for s in dims[d].free_symbols:
                        out.sides.setdefault(s.name, set()).add(int(side))
        return out


class Plan:
    """The settings of one run of ``check`` and everything that is needed to draw from them."""

    def __init__(
        self,
        kernel: Kernel,
        examples: int,
        seed: int,
        sizes: Mapping[str, object] | None = None,
        dtypes: Iterable[object] | None = None,
        constants: Mapping[str, Iterable[object]] | None = None,
        special: bool | Iterable[str] = True,
        poison: bool = True,
    ):
        self.kernel, self.signature = kernel, kernel.signature
        self.bounds = dict(sizes or {})
        self.constants = {k: list(v) for k, v in (constants or {}).items()}
        self.domains: dict[str, Domain] = domains_of(self.signature)
        self.dtypes = _dtypes(dtypes)
        self.special = special
        self._names_exist()
        self.shapes: dict[Setting, Shapes] = {}
        self.settings = self._settings(random.Random(seed), examples, poison)

    def _names_exist(self) -> None:
        known = {d.name for d in self.signature.dims} | {p.name for p in self.signature.parameters}
        special = () if isinstance(self.special, bool) else tuple(self.special)
        for word, names in (
            ("sizes", self.bounds),
            ("constants", self.constants),
            ("special", special),
        ):
            if set(names) - known:
                raise TkError(
                    f"check of {self.kernel.name}: {word} names {sorted(set(names) - known)}; the "
                    f"signature has {', '.join(sorted(known))}"
                )

    # -- settings --------------------------------------------------------------------------

    def _axes(self) -> dict[str, list[object]]:
        """What can vary between variants: (name of the axis) -> values, the plainest first."""
        axes: dict[str, list[object]] = {}
        for p in self.signature.constants:
            axes[f"constant {p.name}"] = self.constants.get(p.name) or _constant_values(p)
        for v in dict.fromkeys(
            p.spec.dtype for p in self.signature.tensors if isinstance(p.spec.dtype, str)
        ):
            axes[f"dtype {v}"] = [d.name for d in self.dtypes]
        for p in self.signature.parameters:
            if getattr(p.spec, "optional", False) and p not in self.signature.constants:
                axes[f"present {p.name}"] = [False, True]
        axes["unit"] = [True, True, False]
        return axes

    def _settings(self, rng: random.Random, examples: int, poison: bool) -> list[Setting]:
        axes = self._axes()
        wanted = max(4, min(9, 3 + examples // 25))
        out: list[Setting] = []
        decks: dict[str, list[object]] = {name: [] for name in axes}
        for attempt in range(wanted * 6):
            if len(out) == wanted:
                break
            chosen = {}
            for name, values in axes.items():
                if not decks[name]:
                    decks[name] = rng.sample(values, len(values))
                # The first setting is the plainest one; failures shrink towards it.
                chosen[name] = values[0] if attempt == 0 else decks[name].pop()
            setting = self._complete(chosen, rng)
            if setting is not None and setting not in out:
                out.append(setting)
        if not out:
            raise TkError(
                f"check of {self.kernel.name}: no sizes satisfy the preconditions "
                f"{', '.join(c.source for c in self.signature.conditions)}"
                + (f" within {self.bounds}" if self.bounds else "")
            )
        if poison:
            for k in rng.sample(range(len(out)), max(1, len(out) // 3)):
                out[k] = self._poisoned(out[k])
        return out

    def full(self, rng: random.Random) -> Setting:
        """A setting with every optional parameter given and every constant at its plainest."""
        chosen = {n: v[-1] if n.startswith("present ") else v[0] for n, v in self._axes().items()}
        setting = self._complete(chosen, rng)
        if setting is None:
            raise Infeasible(chosen)
        return setting

    def _poisoned(self, setting: Setting) -> Setting:
        new = replace(setting, poison=True)
        self.shapes[new] = self.shapes[setting]
        return new

    def _complete(self, chosen: dict[str, object], rng: random.Random) -> Setting | None:
        def named(word: str) -> dict[str, object]:
            return {k.split(" ", 1)[1]: v for k, v in chosen.items() if k.startswith(word + " ")}

        setting = Setting(
            tuple(named("constant").items()),
            tuple(named("dtype").items()),  # type: ignore[arg-type]
            frozenset(n for n, given in named("present").items() if given),
            (),
            bool(chosen["unit"]),
        )
        setting = replace(setting, present=setting.present - self._untold(setting))
        self.shapes[setting] = Shapes()

        def draw(options, weights=None):
            return rng.choices(options, weights)[0]

        try:
            sizes = self.draw_sizes(setting, draw, static_pool=True)
        except Infeasible:
            return None
        scalars = self.draw_scalars(setting, sizes, lambda options, weights=None: options[0])
        example = Example(setting, sizes, scalars, {})
        try:
            key = self.key_of(example)
            fn = _walk(self.kernel.fn, self.signature, key)[0]
        except Exception:
            return setting  # running it will say what is wrong
        done = replace(setting, static=key.static)
        self.shapes[done] = Shapes.of(fn)
        return done

    def _untold(self, setting: Setting) -> set[str]:
        """Optional outputs whose dtype or size only an absent optional input would tell."""
        inputs = [p.spec for p in self.signature.inputs if self.given(setting, p)]
        dtypes = {s.dtype for s in inputs}
        names = {n for s in inputs for d in s.dims for n in d.free_symbols}
        return {
            p.name
            for p in self.signature.outputs
            if p.spec.optional
            and (
                (isinstance(p.spec.dtype, str) and p.spec.dtype not in dtypes)
                or any(n not in names for d in p.spec.dims for n in d.free_symbols)
            )
        }

    def key_of(self, example: Example) -> VariantKey:
        args = self.arguments(example)
        return self.kernel.key_of(self.kernel.binder.bind((), args))

    # -- sizes and scalars -----------------------------------------------------------------

    def solver(self, setting: Setting, static_pool: bool = False) -> Solver:
        shapes = self.shapes[setting]
        integers = [
            p.name
            for p in self.signature.scalars
            if not p.spec.dtype.is_float and self.given(setting, p)
        ]
        dims = self._dims(setting)
        constraints = [Constraint.of(c) for c in self.signature.conditions]
        known = {*dims, *integers, *(n for n, _ in setting.constants)}
        constraints = [c for c in constraints if c.names <= known]
        constraints += self._shape_constraints(setting)
        ints = {
            v
            for _, v in setting.constants
            if isinstance(v, int) and not isinstance(v, bool) and v > 1
        }
        pools = {}
        for d in dims:
            sides = {s for s in shapes.sides.get(d, ()) if s > 1}
            pools[d] = _around(sides | ints) if sides else list(_SMALL)
            if static_pool:
                pools[d] = list(dict.fromkeys([*_STATIC, *_SMALL]))
        for name in integers:
            default = self.signature.parameter(name).default
            first = [default] if isinstance(default, int) else []
            pools[name] = [*first, 1, 0, 2, 3, 7, -1, *sorted(ints)]
        return Solver([*dims, *integers], constraints, pools, self.bounds)

    def _dims(self, setting: Setting) -> list[str]:
        names: dict[str, None] = {}
        for p in self.signature.tensors:
            if self.given(setting, p):
                names.update(
                    (s.name, None) for d in p.spec.dims for s in sorted(d.free_symbols, key=str)
                )
        return list(names)

    def _shape_constraints(self, setting: Setting) -> list[Constraint]:
        """Sizes are not negative, and there is room for what conditions say of the elements."""
        out = []
        for p in self.signature.tensors:
            if not self.given(setting, p):
                continue
            names = frozenset(s.name for d in p.spec.dims for s in d.free_symbols)
            if any(not isinstance(d, Symbol) for d in p.spec.dims):
                out.append(Constraint(names, lambda k, p=p: min(_shape(p.spec, k)) >= 0))
            domain = self.domains.get(p.name)
            if domain is None:
                continue
            sides = [t for t, _ in domain.lower + domain.upper] + [t for *_, t in domain.fixed]
            known = {*self._dims(setting), *(s.name for s in self.signature.scalars)}
            used = {n for t in sides for n in _names(t)} & known
            used = {n for n in used if n in self._dims(setting) or self._integer(n, setting)}

            def room(k, p=p, domain=domain):
                if min(_shape(p.spec, k), default=0) < 0:
                    return False
                r = resolve(domain, k, self.dtype_of(p.spec, setting))
                return r.allows(_shape(p.spec, k), not self.dtype_of(p.spec, setting).is_float)

            out.append(Constraint(names | used, room))
        return out

    def _integer(self, name: str, setting: Setting) -> bool:
        p = self.signature.parameter(name)
        return not p.spec.dtype.is_float and self.given(setting, p)  # type: ignore[union-attr]

    def draw_sizes(self, setting: Setting, draw, static_pool: bool = False) -> dict[str, int]:
        """Sizes and integer scalars; ``draw(options, weights)`` picks one of a list."""
        solver = self.solver(setting, static_pool)
        constants = dict(setting.constants)
        known: dict[str, object] = {**constants, **dict(setting.static)}
        if not solver.completes(known):
            raise Infeasible(setting)
        sides = self.shapes[setting].sides
        order = [n for n in solver.order() if n not in known]
        # Tiled dimensions choose first; what is left of the budget bounds the others.
        order.sort(key=lambda n: (max(sides.get(n, {1})) <= 1) + 0)
        order = _divisors_first(order, solver)
        for name in order:
            options = solver.options(name, known)
            if not options:
                raise Infeasible(setting)
            cheap = [v for v in options if self._affordable(setting, {**known, name: v})]
            cheap = cheap or [min(options, key=abs)]
            known[name] = draw(cheap, [_weight(v) for v in cheap])
        return {n: known[n] for n in solver.names}  # type: ignore[misc]

    def _affordable(self, setting: Setting, known: Mapping[str, object]) -> bool:
        sizes = {n: v for n, v in known.items() if isinstance(v, int)}
        programs = 1
        for count in self.shapes[setting].grid:
            programs *= _number(count, sizes)
        if programs > _PROGRAMS:
            return False
        for p in self.signature.tensors:
            count = 1
            for d in p.spec.dims:
                count *= max(_number(d, sizes), 0)
            if count > _ELEMENTS:
                return False
        return True

    def draw_scalars(self, setting: Setting, sizes: Mapping[str, int], draw) -> dict[str, object]:
        out: dict[str, object] = {}
        for p in self.signature.scalars:
            if not self.given(setting, p):
                out[p.name] = None
            elif p.name in sizes:
                out[p.name] = sizes[p.name]
            else:
                known = {**dict(setting.constants), **sizes, **out}
                domain = self.domains.get(p.name, Domain())
                options = _float_options(p, resolve(domain, known, p.spec.dtype))
                out[p.name] = draw(options, [0.2 if abs(v) < 1e-3 else 1.0 for v in options])
        return out

    # -- making the arguments --------------------------------------------------------------

    def given(self, setting: Setting, p) -> bool:
        return not getattr(p.spec, "optional", False) or p.name in setting.present

    def dtype_of(self, spec, setting: Setting) -> DType:
        if isinstance(spec, TensorSpec) and isinstance(spec.dtype, str):
            return DTYPES[dict(setting.variables)[spec.dtype]]
        return spec.dtype

    def arguments(self, example: Example) -> dict[str, object]:
        """The keyword arguments of the call, outputs left to the kernel."""
        made = self.inputs(example)
        out = {n: t for n, (t, _) in made.items()}
        out |= dict(example.scalars)
        out |= dict(example.setting.constants)
        for p in self.signature.outputs:
            if p.spec.optional and p.name in example.setting.present:
                out[p.name] = True
        return out

    def inputs(self, example: Example) -> dict[str, tuple[torch.Tensor | None, Range]]:
        """Every input tensor with the range that its values were made in; None where absent."""
        setting = example.setting
        dims = set(self._dims(setting))
        known: dict[str, object] = dict(setting.constants)
        known |= {n: v for n, v in example.sizes.items() if n in dims}
        known |= {n: v for n, v in example.scalars.items() if v is not None}
        out: dict[str, tuple[torch.Tensor | None, Range]] = {}
        for p in self.signature.inputs:
            if not self.given(setting, p):
                out[p.name] = (None, Range())
                continue
            dtype = self.dtype_of(p.spec, setting)
            range_ = resolve(self.domains.get(p.name, Domain()), known, dtype)
            recipe = example.recipes.get(p.name, Recipe())
            made = tensor(
                recipe.kind,
                _shape(p.spec, {**dict(setting.constants), **example.sizes}),
                getattr(torch, TORCH_NAMES[dtype.name]),
                seed=recipe.seed,
                layout=recipe.layout,
                **range_.keywords(),
            )
            out[p.name] = (made, range_)
            known[p.name] = made
        return out


class Infeasible(Exception):
    """No sizes satisfy the preconditions in this setting."""


def _dtypes(given: Iterable[object] | None) -> list[DType]:
    names = {f"torch.{TORCH_NAMES[d.name]}": d for d in FLOATS}
    if given is None:
        return list(FLOATS)
    found = [d if isinstance(d, DType) else names.get(str(d), DTYPES.get(str(d))) for d in given]
    if not found or any(d not in FLOATS for d in found):
        raise TkError(f"dtypes are float32, bfloat16 and float16, not {list(given)}")
    return found  # type: ignore[return-value]


def _constant_values(p) -> list[object]:
    spec, default = p.spec, p.default
    first = [] if default is REQUIRED else [default]
    if spec.choices:
        more: list[object] = list(spec.choices)
    elif spec.type is bool:
        more = [False, True]
    elif spec.type is int and (spec.optional or default is None):
        more = [None, 16, 32]
    elif spec.type is int and not first:
        more = [16, 32, 64]
    elif spec.type is float and not first:
        more = [1.0, 0.5]
    else:
        more = []
    if spec.optional:
        more = [None, *more]
    return list(dict.fromkeys([*first, *more])) or [spec.type()]


def _around(sides: set[int]) -> list[int]:
    """Small numbers, then one less, equal and one more than each side, then several sides."""
    out = [1, 2, 3, 7]
    for s in sorted(sides):
        out += [s - 1, s, s + 1]
    largest = max(sides)
    out += [2 * largest, 2 * largest + 3, 0] if largest <= 64 else [0]
    return list(dict.fromkeys(out))


def _weight(size: int) -> float:
    """Empty tensors are legal but say little; two tiles say more than one."""
    return 0.08 if size == 0 else 2.0 if size > 64 else 1.0


def _divisors_first(order: list[str], solver: Solver) -> list[str]:
    rank = {n: k for k, n in enumerate(solver.order())}
    tied = {n for c in solver.constraints if len(c.names) > 1 for n in c.names}
    free = [n for n in order if n not in tied]
    return sorted((n for n in order if n in tied), key=rank.__getitem__) + free


def _float_options(p, range_: Range) -> list[float]:
    default = [p.default] if isinstance(p.default, int | float) else []
    base = [*default, 1.0, 0.5, 0.125, 2.0, -1.5, 0.0, 1e-5]
    low, high = range_.low, range_.high
    fits = [v for v in base if (low is None or v >= low) and (high is None or v <= high)]
    if low is not None and high is not None:
        fits += [(low + high) / 2, low, high]
    elif low is not None:
        fits += [low + 1.0, low]
    elif high is not None:
        fits += [high - 1.0, high]
    return list(dict.fromkeys(float(v) for v in fits))


def _names(tree) -> set[str]:
    import ast

    return {n.id for n in ast.walk(tree) if isinstance(n, ast.Name)}


def _shape(spec: TensorSpec, sizes: Mapping[str, object]) -> tuple[int, ...]:
    return tuple(_number(d, sizes) for d in spec.settled(sizes).dims)


def _number(e: Expr, sizes: Mapping[str, object]) -> int:
    """``e`` with ``sizes`` filled in and one for what is missing."""
    if e.is_Integer:
        return int(e)
    names, function = _compiled(e)
    return int(function(*(sizes.get(n, 1) for n in names)))


@functools.cache
def _compiled(e: Expr):
    """``e`` as a Python function of the names in it."""
    names = sorted(s.name for s in e.free_symbols)
    return names, eval(f"lambda {', '.join(names)}: {text(e)}", {})


__all__ = ["Example", "Infeasible", "Plan", "Recipe", "Setting", "Shapes"]

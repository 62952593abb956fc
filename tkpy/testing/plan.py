"""Which compiled variants a run uses, and what one example consists of.

A new variant costs seconds, an example milliseconds. So the constants, dtypes, optional
parameters and static sizes are drawn once a run, into a few *settings* that between them take
every value of every axis where there are enough of them; examples vary everything else.
"""

from __future__ import annotations

import functools
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch

from codegen.expr import Expr, Symbol, text
from codegen.ir import DTYPES, Function
from tkpy.errors import TkError
from tkpy.kernel import Kernel
from tkpy.lower import VariantKey, _walk
from tkpy.signature import TORCH_NAMES, DType, TensorSpec
from tkpy.testing.data import tensor
from tkpy.testing.domains import Domain, Range, domains_of, names_in, resolve
from tkpy.testing.pools import (
    SMALL,
    STATIC,
    around,
    constant_values,
    float_options,
    float_types,
    weight,
)
from tkpy.testing.sizes import Constraint, Solver

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
        self.dtypes = float_types(dtypes)
        self.special = special
        self._names_exist()
        self.shapes: dict[Setting, Shapes] = defaultdict(Shapes)
        self._found: dict[int, Setting] = {}
        self._solvers: dict[tuple[Setting, bool], tuple[Shapes, Solver]] = {}
        self.drafts = self._drafts(random.Random(seed), examples, poison)

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
            axes[f"constant {p.name}"] = self.constants.get(p.name) or constant_values(p)
        for v in dict.fromkeys(
            p.spec.dtype for p in self.signature.tensors if isinstance(p.spec.dtype, str)
        ):
            axes[f"dtype {v}"] = [d.name for d in self.dtypes]
        for p in self.signature.parameters:
            if getattr(p.spec, "optional", False) and p not in self.signature.constants:
                axes[f"present {p.name}"] = [False, True]
        axes["unit"] = [True, True, False]
        return axes

    def _drafts(self, rng: random.Random, examples: int, poison: bool) -> list[Example]:
        axes = self._axes()
        wanted = max(4, min(9, 3 + examples // 25))
        out: list[Example] = []
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
            draft = self._draft(chosen, rng)
            if draft is not None and draft not in out:
                out.append(draft)
        if not out:
            raise TkError(
                f"check of {self.kernel.name}: no sizes satisfy the preconditions "
                f"{', '.join(c.source for c in self.signature.conditions)}"
                + (f" within {self.bounds}" if self.bounds else "")
            )
        if poison:
            for k in rng.sample(range(len(out)), max(1, len(out) // 3)):
                out[k] = replace(out[k], setting=replace(out[k].setting, poison=True))
        return out

    @property
    def settings(self) -> list[Setting]:
        """All settings of this run."""
        return [self.setting(k) for k in range(len(self.drafts))]

    def full(self, rng: random.Random) -> Setting:
        """A setting with every optional parameter given and every constant at its plainest."""
        chosen = {n: v[-1] if n.startswith("present ") else v[0] for n, v in self._axes().items()}
        draft = self._draft(chosen, rng)
        if draft is None:
            raise Infeasible(chosen)
        return self._settled(draft)

    def _draft(self, chosen: dict[str, object], rng: random.Random) -> Example | None:
        """Any call with these choices; its sizes become the static ones. None if there is none."""

        def named(word: str) -> dict[str, object]:
            return {k.split(" ", 1)[1]: v for k, v in chosen.items() if k.startswith(word + " ")}

        def draw(options, weights=None):
            return rng.choices(options, weights)[0]

        setting = Setting(
            tuple(named("constant").items()),
            tuple(named("dtype").items()),  # type: ignore[arg-type]
            frozenset(n for n, given in named("present").items() if given),
            (),
            bool(chosen["unit"]),
        )
        setting = replace(setting, present=setting.present - self._untold(setting))
        try:
            sizes = self.draw_sizes(setting, draw, static_pool=True)
        except Infeasible:
            return None
        scalars = self.draw_scalars(setting, sizes, lambda options, weights=None: options[0])
        return Example(setting, sizes, scalars, {})

    def setting(self, k: int) -> Setting:
        """The k-th setting, with its static sizes. Found when asked for: it costs a front end."""
        if k not in self._found:
            self._found[k] = self._settled(self.drafts[k])
        return self._found[k]

    def _settled(self, draft: Example) -> Setting:
        try:
            key = self.key_of(draft)
            fn = _walk(self.kernel.fn, self.signature, key)[0]
        except Exception:
            return draft.setting  # running it will say what is wrong
        done = replace(draft.setting, static=key.static)
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
        """What finds sizes for a setting; the same one each time while its shapes are the same."""
        shapes = self.shapes[setting]
        known = self._solvers.get((setting, static_pool))
        if known is None or known[0] is not shapes:
            known = shapes, self._new_solver(setting, shapes, static_pool)
            self._solvers[setting, static_pool] = known
        return known[1]

    def _new_solver(self, setting: Setting, shapes: Shapes, static_pool: bool) -> Solver:
        integers = [
            p.name
            for p in self.signature.scalars
            if not p.spec.dtype.inexact and self.given(setting, p)
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
            pools[d] = around(sides | ints) if sides else list(SMALL)
            if static_pool:
                # A constant may be the largest tile of a side: one tile and more than one.
                beyond = [n for v in sorted(ints) for n in (v + 1, 2 * v + 3) if n <= 300]
                pools[d] = list(dict.fromkeys([*STATIC, *beyond, *SMALL]))
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
            used = {n for t in sides for n in names_in(t)} & known
            used = {n for n in used if n in self._dims(setting) or self._integer(n, setting)}

            def room(k, p=p, domain=domain):
                if min(_shape(p.spec, k), default=0) < 0:
                    return False
                r = resolve(domain, k, self.dtype_of(p.spec, setting))
                return r.allows(_shape(p.spec, k), not self.dtype_of(p.spec, setting).inexact)

            out.append(Constraint(names | used, room))
        return out

    def _integer(self, name: str, setting: Setting) -> bool:
        p = self.signature.parameter(name)
        return not p.spec.dtype.inexact and self.given(setting, p)  # type: ignore[union-attr]

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
            known[name] = draw(cheap, [weight(v) for v in cheap])
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
                options = float_options(p, resolve(domain, known, p.spec.dtype))
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


def _divisors_first(order: list[str], solver: Solver) -> list[str]:
    rank = {n: k for k, n in enumerate(solver.order())}
    tied = {n for c in solver.constraints if len(c.names) > 1 for n in c.names}
    free = [n for n in order if n not in tied]
    return sorted((n for n in order if n in tied), key=rank.__getitem__) + free


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

"""``kernel.backward``: the gradient of a kernel, derived from its tile program.

A backward is made for one variant of the kernel, for those inputs that want gradients and those
outputs that have cotangents. It is a few Triton programs like any other: shown, exported, cached,
checked as such. Differentiation itself is in ``codegen.grad``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from codegen.cost import RunTime, cost
from tkpy import memory
from tkpy.backward_plan import Compiled, Program, Tensor, entry_of, more_sums, program_of, vast
from tkpy.call import Call
from tkpy.carries import Choice, checked, choose, facts, rates
from tkpy.errors import CallError, NeedStatic
from tkpy.execution import executor, launcher, machine_of
from tkpy.lower import Differentiated, VariantKey, differentiate
from tkpy.sides import Sides, open_sides
from tkpy.signature import TORCH_NAMES, TensorSpec

if TYPE_CHECKING:
    from codegen.grad.carries import Taped
    from tkpy.kernel import Kernel
    from tkpy.pipeline.device import Device

#: Partial sums, but for one of each, may take the bytes of the call's tensors over so many, and so
#: many bytes anyway: else gradients that share a loop nest come out apart.
SHARE, LEAST = 4, 4 << 20
#: Unless programs apart do more FLOPs than so many times those of the forward.
MOST_FLOPS = 3.6


class Backward:
    """The derived backward of one kernel.

    Attributes:
        constants: compile-time constants that it is derived with instead of those of the call,
            such as tile sizes of its own.
        gpu: defaults of those that a call leaves open on a GPU, by dtype.
        joint: gradients that share a loop nest come out of one program; None decides: no on a GPU,
            where many programs are wanted, yes on a CPU unless partial sums would take much memory
            and programs apart do not do much more.
        carries: of loops that are replayed backwards. "saved" keeps every iteration's, "replayed"
            about one in the root of their number, from which the loop is run once more, an integer
            one in so many. None decides by what each costs, and by memory.
    """

    def __init__(
        self,
        kernel: Kernel,
        constants: Mapping[str, object] | None = None,
        gpu: Sides | None = None,
    ):
        self.kernel = kernel
        self.constants = dict(constants or {})
        self.gpu = dict(gpu or {})
        self.joint: bool | None = None
        self._carries: int | str | None = None
        self._compiled: dict[tuple, Compiled] = {}
        self._taped: dict[tuple, list[dict]] = {}

    @property
    def carries(self) -> int | str | None:
        return self._carries

    @carries.setter
    def carries(self, wish: int | str | None) -> None:
        self._carries = checked(wish)

    def __repr__(self) -> str:
        return f"<backward of {self.kernel.name}>"

    # -- what can be asked ------------------------------------------------------------------

    def inputs(self, call: Call) -> list[str]:
        """The inputs that can have gradients: tensors of floats that the kernel reads."""
        return [
            p.name
            for p in self.kernel.signature.inputs
            if p.name in call.tensors
            and p.spec.role == "in"  # type: ignore[union-attr]
            and call.dtypes[p.name].inexact
        ]

    def outputs(self, call: Call) -> list[str]:
        """The outputs that can have cotangents, in the order in which a call returns them."""
        return [p.name for p in call.wanted if self._dtype(p, call).inexact]

    def _dtype(self, p, call: Call):
        spec = p.spec
        assert isinstance(spec, TensorSpec)
        if p.name in call.dtypes:
            return call.dtypes[p.name]
        return call.variables[spec.dtype] if isinstance(spec.dtype, str) else spec.dtype

    # -- running ----------------------------------------------------------------------------

    def forward(
        self, arguments: Mapping[str, object], needs: Sequence[str], deterministic: bool = True
    ) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
        """The kernel's outputs, and what its backward wants kept of the run.

        Args:
            arguments: of the call, by name.
            needs: the inputs that will want gradients.
        """
        outputs, saved, _ = self.forward_and_reads(arguments, needs, deterministic)
        return outputs, saved

    def forward_and_reads(
        self, arguments: Mapping[str, object], needs: Sequence[str], deterministic: bool = True
    ) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...], frozenset[str]]:
        """``forward``, and the names of the tensors that the backward takes."""
        call = self.kernel.binder.bind((), dict(arguments))
        given = self.outputs(call)
        compiled, call = self.compiled(call, tuple(sorted(needs)), tuple(given), deterministic)
        self.kernel._allocate(call)
        saved = tuple(t.make(call.sizes, call.device) for t in compiled.saved)
        values: dict[str, Any] = {**call.tensors}
        values |= {t.name: x for t, x in zip(compiled.saved, saved, strict=True)}
        self._run(compiled.forward, compiled.launches[0], values, call)
        return tuple(call.tensors[p.name] for p in call.wanted), saved, compiled.reads

    def kept(
        self, arguments: Mapping[str, object], needs: Sequence[str], deterministic: bool = True
    ) -> list[torch.Tensor] | None:
        """Tensors without data like those that ``forward`` keeps.

        ``arguments``: tensors without data, of sizes that may be symbols. None where a symbol
        decides what is kept: of a dimension that is a tile's side.
        """
        call = self.kernel.binder.bind_without_data(dict(arguments))
        if call.device.type != "cpu" and not torch.cuda.is_available():
            return None  # on no machine
        call = self._with_own(call)
        how = (tuple(sorted(needs)), tuple(self.outputs(call)), deterministic)
        while True:
            key = self.kernel.key_without_data(call)
            if key is None:
                return None
            try:
                entry = self._entry(key, (*how, self._usually_joint(call.device), ()))
                return [Tensor(**t).make(call.sizes, call.device) for t in entry["saved"]]
            except NeedStatic as need:
                self.kernel._widen(key, need)

    def gradients(
        self,
        arguments: Mapping[str, object],
        outputs: Sequence[torch.Tensor | None],
        saved: Sequence[torch.Tensor] | None,
        cotangents: Sequence[torch.Tensor | None],
        needs: Sequence[str],
        deterministic: bool = True,
    ) -> dict[str, torch.Tensor]:
        """The gradient of every input in ``needs``, of its shape and dtype.

        Args:
            arguments: of the call, by name; outputs that were passed may be left out.
            outputs: what the call returned, None for those that the backward does not take.
            saved: what ``forward`` kept, or None to run the forward once more for it.
            cotangents: one for every output, of its shape; None counts as zeros.
            needs: names of inputs.
            deterministic: False allows sums by atomic additions, whose order is not fixed.

        Raises:
            CompileError: if the kernel cannot be differentiated.
        """
        if saved is None:
            _, saved = self.forward(arguments, needs, deterministic)
        call = self.kernel.binder.bind((), dict(arguments))
        possible = self.outputs(call)
        wrt = tuple(sorted(needs))
        unknown = set(wrt) - set(self.inputs(call))
        if unknown:
            raise CallError(
                f"{self.kernel.name}: {', '.join(sorted(unknown))} has no gradient; inputs of "
                f"floats have: {', '.join(self.inputs(call))}"
            )
        compiled, call = self.compiled(call, wrt, tuple(possible), deterministic)
        values: dict[str, Any] = {**call.tensors}
        for p, out, g in zip(call.wanted, outputs, cotangents, strict=True):
            if out is not None:
                values[p.name] = out.detach()
            if p.name in possible:
                values[f"d_{p.name}"] = self._cotangent(p, g, call)
        values |= {t.name: x for t, x in zip(compiled.saved, saved, strict=True)}
        done = compiled.done
        for k, (program, launch) in enumerate(
            zip(compiled.programs, compiled.launches[1:], strict=True)
        ):
            for t in program.tensors:
                if t.name not in values:
                    values[t.name] = t.make(call.sizes, call.device)
            self._run(program, launch, values, call)
            for n in done[k]:
                del values[n]
        made = {t.name: t for program in compiled.programs for t in program.tensors}
        return {n: self._result(n, values, made, call) for n in wrt}

    def _cotangent(self, p, g: torch.Tensor | None, call: Call) -> torch.Tensor:
        shape = tuple(call.shapes[p.name])
        dtype = getattr(torch, TORCH_NAMES[self._dtype(p, call).name])
        if g is None:
            return torch.zeros(shape, dtype=dtype, device=call.device)
        if g.shape != shape:
            raise CallError(
                f"{self.kernel.name}: the cotangent of {p.name} has shape {tuple(g.shape)}, "
                f"{p.name} has {shape}"
            )
        g = g.detach().to(dtype)
        return g.resolve_conj().resolve_neg().contiguous()

    def _result(self, name: str, values: dict, made: dict[str, Tensor], call: Call) -> torch.Tensor:
        like = call.tensors[name]
        if f"d_{name}" not in made:  # nothing that has a cotangent depends on it
            return torch.zeros(like.shape, dtype=like.dtype, device=like.device)
        g, parts = values.pop(f"d_{name}"), made[f"d_{name}"].parts
        return memory.added_up(g, parts, like.dtype) if parts else g.to(like.dtype)

    def _run(self, program: Program, launch: Callable, values: Mapping, call: Call) -> None:
        tensors = [values[t.name] for t in program.tensors]
        launch(*tensors, *[call.scalars[n] for n in program.scalars])

    # -- compiling --------------------------------------------------------------------------

    def compiled(
        self, call: Call, wrt: tuple[str, ...], given: tuple[str, ...], deterministic: bool = True
    ) -> tuple[Compiled, Call]:
        """The compiled backward of ``call``, and the call with this backward's constants."""
        call = self._with_own(call)
        while True:
            key = self._key(call)
            try:
                how: tuple = (wrt, given, deterministic)
                how = (*how, self.jointly(key, wrt, given, deterministic, call))
                how = (*how, self.segments(key, how, call))
                key = self.addressed(key, self._entry(key, how), call)
                slot = (key, repr(key.constants), how, executor(call.device))
                if slot not in self._compiled:
                    self._compiled[slot] = self._load(key, how, call.device)
                return self._compiled[slot], call
            except NeedStatic as need:
                self.kernel._widen(key, need)

    def _with_own(self, call: Call) -> Call:
        """``call`` with the constants of this backward."""
        own = open_sides(self.gpu, call)
        own |= {n: v for n, v in self.constants.items() if n in call.constants}
        return replace(
            call, constants={**call.constants, **own}, left_open=call.left_open - set(own)
        )

    def _key(self, call: Call) -> VariantKey:
        key = replace(self.kernel.key_of(call), described=False)
        if key.machine or call.device.type == "cpu":
            return key
        return replace(key, machine=call.machine or machine_of(call.device))

    def addressed(self, key: VariantKey, entry: Mapping[str, Any], call: Call) -> VariantKey:
        """``key``, with offsets of 64 bits where ``entry``'s programs have tensors that ask for it.

        A tape may need them where no tensor of ``call`` does.
        """
        return key if key.wide else replace(key, wide=vast(entry, call.sizes))

    def key_of(self, call: Call) -> VariantKey:
        """The variant of the kernel that the backward of ``call`` is derived from."""
        return self._key(self._with_own(call))

    def _usually_joint(self, device: torch.device) -> bool:
        """A CPU has few processors and keeps partial sums in its caches."""
        return device.type == "cpu" if self.joint is None else self.joint

    def jointly(
        self,
        key: VariantKey,
        wrt: tuple[str, ...],
        given: tuple[str, ...],
        deterministic: bool,
        call: Call,
    ) -> bool:
        """Whether gradients that share a loop nest come out of one program in ``call``."""
        usually = self._usually_joint(call.device)
        if self.joint is not None or not usually or not deterministic:
            return usually
        how = (wrt, given, deterministic)
        together = self._entry(key, (*how, True, ()))
        if more_sums(together, call.sizes) <= max(self._moved(call) // SHARE, LEAST):
            return True
        apart = self._apart(key, how)
        return apart["saved"] != together["saved"] or apart["flops"] > MOST_FLOPS

    def choose(
        self, loops: Sequence[Taped | Mapping[str, Any]], call: Call, device: Device | None = None
    ) -> list[Choice]:
        """How the carries of ``loops`` are come by in a backward of ``call``.

        ``device``: whose rates count; None: those that stand for the call's.
        """
        if not loops:
            return []
        if device is None:
            cpu = call.device.type == "cpu" or not torch.cuda.is_available()
            device = rates("cpu" if cpu else machine_of(call.device))
        return choose(facts(loops), call.sizes, self._carries, device, self._moved(call))

    def _moved(self, call: Call) -> int:
        """Bytes of all tensors of ``call``."""
        return sum(t.numel() * t.element_size() for t in call.tensors.values()) + sum(
            math.prod(call.shapes[p.name]) * self._dtype(p, call).bits // 8
            for p in call.wanted
            if p.name not in call.tensors
        )

    def segments(self, key: VariantKey, how: tuple, call: Call) -> tuple[tuple[int, int], ...]:
        """(number of a loop, iterations of a segment) of the loops that are cut."""
        slot = (key, repr(key.constants), how)
        if slot not in self._taped:
            self._taped[slot] = self._entry(key, (*how, ()))["taped"]
        choices = self.choose(self._taped[slot], call)
        return tuple((c.loop, c.segment) for c in choices if c.segment)

    def _entry(self, key: VariantKey, how: tuple) -> dict:
        def make():
            made = self.derive(key, *how[:3], joint=how[3], segments=dict(how[4]))
            return entry_of(made), made.forward

        return self.kernel._store.derived(f"backward {how}", key, make)

    def _load(self, key: VariantKey, how: tuple, device: torch.device) -> Compiled:
        entry = self._entry(key, how)
        programs = [program_of(p) for p in entry["programs"]]
        saved = tuple(Tensor(**t) for t in entry["saved"])
        launches = tuple(launcher(p.source, p.name, device) for p in programs)
        return Compiled(programs[0], saved, tuple(programs[1:]), launches)

    def _apart(self, key: VariantKey, how: tuple) -> dict:
        """An entry of the backward with programs apart, and how many times its forward's FLOPs."""

        def make():
            made = self.derive(key, *how)
            return {**entry_of(made), "flops": self._flops(key, made)}, made.forward

        return self.kernel._store.derived(f"backward apart {how}", key, make)

    def _flops(self, key: VariantKey, made: Differentiated) -> float:
        """FLOPs over those of the forward, of products where there are any; 0 if a run tells."""
        from tkpy.ahead import SIZES, SettingError, choose_sizes

        signature = self.kernel.signature
        large = {d.name: (256, *SIZES) for d in signature.dims}
        programs = [cost(p.fn) for p in (made.forward, *made.pieces)]
        try:
            sizes = choose_sizes(signature, dict(key.static), dict(key.constants), large)
            for kinds in (("matrix",), ("vector", "special")):
                first, *rest = (sum(c.number(k, sizes) for k in kinds) for c in programs)
                if first:
                    return sum(rest) / first
        except (RunTime, SettingError):
            pass
        return 0.0

    def derive(
        self,
        key: VariantKey,
        wrt: Sequence[str],
        given: Sequence[str],
        deterministic: bool = True,
        poison: bool = False,
        joint: bool = False,
        segments: Mapping[int, int] | None = None,
    ) -> Differentiated:
        """Tile IR and Triton source of the backward of one variant."""
        k = self.kernel
        return differentiate(
            k.fn, k.signature, key, tuple(wrt), tuple(given), k.num_warps, k.num_stages,
            k.template, deterministic, poison, joint, segments,
        )  # fmt: skip


__all__ = ["Backward", "Compiled", "Program", "Tensor"]

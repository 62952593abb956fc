"""``@tk.kernel``: the object that a decorated function becomes, its variants and its calls."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace

import torch
from torch.autograd import forward_ad

from codegen.writer import ALIGNMENT, rows_long
from tkpy import memory
from tkpy.backward import Backward
from tkpy.call import Binder, Call
from tkpy.errors import CallError, NeedStatic, TkError
from tkpy.execution import executor, launcher, machine_of
from tkpy.lower import Lowered, VariantKey, find_static, lower
from tkpy.operator import Formula, Operator
from tkpy.operator.recall import remember
from tkpy.replay import Replay
from tkpy.sides import Sides, marked, open_sides, sides_of
from tkpy.signature import TORCH_NAMES, DType, Signature, TensorSpec, read_signature
from tkpy.store import VariantStore
from tkpy.template.knobs import Template
from tkpy.template.plan import ASYNCHRONOUS

_modes = torch._C._len_torch_dispatch_stack
_transforms = torch._C._functorch.peek_interpreter_stack
_autocasts = torch._C._is_any_autocast_enabled
_PLAIN = torch.Tensor.__torch_dispatch__


@dataclass(frozen=True)
class Variant:
    """One compiled form of a kernel: the key it was made for, its source, and how to run it."""

    key: VariantKey
    source: str
    launch: Callable[..., None]


class Kernel:
    """A kernel written in tiles. Calling it allocates the outputs, launches and returns them.

    Attributes:
        name: the function's name.
        signature: the parsed signature.
        fn: the author's function.
        num_warps, num_stages: how Triton launches it on a GPU.
        template: the knobs of ``tk.lcf`` or ``tk.lcsf``, or None.
        autocast: whether its operands are cast under autocast, as those of ``torch.matmul`` are.
        gpu: defaults of constants on a GPU, by dtype, where they differ from the signature's.
        reference_fn: what ``@kernel.reference`` registered, or None.
        attached: the backward that ``@kernel.attach_backward`` registered, or None.
    """

    def __init__(
        self,
        fn: Callable,
        where: tuple[str, ...] = (),
        num_warps: int = 4,
        num_stages: int = 3,
        template: Template | None = None,
        autocast: bool = False,
        gpu: Sides | None = None,
        gpu_backward: Sides | None = None,
    ):
        functools.update_wrapper(self, fn)
        self.fn, self.name = fn, fn.__name__
        self.where = where
        self.signature: Signature = read_signature(fn, where)
        self.gpu = sides_of(self.signature, "gpu", gpu)
        own = sides_of(self.signature, "gpu_backward", gpu_backward)
        self.signature = marked(self.signature, self.gpu, own)
        self.num_warps, self.num_stages = num_warps, num_stages
        self.template, self.autocast = template, autocast
        self.reference_fn: Callable | None = None
        self.reference_options: dict[str, object] = {}
        self.attached: Formula | None = None
        self.binder = Binder(self.signature)
        self.operator = Operator(self)
        self.batches: dict[tuple, set[str] | None] = {}  # of tkpy.operator.batch
        self._replay = Replay(self.binder)
        self.variants: dict[tuple[VariantKey, str, str], Variant] = {}
        self._whole: dict = {}
        self._static: dict[tuple, frozenset[str]] = {}
        self._store = VariantStore(self)
        self.backward = Backward(self, gpu={**self.gpu, **own})

    def __repr__(self) -> str:
        return f"<tk.kernel {self.name}>"

    def reference(self, fn: Callable | None = None, **options: object) -> Callable:
        """Decorator: registers the plain PyTorch function that says what the kernel computes.

        It takes the same arguments without the outputs, in float64, and returns what the kernel
        returns. ``options`` are those of ``tkpy.testing.check``.
        """
        if fn is None:
            return lambda f: self.reference(f, **options)
        self.reference_fn, self.reference_options = fn, dict(options)
        return fn

    def attach_backward(
        self,
        fn: Callable | None = None,
        *,
        keeps: Collection[str] | None = None,
        through: Collection[str] | None = None,
    ) -> Callable:
        """Decorator: registers a backward written by hand, which is used from then on.

        ``fn(arguments, outputs, cotangents, needs)`` gives the gradients by name; ``keeps`` and
        ``through`` are names of outputs. See ``tkpy.operator.Formula`` for all of them.

        Raises:
            TkError: for a name that is no output of the kernel.
        """
        results = [p.name for p in self.signature.tensors if p.spec.role != "in"]
        for name in (*(keeps or ()), *(through or ())):
            if name not in results:
                raise TkError(f"{self.name} has no output {name}; it has {', '.join(results)}")
        if fn is None:
            return lambda f: self.attach_backward(f, keeps=keeps, through=through)
        self.attached = Formula(fn, keeps, through)
        self._replay.plans.clear()
        return fn

    @property
    def op(self) -> torch._ops.OpOverload:
        """The kernel as an operator, ``torch.ops.tkpy.<module>_<name>.default``.

        It takes the kernel's arguments, and a flag for each optional output. It returns all
        outputs, an empty tensor for those not asked for, and then the new values of tensors that
        the kernel changes in place, which it leaves as they are.
        """
        return self.operator.functional

    def __reduce__(self) -> str:
        """A kernel is copied and pickled as functions are, by name."""
        return self.__qualname__  # type: ignore[attr-defined]

    def tune(self, *args: object, **options):
        """Chooses tile sizes for calls like this one and remembers them: ``tkpy.tune.tune``."""
        from tkpy.tune import tune

        return tune(self, *args, **options)

    # -- calling ---------------------------------------------------------------------------

    def __call__(self, *args: object, **kwargs: object):
        # What follows is for tensors of the CPU or of a GPU that nobody records or traces.
        if (
            torch.compiler.is_dynamo_compiling()
            or _modes()
            or _transforms() is not None
            or forward_ad._current_level >= 0
        ):
            return self.operator(args, kwargs)
        if self.autocast and _autocasts():
            args, kwargs = self.operator.cast(args, kwargs)
        try:
            return self.run(args, kwargs, self._looked_at)
        except TkError as refusal:
            # It names the author's line; thirty frames of the compiler above it help nobody else.
            if os.environ.get("TKPY_TRACEBACK") == "full":
                raise
            raise refusal.with_traceback(None) from refusal.__cause__

    def _looked_at(self, args: tuple, kwargs: dict[str, object]) -> bool:
        """Whether a call is for the operator: autograd records it, or a tensor is no plain one."""
        for value in (*args, *kwargs.values()):
            if isinstance(value, torch.Tensor):
                if value.requires_grad and torch.is_grad_enabled():
                    return True
                if value.is_meta or type(value).__torch_dispatch__ is not _PLAIN:
                    return True
        return False

    def run(self, args: tuple, kwargs: dict[str, object], divert: Callable | None = None):
        """The call itself, of which PyTorch sees nothing.

        ``divert``: whether a call that is not like an earlier one goes to the operator instead.
        """
        likeness, plan = self._replay.find(args, kwargs)
        if plan is not None:
            values = plan.values(args, kwargs)
            if plan.holds(values):
                for name in plan.alone:
                    self._no_overlap(name, values)
                return plan.run(values)
        if divert is not None and divert(args, kwargs):
            result = self.operator(args, kwargs)
            if likeness:
                remember(self, self._replay, likeness, args, kwargs)
            return result
        call = self.binder.bind(args, kwargs)  # says what is wrong
        while True:
            key = self.key_of(call)
            try:
                self._allocate(call)
                variant = self.variant(key, call.device)
                break
            except NeedStatic as need:
                # Other sizes took another way through the kernel, on which more are tile sides.
                self._widen(key, need)
        tensors = [call.tensors[p.name] for p in self.signature.tensors if p.name in call.tensors]
        scalars = [call.scalars[p.name] for p in self.signature.scalars if p.name in call.scalars]
        variant.launch(*tensors, *scalars)
        if likeness:
            zeroed = self._zeroed(call)
            described = variant.key.described
            plan = self._replay.plan(args, kwargs, call, variant.launch, zeroed, described)
            self._replay.remember(likeness, plan)
        outputs = tuple(call.tensors[p.name] for p in call.wanted)
        return outputs[0] if len(outputs) == 1 else (outputs or None)

    def _allocate(self, call: Call) -> None:
        zeroed = None
        for p in self.signature.tensors:
            if p.spec.role == "inout" and p.name in call.tensors:  # type: ignore[union-attr]
                self._no_overlap(p.name, call.tensors)
        for p in call.wanted:
            given = call.tensors.get(p.name)
            if given is not None:
                self._no_overlap(p.name, call.tensors)
                if p.name in (zeroed := self._zeroed(call) if zeroed is None else zeroed):
                    given.zero_()
                continue
            spec = p.spec
            assert isinstance(spec, TensorSpec)
            dtype = spec.dtype if isinstance(spec.dtype, DType) else call.variables[spec.dtype]
            if zeroed is None:
                zeroed = self._zeroed(call)
            make = memory.zeros if p.name in zeroed else memory.empty
            call.tensors[p.name] = make(
                call.shapes[p.name], getattr(torch, TORCH_NAMES[dtype.name]), call.device
            )
            call.dtypes[p.name] = dtype

    def _zeroed(self, call: Call) -> frozenset[str]:
        """Outputs that the kernel only adds to; they start from zero."""
        return self._store.zeroed(self.key_of(call))

    def _no_overlap(self, name: str, values: Mapping[str, object]) -> None:
        out = values[name]
        assert isinstance(out, torch.Tensor)
        if any(s == 0 and n > 1 for n, s in zip(out.shape, out.stride(), strict=True)):
            raise CallError(
                f"{self.name}: the elements of {name} share memory with each other (it is "
                f"expanded)\n  fix: {name}.contiguous()"
            )
        for other, t in values.items():
            if other == name or not isinstance(t, torch.Tensor):
                continue
            if t.numel() and out.numel() and _overlap(out, t):
                raise CallError(
                    f"{self.name}: the output {name} shares memory with {other}; programs of a "
                    f"grid run in any order\n  fix: give {name} memory of its own"
                )

    # -- variants --------------------------------------------------------------------------

    def key_of(self, call: Call) -> VariantKey:
        """The variant that ``call`` needs."""
        dtypes = self._dtypes(call)
        key = self.settle(
            VariantKey(
                self._constants(call),
                tuple(sorted((n, d.name) for n, d in dtypes.items())),
                frozenset(call.present),
                (),
                call.unit,
                call.wide,
                call.device.type != "cpu" and call.aligned,
                *self._machine(call, dtypes),
            ),
            call.sizes,
        )
        if key.aligned and any(call.sizes[n] % ALIGNMENT for n in self._rows_long(key)):
            key = replace(key, aligned=False)
        return key

    def key_without_data(self, call: Call) -> VariantKey | None:
        """A variant like that of ``call``, whose strides and sizes may be symbols.

        It is the one for small tensors of any strides. None if a tile's side is a symbol.
        """
        dtypes = self._dtypes(call)
        machine = ""
        if self.template is not None and call.device.type != "cpu":
            machine = call.machine or machine_of(call.device)
        sizes = {n: v if isinstance(v, int) else ALIGNMENT for n, v in call.sizes.items()}
        key = self.settle(
            VariantKey(
                self._constants(call),
                tuple(sorted((n, d.name) for n, d in dtypes.items())),
                frozenset(call.present),
                (),
                True,
                False,
                False,
                machine,
                False,
            ),
            sizes,
        )
        return key if all(isinstance(call.sizes[n], int) for n, _ in key.static) else None

    def _constants(self, call: Call) -> tuple[tuple[str, object], ...]:
        """The constants in the signature's order; on a GPU its own defaults of those left open."""
        values = call.constants | open_sides(self.gpu, call)
        return tuple((p.name, values[p.name]) for p in self.signature.constants)

    def _dtypes(self, call: Call) -> dict[str, DType]:
        """The element type of every tensor of ``call``."""
        dtypes = dict(call.dtypes)
        for p in call.wanted:
            spec = p.spec
            assert isinstance(spec, TensorSpec)
            if p.name not in dtypes:
                dtypes[p.name] = (
                    spec.dtype if isinstance(spec.dtype, DType) else self._variable(p, call)
                )
        return dtypes

    def _rows_long(self, key: VariantKey) -> set[str]:
        """The dimensions, not known when compiling, that an aligned variant knows 16 divides."""
        tensors = self.signature.settled(dict(key.constants)).tensors
        present = [p.spec for p in tensors if p.name in key.present]
        return rows_long((s.role, s.dims) for s in present) - {n for n, _ in key.static}

    def _machine(self, call: Call, dtypes: dict[str, DType]) -> tuple[str, bool]:
        """The machine whose schedule a template gets, and whether descriptors suit the call."""
        if self.template is None or call.device.type == "cpu":
            return "", False
        machine = call.machine or machine_of(call.device)
        return machine, machine in ASYNCHRONOUS and call.unit and call.describable(dtypes)

    def _variable(self, p, call: Call) -> DType:
        if p.spec.dtype not in call.variables:
            raise CallError(f"{self.name}: no argument given tells the dtype of {p.name}")
        return call.variables[p.spec.dtype]

    def settle(self, key: VariantKey, sizes: dict[str, int]) -> VariantKey:
        """``key`` with the sizes of those dimensions that are tile sides."""
        group = (repr(key.constants), key.dtypes, key.present)
        if group not in self._static:
            self._static[group] = self._store.static_names(key, sizes)
        static = tuple(sorted((n, sizes[n]) for n in self._static[group]))
        return replace(key, static=static)

    def _widen(self, key: VariantKey, need: NeedStatic) -> None:
        group = (repr(key.constants), key.dtypes, key.present)
        if need.names <= self._static[group]:
            raise TkError(f"{self.name}: dimensions {sorted(need.names)} do not settle") from None
        self._static[group] |= need.names

    def variant(self, key: VariantKey, device: torch.device) -> Variant:
        """The compiled variant of ``key``, from memory, from disk, or made now."""
        slot = (key, repr(key.constants), executor(device))  # 0.0 == -0.0, and they differ
        if slot not in self.variants:
            source = self._store.source(key)
            self.variants[slot] = Variant(key, source, launcher(source, self.name, device))
        return self.variants[slot]

    def lower(self, key: VariantKey, **options) -> Lowered:
        """Front end, passes and emission for ``key``, without any cache."""
        if "split" not in options:
            options["split"] = self._splits(key)
        warps, stages = self.num_warps, self.num_stages
        return lower(self.fn, self.signature, key, warps, stages, self.template, **options)

    def _splits(self, key: VariantKey) -> bool | str:
        """True if a loop may be split by warp, as its template asks; else why not."""
        slot = (key, repr(key.constants))
        if self.template is None or not key.machine:
            return True
        if slot not in self._whole:
            from tkpy.template.proof import in_order, loss

            in_order(self, key)
            lowered = self.lower(key, split=True)
            specialised = lowered.fn.schedule is not None and lowered.fn.schedule.specialise
            why = loss(lowered, lambda why: self.lower(key, split=why)) if specialised else ""
            self._whole[slot] = why or True
        return self._whole[slot]

    def find_static(self, key: VariantKey, sizes: dict[str, int]) -> frozenset[str]:
        return find_static(self.fn, self.signature, key, sizes, self.template)


def _overlap(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.untyped_storage().data_ptr() != b.untyped_storage().data_ptr():
        return False
    ranges = []
    for t in (a, b):
        low = t.data_ptr()
        last = sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True))
        ranges.append((low, low + (last + 1) * t.element_size()))
    (a0, a1), (b0, b1) = ranges
    return a0 < b1 and b0 < a1


def conditions(where: str | Iterable[str]) -> tuple[str, ...]:
    """Preconditions as decorators take them: one, or several."""
    return (where,) if isinstance(where, str) else tuple(where)


def kernel(
    fn: Callable | None = None,
    *,
    where: str | list[str] | tuple[str, ...] = (),
    num_warps: int = 4,
    num_stages: int = 3,
    autocast: bool = False,
    gpu: Sides | None = None,
    gpu_backward: Sides | None = None,
):
    """Decorator: compiles a function written in tiles into a kernel.

    Args:
        where: preconditions over dimensions, tensors and scalars, such as ``"H % G == 0"``,
            ``"0 <= labels < V"`` or ``"sorted(offsets)"``; one, or a list of them. Calls are held
            against them.
        num_warps: warps of a program on a GPU.
        num_stages: depth of Triton's software pipeline on a GPU.
        autocast: under ``torch.autocast`` inputs whose type the signature leaves open are cast, as
            those of ``torch.matmul`` are, unless the call writes into a tensor of such a type.
            Without it the kernel computes in the types it is given.
        gpu: defaults of constants on a GPU where they differ, by the dtype of the call's tensors:
            ``{"f32": {"chunk": 16}}``. What a CPU's cache holds may be more than registers do.
        gpu_backward: the same for the derived backward, which else has those of ``gpu``.

    Raises:
        TkError: if the signature is not one (see ``tkpy.signature.read_signature``), or if ``gpu``
            does not fit it (``tkpy.sides.sides_of``). The body is compiled at the first call, and
            raises ``CompileError`` then.
    """

    def decorate(f: Callable) -> Kernel:
        return Kernel(
            f, conditions(where), num_warps, num_stages, None, autocast, gpu, gpu_backward
        )

    return decorate(fn) if fn is not None else decorate

"""A kernel's call as a call of its operators. Dynamo traces what stands here."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, NoReturn

import torch

from codegen.forks import anew
from tkpy.errors import CallError, TkError
from tkpy.operator import schema
from tkpy.operator.names import NAMESPACE, claim, tell_caches

if TYPE_CHECKING:
    from tkpy.kernel import Kernel
    from tkpy.operator.autograd import Keeping, Pullback

_lock = threading.RLock()
anew(globals(), _lock=threading.RLock)


class Operator:
    """The operators of one kernel, registered when they are first needed.

    ``attention`` changes nothing and has gradients; ``attention_`` writes into tensors that it is
    given, where no gradient is recorded; ``attention_backward`` gives the gradients.
    """

    def __init__(self, kernel: Kernel):
        signature = kernel.signature
        self.kernel = kernel
        self.positional = tuple(p.name for p in kernel.binder.positional)
        self.parameters = tuple(p.name for p in signature.parameters)
        self.tensors = tuple(p.name for p in signature.inputs)
        self.numbers = tuple(p.name for p in signature.scalars)
        self.outputs = tuple((p.name, p.spec.optional) for p in signature.outputs)
        self.changed = tuple(p.name for p in signature.inputs if p.spec.role == "inout")
        self.open = tuple(p.name for p in signature.inputs if isinstance(p.spec.dtype, str))
        self.written = tuple(
            p.name
            for p in signature.tensors
            if p.spec.role != "in" and isinstance(p.spec.dtype, str)
        )
        self.differentiable = schema.differentiable(signature)
        self.pullback: Pullback | None = None  # once registered
        self.keeping: Keeping | None = None
        self._name = ""

    def __repr__(self) -> str:
        return f"<operator {NAMESPACE}::{self.ready()}>"

    def ready(self) -> str:
        """The operator's name, without its namespace; it is registered from now on."""
        if not self._name:
            from tkpy.operator.register import register

            with _lock:
                if not self._name:
                    name = claim(self.kernel.fn)
                    register(self, name)
                    tell_caches(name, self.kernel.fn)
                    self._name = name
        return self._name

    # What ``torch.compiler.assume_constant_result`` does, which imports all of Dynamo.
    ready._dynamo_marked_constant = True  # type: ignore[attr-defined]

    @property
    def functional(self) -> torch._ops.OpOverload:
        """``torch.ops.tkpy.<name>.default``, the operator that changes nothing."""
        return getattr(torch.ops.tkpy, self.ready()).default

    # -- calls -----------------------------------------------------------------------------

    def __call__(self, args: tuple, kwargs: dict[str, object]):
        """What ``kernel(*args, **kwargs)`` returns.

        Raises CallError as the kernel does, and where a gradient is asked for that there is not.
        """
        if torch.compiler.is_dynamo_compiling():
            return self._call(args, kwargs)
        try:
            return self._call(args, kwargs)
        except TkError:
            raise
        except (TypeError, RuntimeError, ValueError):
            # PyTorch has looked at the arguments before us; ours is the sentence that helps.
            self.kernel.binder.collect(args, kwargs)
            raise

    def _call(self, args: tuple, kwargs: dict[str, object]):
        name = self.ready()
        given = self._arguments(args, kwargs)
        if self.kernel.autocast and not self._writes_open(given):
            self._cast(given)
        for n in self.numbers:
            if isinstance(given.get(n), torch.Tensor):
                given[n] = self._number(n, given[n])
        asked = {n: given.pop(n) for n, _ in self.outputs if n in given}
        into = {n: t for n, t in asked.items() if isinstance(t, torch.Tensor)}
        wanted = [n for n, optional in self.outputs if n in into or not optional or asked.get(n)]
        if (into or self.changed) and not self._records(given):
            return self._in_place(f"{name}_", given, into, wanted)
        old = {n: given[n] for n in self.changed if given.get(n) is not None}
        for n, t in old.items():
            given[n] = t.clone()  # autograd keeps this one; the caller's is written below
        flags = {n: True for n, optional in self.outputs if optional and n in wanted}
        results = getattr(torch.ops.tkpy, name)(**given, **flags)
        if len(self.outputs) + len(self.changed) == 1:
            results = (results,)
        out = []
        for k, (n, _) in enumerate(self.outputs):
            if n in into:
                self._write(n, into[n], results[k])
                out.append(into[n])
            elif n in wanted:
                out.append(results[k])
        for k, n in enumerate(self.changed):
            if n in old:
                self._write(n, old[n], results[len(self.outputs) + k])
        return out[0] if len(out) == 1 else (tuple(out) or None)

    def _in_place(self, name: str, given: dict, into: dict, wanted: list[str]):
        flags = {
            schema.wanted(n): True
            for n, optional in self.outputs
            if optional and n in wanted and n not in into
        }
        results = getattr(torch.ops.tkpy, name)(**given, **into, **flags)
        if len(self.outputs) == 1:
            results = (results,)
        out = [
            into[n] if n in into else results[k]
            for k, (n, _) in enumerate(self.outputs)
            if n in wanted
        ]
        return out[0] if len(out) == 1 else (tuple(out) or None)

    # -- arguments -------------------------------------------------------------------------

    def _arguments(self, args: tuple, kwargs: dict[str, object]) -> dict:
        given = dict(zip(self.positional, args, strict=False))
        if len(args) > len(self.positional):
            self._refuse("too many positional arguments", args, kwargs)
        for n, value in kwargs.items():
            if n in given or n not in self.parameters:
                self._refuse(f"the keyword {n} is unknown or given twice", args, kwargs)
            given[n] = value
        for n, optional in self.outputs:
            value = given.get(n)
            fits = value is None or isinstance(value, torch.Tensor) or value is True
            if not (fits or (value is False and optional)):
                self._refuse(f"{n} is an output", args, kwargs)
        return given

    def _refuse(self, reason: str, args: tuple, kwargs: dict[str, object]) -> NoReturn:
        if not torch.compiler.is_dynamo_compiling():
            self.kernel.binder.collect(args, kwargs)  # says it better
        raise CallError(f"{self.kernel.name}: {reason}; it takes {', '.join(self.parameters)}")

    def cast(self, args: tuple, kwargs: dict[str, object]) -> tuple[tuple, dict[str, object]]:
        """The arguments of a call as they are under autocast."""
        given, named = dict(zip(self.positional, args, strict=False)), dict(kwargs)
        if not self._writes_open({**given, **named}):
            self._cast(given)
            self._cast(named)
        return (*given.values(), *args[len(given) :]), named

    def _writes_open(self, given: dict) -> bool:
        """Whether a given tensor is written whose type the others share.

        A cast of it would be written in its stead: as in PyTorch nothing is cast then.
        """
        return any(isinstance(given.get(n), torch.Tensor) for n in self.written)

    def _cast(self, given: dict) -> None:
        """As autocast does with the operands of ``torch.matmul``."""
        for n in self.open:
            t = given.get(n)
            if isinstance(t, torch.Tensor) and t.dtype in (
                torch.float32,
                torch.bfloat16,
                torch.float16,
            ):
                device = t.device.type
                if device != "meta" and torch.is_autocast_enabled(device):
                    given[n] = t.to(torch.get_autocast_dtype(device))

    def _number(self, name: str, value: torch.Tensor) -> object:
        if value.requires_grad and torch.is_grad_enabled():
            raise CallError(
                f"{self.kernel.name}: {name} requires grad, and it is a number to the kernel: "
                f"there is no gradient with respect to it\n  fix: pass {name}.item(), or declare "
                f'{name} a tensor, {name}: tk.Global["1"]'
            )
        return value.item() if value.numel() == 1 else value

    def _records(self, given: dict) -> bool:
        """Whether autograd looks at this call."""
        if not torch.is_grad_enabled():
            return False
        for n in self.tensors:
            t = given.get(n)
            if isinstance(t, torch.Tensor) and t.requires_grad:
                return True
        return False

    def _write(self, name: str, into: torch.Tensor, value: torch.Tensor) -> None:
        if into.shape != value.shape or into.dtype != value.dtype:
            raise CallError(
                f"{self.kernel.name}: {name} is {into.dtype} of shape {tuple(into.shape)}; it "
                f"must be {value.dtype} of shape {tuple(value.shape)}"
            )
        into.copy_(value)

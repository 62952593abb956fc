"""Compile generated Triton source ahead of time, for a GPU that need not be present, or this CPU.

No driver is asked for anything: the target, the argument types and what is known about divisibility
are given. `Compiled` holds the text of every stage and the binary, which codegen/inspect.py reads.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from codegen.module import cache_dir, load

# Triton's names for the GPUs that this project compiles for: backend, architecture, warp size.
TARGETS: Mapping[str, GPUTarget] = MappingProxyType(
    {
        "sm_80": GPUTarget("cuda", 80, 32),
        "sm_90": GPUTarget("cuda", 90, 32),
        "sm_100": GPUTarget("cuda", 100, 32),
        "gfx942": GPUTarget("hip", "gfx942", 64),
    }
)

#: The processor that this runs on; its code generator is ``codegen.cpu``.
CPU = "cpu"


class UnknownTarget(ValueError):
    """A target that is neither one of TARGETS nor CPU."""


class ToolMissing(RuntimeError):
    """A binary tool of NVIDIA's, which Triton's wheel normally carries, was not found."""


@dataclass(frozen=True)
class Compiled:
    """One kernel compiled for one target.

    asm maps a stage to its text (`ttir`, `ttgir`, `llir`, then `ptx` or `amdgcn`) and `cubin` or
    `hsaco` to bytes; for CPU `ttir`, `llir` and `asm`, and `cpuobj` to bytes. metadata is Triton's:
    name, shared (bytes per block), num_warps, ...
    """

    target: str
    asm: Mapping[str, Any]
    metadata: Mapping[str, Any]

    @property
    def assembly(self) -> str:
        """The last textual stage: PTX for NVIDIA, amdgcn for AMD, the processor's own for CPU."""
        return next(self.asm[stage] for stage in ("ptx", "amdgcn", "asm") if stage in self.asm)

    @property
    def binary(self) -> bytes:
        """The object file: a cubin, an hsaco, or the system's own for CPU."""
        return next(self.asm[stage] for stage in ("cubin", "hsaco", "cpuobj") if stage in self.asm)

    @functools.cached_property
    def sass(self) -> str:
        """NVIDIA's machine code, disassembled when first asked for.

        Raises ToolMissing without nvdisasm, and ValueError for another target, whose machine code
        `assembly` shows already.
        """
        if "cubin" not in self.asm:
            raise ValueError(f"{self.target} has no SASS: its machine code is `assembly`")
        # -c: code only, without the dump of data sections.
        return run_tool("nvdisasm", "-c", binary=self.binary)


def compile_source(
    source: str,
    kernel: str,
    signature: dict[str, str],
    constexprs: dict[str, object],
    target: str,
    *,
    num_warps: int = 4,
    num_stages: int = 3,
    attrs: dict[str, int] | None = None,
) -> Compiled:
    """Compile the function `kernel` of a generated module to machine code.

    signature: the Triton type of each run-time argument: "*bf16", "i32", "i64", "fp32", ...
    constexprs: the value of each `tl.constexpr` argument.
    attrs: arguments (integers, or addresses in bytes) that 16 divides, as {"x_ptr": 16}.

    Raises UnknownTarget; KeyError for a kernel that the source does not have; TypeError where
    signature and constexprs together are not exactly the kernel's arguments; ValueError for another
    divisibility than 16; and whatever Triton raises for a kernel that it cannot compile.
    """
    described = _target(target)
    function = getattr(load(source, kernel, interpret=False), kernel, None)
    if not isinstance(function, triton.runtime.JITFunction):
        raise KeyError(f"the source has no @triton.jit function {kernel!r}")
    names = list(function.arg_names)
    types = _complete_signature(kernel, names, signature, constexprs)
    properties = {}
    for name, divisor in (attrs or {}).items():
        if divisor != 16 or name not in signature:
            raise ValueError(f"attrs: 16 of a run-time argument, not {name}={divisor}")
        properties[(names.index(name),)] = [["tt.divisibility", 16]]
    with _writable_triton_cache():
        result = triton.compile(
            ASTSource(fn=function, signature=types, constexprs=dict(constexprs), attrs=properties),
            target=described,
            options={"num_warps": num_warps, "num_stages": num_stages},
        )
    # "source" is TTIR before any pass: of no use to a reader.
    asm = {stage: text for stage, text in result.asm.items() if stage != "source"}
    return Compiled(target, MappingProxyType(asm), MappingProxyType(_metadata(result)))


def _target(name: str) -> GPUTarget:
    if name in TARGETS:
        return TARGETS[name]
    if name != CPU:
        known = ", ".join([*TARGETS, CPU])
        raise UnknownTarget(f"unknown target {name!r}: choose one of {known}")
    from codegen.cpu import register
    from codegen.cpu.driver import CpuDriver

    register()
    return CpuDriver().get_current_target()


def _complete_signature(
    kernel: str, names: list[str], signature: dict[str, str], constexprs: dict[str, object]
) -> dict[str, str]:
    # Triton reads the signature by position: it has to list every argument, in order.
    given = [*signature, *constexprs]
    if sorted(given) != sorted(names):
        missing = [n for n in names if n not in given] or "none"
        extra = [n for n in given if n not in names or given.count(n) > 1] or "none"
        raise TypeError(f"arguments of {kernel}: missing {missing}, unknown or repeated {extra}")
    return {name: signature.get(name, "constexpr") for name in names}


def _metadata(result: Any) -> dict[str, Any]:
    metadata = result.metadata
    fields = metadata._asdict() if hasattr(metadata, "_asdict") else vars(metadata)
    return dict(fields)


@contextmanager
def _writable_triton_cache() -> Iterator[None]:
    """Triton writes what it compiles to ~/.triton: where it cannot, it uses our cache folder."""
    wanted = Path(triton.knobs.cache.dir)
    try:
        wanted.mkdir(parents=True, exist_ok=True)
        usable = os.access(wanted, os.W_OK)
    except OSError:
        usable = False
    if usable:
        yield
        return
    with triton.knobs.cache.scope():
        triton.knobs.cache.dir = str(cache_dir() / "triton")
        yield


# --- NVIDIA's tools -------------------------------------------------------------------------------


@functools.cache
def find_tool(name: str) -> str:
    """The path of cuobjdump, nvdisasm or ptxas: Triton's own, else the one on PATH.

    Raises ToolMissing.
    """
    configured = os.environ.get(f"TRITON_{name.upper()}_PATH")
    shipped = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    for path in (configured, str(shipped), shutil.which(name)):
        if path and os.access(path, os.X_OK):
            return path
    raise ToolMissing(
        f"{name} was not found: not in Triton's wheel ({shipped.parent}), nor on PATH. "
        f"Set TRITON_{name.upper()}_PATH to it."
    )


def run_tool(name: str, *options: str, binary: bytes) -> str:
    """What one of NVIDIA's tools prints about an object; raises ToolMissing or RuntimeError."""
    tool = find_tool(name)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(binary)
        done = subprocess.run([tool, *options, str(path)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name} failed ({done.returncode}): {done.stderr.strip()}")
    return done.stdout

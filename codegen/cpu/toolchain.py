"""The host's vector features, and LLVM through llvmlite: IR text -> assembly and object code.

``TKPY_CPU_FEATURES`` forces a feature set: ``avx512`` (without matrix tiles),
``avx2`` or ``base`` (four lanes).
"""

from __future__ import annotations

import functools
import os
import struct
import threading
import zlib
from dataclasses import dataclass

from codegen.forks import anew

_LOCK = threading.Lock()
anew(globals(), _LOCK=threading.Lock)
_AVX2 = "+sse4.2,+avx,+avx2,+fma,+f16c,+bmi,+bmi2,+lzcnt,+popcnt"


@dataclass(frozen=True)
class Features:
    """What code may use: fp32 lanes per vector, vector registers, and named extensions."""

    name: str
    cpu: str
    flags: str
    width: int
    registers: int
    amx: bool = False
    base: str = ""  # extensions that the architecture always has, for which LLVM knows no flag

    def has(self, extension: str) -> bool:
        return f"+{extension}," in f"{self.flags},{self.base},"

    @property
    def bits(self) -> int:
        return self.width * 32


@functools.cache
def llvm():
    """llvmlite's binding, ready to generate code for this machine. Loaded at the first compile."""
    try:
        import llvmlite.binding as binding
    except ImportError as error:
        raise ImportError(
            f"kernels for the CPU are compiled with llvmlite, which cannot be imported: {error}\n"
            "  fix: pip install llvmlite"
        ) from error

    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    binding.initialize_native_asmparser()
    return binding


def _allow_tiles() -> bool:
    """Linux hands out the large tile state only to processes that ask for it."""
    import ctypes
    import sys

    if not sys.platform.startswith("linux"):
        return False
    arch_prctl, request, tile_data = 158, 0x1023, 18
    return ctypes.CDLL(None).syscall(arch_prctl, request, tile_data) == 0


@functools.cache
def _features(forced: str) -> Features:
    binding = llvm()
    host = binding.get_host_cpu_features()
    cpu = binding.get_host_cpu_name()
    flags = host.flatten()
    if forced == "base":
        x86 = "x86" in binding.get_process_triple()
        return Features("base", "x86-64" if x86 else "generic", "+sse2" if x86 else "", 4, 16)
    if forced == "avx2" or (not forced and host.get("avx2") and not host.get("avx512f")):
        return Features("avx2", "haswell" if forced else cpu, _AVX2 if forced else flags, 8, 16)
    if forced == "avx512" or (not forced and host.get("avx512f")):
        amx = not forced and bool(host.get("amx-bf16")) and _allow_tiles()
        return Features("amx" if amx else "avx512", cpu, flags, 16, 32, amx)
    neon = host.get("neon") or "aarch64" in binding.get_process_triple()
    if neon:
        return Features("neon", cpu, flags, 4, 32, base="+fma,+f16c")
    return Features("base", cpu, flags, 4, 16)


def features() -> Features:
    """The feature set that kernels are compiled for now."""
    return _features(os.environ.get("TKPY_CPU_FEATURES", ""))


@functools.cache
def _machine(f: Features):
    binding = llvm()
    target = binding.Target.from_default_triple()
    return target.create_target_machine(cpu=f.cpu, features=f.flags, opt=2, jit=True)


# Lines of a module beyond which values are not numbered: that takes more than linear time (6 s for
# 16,000 lines), and little is left to find. After simplification it would be quick, but aborts.
_LARGE = 6000


def _simplify(binding, machine, module, lines: int = 0) -> None:
    """A short pipeline: the code is vector code with invariants hoisted already, and LLVM's -O2
    would take six times as long to find that out. ``lines``: how long the module's text is."""
    builder = binding.create_pass_builder(machine, binding.create_pipeline_tuning_options())
    whole = binding.create_new_module_pass_manager()
    whole.add_always_inliner_pass()
    whole.run(module, builder)
    manager = binding.create_new_function_pass_manager()
    manager.add_sroa_pass()
    if lines <= _LARGE:
        manager.add_new_gvn_pass()
    manager.add_instruction_combine_pass()
    manager.add_simplify_cfg_pass()
    manager.add_loop_rotate_pass()
    manager.add_instruction_combine_pass()
    manager.add_dead_code_elimination_pass()
    for function in module.functions:
        if not function.is_declaration:
            manager.run(function, builder)


def _assemble(binding, machine, assembly: str) -> bytes:
    """Object code of assembly text: 14 times as fast as generating it from the module again."""
    escaped = assembly.replace("\\", "\\5C").replace('"', "\\22")
    lines = [f'module asm "{line}"' for line in escaped.splitlines()]
    module = binding.parse_assembly("\n".join(lines))
    module.triple = machine.triple
    return machine.emit_object(module)


def optimise(text: str, f: Features) -> tuple[str, str, bytes]:
    """LLVM IR text -> (optimised IR, assembly, object)."""
    binding = llvm()
    with _LOCK:
        machine = _machine(f)
        module = binding.parse_assembly(text)
        module.triple = machine.triple
        module.verify()
        _simplify(binding, machine, module, text.count("\n"))
        readable, assembly = str(module), machine.emit_assembly(module)
        return readable, assembly, _assemble(binding, machine, assembly)


_SEAL = struct.Struct("<4sI")


def seal(binary: bytes) -> bytes:
    """Object code with a checksum behind it: LLVM crashes on files that a full disk cut short."""
    return binary + _SEAL.pack(b"tkpy", zlib.crc32(binary))


def unseal(data: bytes) -> bytes:
    """What ``seal`` was given. Raises OSError if it is not that any more."""
    binary = data[: -_SEAL.size]
    if data != seal(binary):
        raise OSError(
            "a compiled kernel in Triton's cache is damaged\n"
            f"  fix: remove {os.environ.get('TRITON_CACHE_DIR') or '~/.triton/cache'}"
        )
    return binary


class Library:
    """Object code loaded into the process; keep it alive as long as its functions are called."""

    def __init__(self, *objects: bytes) -> None:
        binding = llvm()
        with _LOCK:
            empty = binding.parse_assembly("")
            self.engine = binding.create_mcjit_compiler(
                empty, binding.Target.from_default_triple().create_target_machine(jit=True)
            )
            for data in objects:
                self.engine.add_object_file(binding.object_file.ObjectFileRef.from_data(data))
            self.engine.finalize_object()

    def address(self, name: str) -> int:
        return self.engine.get_function_address(name)

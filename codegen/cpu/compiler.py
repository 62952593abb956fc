"""The compiler half of the backend: Triton's stages from TTIR to object code.

Nothing heavy is imported here: Triton imports this module inside ``import triton``.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass, fields
from pathlib import Path

from triton.backends.compiler import BaseBackend as _Base
from triton.backends.compiler import GPUTarget

from codegen.cpu import environment


@functools.cache
def _version() -> str:
    """A hash of this package's source: objects that other source generated are not reused."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        try:
            digest.update(path.read_bytes())
        except OSError:  # its name and time of change have to do
            digest.update(f"{path} {path.lstat().st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


@functools.cache
def _llvm_version() -> str:
    try:
        import llvmlite
    except ImportError:  # the first compile says so
        return "none"
    return llvmlite.__version__


@dataclass(frozen=True)
class CpuOptions:
    """Options that Triton's front end or other people's launches name; most mean nothing here."""

    num_warps: int = 1
    num_ctas: int = 1
    num_stages: int = 1
    warp_size: int = 1
    cluster_dims: tuple = (1, 1, 1)
    maxnreg: int | None = None
    extern_libs: tuple | None = None
    debug: bool = False
    sanitize_overflow: bool = False
    arch: str = ""
    enable_fp_fusion: bool = True
    launch_cooperative_grid: bool = False
    launch_pdl: bool = False
    supported_fp8_dtypes: tuple = ("fp8e4nv", "fp8e5")
    deprecated_fp8_dot_operand_dtypes: tuple = ()
    default_dot_input_precision: str = "ieee"
    allowed_dot_input_precisions: tuple = ("ieee", "tf32", "tf32x3", "bf16x3", "bf16x6")
    max_num_imprecise_acc_default: int = 0
    allow_fp8e4nv: bool = True
    backend_name: str = "cpu"
    instrumentation_mode: str = ""
    ir_override: str | None = None
    check: bool = False  # codegen.cpu.check

    def hash(self) -> str:
        """Only what changes the code takes part: warps, stages and registers do not."""
        key = f"{self.debug}-{self.arch}-{self.enable_fp_fusion}-{self.sanitize_overflow}"
        key += f"-{self.check}"
        return hashlib.sha256(key.encode()).hexdigest()


def _may_be_option(name: str, value) -> bool:
    """Kernel arguments given by name come here too; a kernel's metadata is no place for them.

    There ``target`` and ``hash`` are names of Triton's own.
    """
    plain = (bool, int, float, str, tuple, list, dict, type(None))
    return isinstance(value, plain) and name not in ("target", "hash")


class CpuBackend(_Base):
    """Compiles TTIR for the processor it runs on."""

    binary_ext = "cpuobj"
    supports_native_tensor_specialization = False

    # Vector loads need no alignment here, so how a tensor lies makes no new variant. Asked at every
    # launch for every tensor: this gives "" for any arguments, and is no Python frame.
    get_tensor_specialization = staticmethod("".format)

    @staticmethod
    def supports_target(target: GPUTarget) -> bool:
        return target.backend == "cpu"

    def hash(self) -> str:
        return f"{_version()}-{_llvm_version()}-{self.target.arch}"

    def parse_options(self, options: dict) -> CpuOptions:
        known = {f.name for f in fields(CpuOptions)}
        given = {k: v for k, v in options.items() if k in known and v is not None}
        for k, v in given.items():
            if isinstance(v, list):
                given[k] = tuple(v)
        extra = {k: v for k, v in options.items() if k not in known and _may_be_option(k, v)}
        given["arch"] = str(self.target.arch)
        given.setdefault("check", environment.checking())
        if given["check"]:
            from codegen.cpu import poison

            poison.install()
        out = CpuOptions(**given)
        for k, v in extra.items():  # accepted and ignored; Triton looks for the names it passed
            object.__setattr__(out, k, v)
        return out

    def add_stages(self, stages: dict, options: CpuOptions, language=None) -> None:
        stages["ttir"] = lambda src, metadata: _ttir(src, metadata)
        stages["llir"] = lambda src, metadata: _llir(src, metadata, options)
        stages["asm"] = lambda src, metadata: _asm(src, metadata)
        stages["cpuobj"] = lambda src, metadata: _object(src, metadata)

    def load_dialects(self, context) -> None:
        """TTIR needs no dialect of ours."""

    def get_module_map(self) -> dict:
        from triton.language.extra.cuda import libdevice

        return {"triton.language.extra.libdevice": libdevice}

    def get_codegen_implementation(self, options) -> dict:
        return {
            "min_dot_size": lambda lhs, rhs: (1, 1, 1),
            "convert_custom_types": lambda *args, **kwargs: None,
        }

    def pack_metadata(self, metadata):
        return metadata


def _ttir(module, metadata: dict):
    from triton._C.libtriton import ir, passes

    manager = ir.pass_manager(module.context)
    passes.common.add_inliner(manager)
    for name in ("add_rewrite_tensor_pointer", "add_rewrite_tensor_descriptor_to_pointer"):
        if hasattr(passes.ttir, name):
            getattr(passes.ttir, name)(manager)
    passes.common.add_canonicalizer(manager)
    passes.ttir.add_combine(manager)
    passes.ttir.add_reorder_broadcast(manager)
    passes.common.add_cse(manager)
    passes.ttir.add_triton_licm(manager)
    passes.common.add_symbol_dce(manager)
    try:
        manager.run(module, "make_ttir")
    except TypeError:  # Triton 3.6 takes no name
        manager.run(module)
    metadata["shared"] = 0
    return module


def _llir(module, metadata: dict, options: CpuOptions) -> str:
    from codegen.cpu.lower.function import lower
    from codegen.cpu.parser import parse
    from codegen.cpu.toolchain import features

    ops = parse(str(module))
    metadata["name"] = ops.kernel.name
    metadata["shared"] = 0
    text, info = lower(ops, features(), options.enable_fp_fusion, options.check)
    metadata["cpu"] = info
    return text


def _asm(text: str, metadata: dict) -> str:
    from codegen.cpu.toolchain import features, optimise

    _, assembly, binary = optimise(text, features())
    metadata["__object"] = binary.hex()
    return assembly


def _object(assembly: str, metadata: dict) -> bytes:
    from codegen.cpu.toolchain import seal

    return seal(bytes.fromhex(metadata.pop("__object")))

"""What a compiled kernel uses and what it is made of, read from the compiled object.

Nothing here is an estimate of the compiler's intentions. Registers come from the binary's own
resource table, spills from its machine code (NVIDIA) or its metadata (AMD), instructions from its
assembly.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass

from codegen.aot import Compiled, run_tool


@dataclass(frozen=True)
class Report:
    """The facts about one compiled kernel.

    registers: 32-bit registers of a thread (AMD: vector registers of a lane, AGPRs included).
    spills: bytes per thread of the spill stores and loads that the machine code holds; 0 means that
        nothing was spilled. AMD reports spilled registers instead, counted here as 4 bytes each.
    shared_bytes: shared memory (AMD: LDS) of one block.
    occupancy: resident warps of a multiprocessor over the most it can hold, 0 to 1, as limited by
        registers, shared memory and warps. 0 means that not even one block fits.
    instructions: static counts by kind, see INSTRUCTIONS. A loop's body counts once.
    """

    target: str
    registers: int
    spills: int
    shared_bytes: int
    occupancy: float
    instructions: dict[str, int]

    def to_json(self) -> str:
        """One JSON object with exactly the fields above."""
        return json.dumps(asdict(self))


# Patterns over one instruction (PTX or amdgcn), matched from its start, predicate removed.
INSTRUCTIONS: dict[str, re.Pattern[str]] = {
    "wgmma": re.compile(r"wgmma\.mma_async\b"),  # Hopper's, a group of four warps
    "tcgen05": re.compile(r"tcgen05\.mma\b"),  # Blackwell's, one thread, tensor memory
    "mma": re.compile(r"mma\.sync\b"),  # one warp; Ampere's, and the fall-back on later ones
    "mfma": re.compile(r"v_mfma_"),  # CDNA's
    # The copies themselves: commit_group, wait_group and prefetch move nothing to a block.
    "bulk_copy": re.compile(
        r"cp(\.reduce)?\.async\.bulk\b(?!\.(commit_group|wait_group|prefetch))"
    ),
    "mbarrier": re.compile(r"mbarrier\.\w+"),
    "setmaxnreg": re.compile(r"setmaxnreg\b"),
}


@dataclass(frozen=True)
class _Limits:
    """What one multiprocessor (NVIDIA) or compute unit (AMD) holds."""

    max_warps: int
    max_blocks: int
    registers: int  # per unit that shares a register file, in 32-bit registers per lane x lanes
    register_granule: int  # a warp's registers are rounded up to a multiple of this
    units: int  # register files: blocks' warps are dealt to them evenly
    lanes: int
    shared: int  # bytes
    shared_reserved: int  # bytes that the system takes from each block
    shared_granule: int
    max_shared_per_block: int


_KB = 1024

# NVIDIA: CUDA C++ Programming Guide, "Technical Specifications per Compute Capability" (8.0, 9.0,
# 10.0), and the occupancy calculator's granularities: registers are given to a warp in units of
# 256, i.e. 8 per lane, out of four files of 16,384. From 8.0 on the system takes 1 KB a block.
# AMD: CDNA 3 ISA reference (512 vector registers per lane and SIMD, AGPRs included, in units of 8;
# four SIMDs; 64 KB of LDS) and LLVM's AMDGPU guide (at most 8 waves per SIMD from gfx90a on).
_LIMITS = {
    "sm_80": _Limits(64, 32, 16384, 8, 4, 32, 164 * _KB, _KB, 128, 163 * _KB),
    "sm_90": _Limits(64, 32, 16384, 8, 4, 32, 228 * _KB, _KB, 128, 227 * _KB),
    "sm_100": _Limits(64, 32, 16384, 8, 4, 32, 228 * _KB, _KB, 128, 227 * _KB),
    "gfx942": _Limits(32, 32, 512 * 64, 8, 4, 64, 64 * _KB, 0, 512, 64 * _KB),
}


def inspect(compiled: Compiled) -> Report:
    """Read a compiled kernel's resources and instructions; needs no GPU.

    Raises aot.ToolMissing where NVIDIA's cuobjdump or nvdisasm is absent, and ValueError for an
    object that does not say what it uses.
    """
    read = _read_amd if "amdgcn" in compiled.asm else _read_nvidia
    registers, spills, shared = read(compiled)
    return Report(
        target=compiled.target,
        registers=registers,
        spills=spills,
        shared_bytes=shared,
        occupancy=occupancy(
            compiled.target, registers, shared, int(compiled.metadata["num_warps"])
        ),
        instructions=count_instructions(compiled.assembly),
    )


def occupancy(target: str, registers: int, shared_bytes: int, num_warps: int) -> float:
    """Resident warps over the maximum, for blocks of `num_warps` warps; 0.0 where none fits.

    registers: of a thread. shared_bytes: of a block. Raises KeyError for an unknown target.
    """
    limits = _LIMITS[target]
    if shared_bytes > limits.max_shared_per_block:
        return 0.0
    granule = limits.register_granule
    of_a_warp = max(granule, -(-registers // granule) * granule) * limits.lanes
    warps_by_registers = min(limits.units * (limits.registers // of_a_warp), limits.max_warps)
    granule = limits.shared_granule
    of_a_block = -(-(shared_bytes + limits.shared_reserved) // granule) * granule
    blocks = min(
        limits.max_blocks,
        warps_by_registers // num_warps,
        limits.shared // of_a_block if of_a_block else limits.max_blocks,
    )
    return blocks * num_warps / limits.max_warps


def count_instructions(assembly: str) -> dict[str, int]:
    """Static counts, by the keys of INSTRUCTIONS, in PTX or amdgcn text."""
    counts = dict.fromkeys(INSTRUCTIONS, 0)
    for line in assembly.splitlines():
        # PTX puts several instructions on a line, in braces, behind a label or a predicate.
        for part in re.split(r"[;{}]", line.split("//")[0]):
            text = re.sub(r"^\s*(\$?\w+:\s*)?(@!?%?\w+\s+)?", "", part)
            for kind, pattern in INSTRUCTIONS.items():
                counts[kind] += bool(pattern.match(text))
    return counts


# --- NVIDIA ---------------------------------------------------------------------------------------


def _read_nvidia(compiled: Compiled) -> tuple[int, int, int]:
    usage = run_tool("cuobjdump", "-res-usage", binary=compiled.binary)
    name = re.escape(str(compiled.metadata["name"]))
    found = re.search(rf"Function {name}:\s+REG:(\d+)", usage)
    if not found:
        raise ValueError(f"cuobjdump names no resources of {compiled.metadata['name']}: {usage}")
    # Triton asks for shared memory at the launch. What the object itself lists from sm_90 on is the
    # system's own 1 KB of each block, which `occupancy` adds.
    shared = int(compiled.metadata["shared"])
    return int(found[1]), spill_bytes(compiled.sass), shared


def spill_bytes(sass: str) -> int:
    """Bytes that local-memory instructions move, each counted once.

    ptxas spills to a thread's local memory. Triton puts nothing else there.
    """
    total = 0
    for width in re.findall(r"\b(?:STL|LDL)(?:\.LU|\.STRONG)*(?:\.([SU]?\d+))?\b", sass):
        bits = int(width.lstrip("SU")) if width else 32
        total += bits // 8
    return total


# --- AMD ------------------------------------------------------------------------------------------


def _read_amd(compiled: Compiled) -> tuple[int, int, int]:
    text = compiled.asm["amdgcn"]

    def field(name: str) -> int:
        found = re.search(rf"^\s*\.{name}:\s*(\d+)", text, re.MULTILINE)
        if not found:
            raise ValueError(f"the amdgcn metadata of {compiled.metadata['name']} has no .{name}")
        return int(found[1])

    spills = 4 * (field("vgpr_spill_count") + field("sgpr_spill_count"))
    # Triton sizes LDS at the launch, so the object usually says 0.
    shared = max(field("group_segment_fixed_size"), int(compiled.metadata["shared"]))
    return field("vgpr_count"), spills, shared

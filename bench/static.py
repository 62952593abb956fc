"""What GPUs would run of ours and of the same by hand: ``python -m bench gpu-static``.

No GPU is needed: registers, spills and the length of the innermost loop around the matrix
instructions are read from the machine code. Both sides have the same tiles, stages and warps.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import asdict, dataclass

import triton
from triton.compiler import ASTSource

from bench.handwritten import attention as by_hand_attention
from bench.handwritten import gemm as by_hand_gemm
from codegen.aot import TARGETS, Compiled, _metadata
from codegen.inspect import inspect
from codegen.schedule import Schedule
from tkpy.ahead import Setting, compile_lowered, lower_for
from zoo.kernels.attention import attention
from zoo.kernels.gemm import gemm

#: One matrix instruction in SASS or amdgcn.
_MATRIX = re.compile(r"\b(HMMA|HGMMA|UTCHMMA|UTCQMMA|v_mfma\w*)\b")
_LABEL = re.compile(r"^\s*(\.L\w+):")
_JUMP = re.compile(r"\b(?:BRA\S*|s_cbranch\w*|s_branch)\b.*?`?\(?(\.L\w+)\)?")
_SASS = re.compile(r"^\s*/\*[0-9a-f]+\*/")
_GCN = re.compile(r"^\s+[sv]_|^\s+(ds|global|buffer|flat)_")


@dataclass
class Row:
    """One kernel on one target; ``loop`` is instructions of the innermost matrix loop."""

    work: str
    target: str
    registers: int
    registers_by_hand: int
    spills: int
    spills_by_hand: int
    loop: int
    loop_by_hand: int
    obtained: str

    @property
    def ratio(self) -> float:
        return self.loop / self.loop_by_hand


def loop_length(compiled: Compiled) -> int:
    """Instructions of the innermost loop with the most matrix instructions; 0 without one.

    With tcgen05 one warp issues those and others do the work between: there it is the longest
    innermost loop of all.
    """
    amd = "amdgcn" in compiled.asm
    text = compiled.assembly if amd else compiled.sass
    is_instruction = _GCN if amd else _SASS
    at = 0
    labels: dict[str, int] = {}
    matrix: list[int] = []
    loops: list[tuple[int, int]] = []
    for line in text.splitlines():
        label = _LABEL.match(line)
        if label:
            labels[label[1]] = at
            continue
        if not is_instruction.match(line):
            continue
        at += 1
        if _MATRIX.search(line):
            matrix.append(at)
        jump = _JUMP.search(line)
        if jump and jump[1] in labels:
            loops.append((labels[jump[1]], at))
    if compiled.target == "sm_100":
        return max((b - a for a, b in _innermost(loops)), default=0)
    loops = [(a, b) for a, b in loops if _inside(matrix, a, b)]
    counted = [(_inside(matrix, a, b), a - b) for a, b in _innermost(loops)]
    return -max(counted)[1] if counted else 0


def _innermost(loops: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Those that hold no other one."""
    return [
        (a, b)
        for a, b in loops
        if not any((c, d) != (a, b) and a <= c and d <= b for c, d in loops)
    ]


def _inside(matrix: list[int], begin: int, end: int) -> int:
    return sum(begin < m <= end for m in matrix)


def by_hand(
    kernel,
    types: dict[str, str],
    constants: dict,
    target: str,
    s: Schedule,
    rows: tuple[str, ...] = (),
) -> Compiled:
    """``kernel``, a hand-written one, at the stages and warps of ``s``.

    Both sides know the same: 16 divides addresses, strides, and the lengths ``rows`` of rows.
    """
    names = kernel.arg_names
    attrs = {
        (names.index(n),): [["tt.divisibility", 16]]
        for n, t in types.items()
        if t.startswith("*") or n.startswith("stride") or n in rows
    }
    signature = {n: types.get(n, "constexpr") for n in names}
    constants = {n: v for n, v in constants.items() if n in names}
    result = triton.compile(
        ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attrs),
        target=TARGETS[target],
        options={"num_warps": s.warps, "num_stages": s.stages},
    )
    return Compiled(target, result.asm, _metadata(result))


def _gemm(target: str, cols: int) -> Row:
    lowered = lower_for(gemm, Setting(constants={"cols": cols}), target=target)
    s = lowered.fn.schedule
    assert s is not None
    types = dict.fromkeys(("a_ptr", "b_ptr", "c_ptr"), "*bf16")
    types |= dict.fromkeys(("M", "N", "K", "stride_am", "stride_bk", "stride_cm"), "i32")
    constants = dict(BM=128, BN=cols, BK=64, GROUP=8, STAGES=s.stages, SPECIALISE=s.specialise)
    kernel = by_hand_gemm.gemm_described if s.described else by_hand_gemm.gemm_pointers
    other = by_hand(kernel, types, constants, target, s, rows=("N", "K"))
    return _row(f"gemm 128x{cols}x64", compile_lowered(gemm, lowered, target), other)


def _attention(target: str, d: int, causal: bool) -> Row:
    rows = 128 if d == 64 else 64
    setting = Setting(sizes={"D": d}, constants={"rows": rows, "causal": causal, "scale": True})
    lowered = lower_for(attention, setting, target=target)
    s = lowered.fn.schedule
    assert s is not None
    module = by_hand_attention
    kernel = module.attention_described if s.described else module.attention_pointers
    types = dict.fromkeys(("q_ptr", "k_ptr", "v_ptr", "o_ptr"), "*bf16") | {"scale": "fp32"}
    types |= {n: "i32" for n in kernel.arg_names if n in ("H", "N", "M") or n[:6] == "stride"}
    constants = dict(D=d, CAUSAL=causal, BM=rows, BN=64, STAGES=s.stages, SPECIALISE=s.specialise)
    other = by_hand(kernel, types, constants, target, s)
    name = f"attention{' causal' if causal else ''} D={d}"
    return _row(name, compile_lowered(attention, lowered, target), other)


def _row(work: str, ours: Compiled, other: Compiled) -> Row:
    mine, theirs = inspect(ours), inspect(other)
    obtained = " ".join(f"{k} {n}" for k, n in mine.instructions.items() if n)
    return Row(
        work, ours.target, mine.registers, theirs.registers, mine.spills, theirs.spills,
        loop_length(ours), loop_length(other), obtained,
    )  # fmt: skip


def works() -> dict[str, Callable[[str], Row]]:
    """What is compared, by name."""
    out: dict[str, Callable[[str], Row]] = {}
    for cols in (128, 256):
        out[f"gemm 128x{cols}x64"] = lambda target, c=cols: _gemm(target, c)
    for d, causal in ((64, False), (64, True), (128, False)):
        name = f"attention{' causal' if causal else ''} D={d}"
        out[name] = lambda target, d=d, c=causal: _attention(target, d, c)
    return out


def run(only: str = "", target: str = "") -> list[Row]:
    """Every row that ``only`` and ``target`` leave, printed as they come."""
    print(f"{'work':26}{'target':8}{'registers':>11}{'by hand':>9}{'spills':>8}{'by hand':>9}"
          f"{'loop':>7}{'by hand':>9}{'ratio':>7}  obtained")  # fmt: skip
    rows = []
    for name, one in works().items():
        for t in TARGETS:
            if only not in name or (target and t != target):
                continue
            r = one(t)
            rows.append(r)
            ratio = f"{r.ratio:.2f}" if r.loop_by_hand else "-"
            print(f"{r.work:26}{t:8}{r.registers:11}{r.registers_by_hand:9}{r.spills:8}"
                  f"{r.spills_by_hand:9}{r.loop:7}{r.loop_by_hand:9}{ratio:>7}  {r.obtained}",
                  flush=True)  # fmt: skip
    return rows


def as_json(rows: list[Row]) -> list[dict]:
    return [asdict(r) for r in rows]

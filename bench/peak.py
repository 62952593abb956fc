"""The machine's limits, measured: loops of nothing but multiply-adds of one dtype."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable

_MODULE = """
{declare}
{globals}
define void @peak(i64 %n, ptr %out) #0 {{
entry:
{start}
  br label %loop
loop:
  %i = phi i64 [ 0, %entry ], [ %j, %loop ]
{phis}
{body}
  %j = add i64 %i, 1
  %c = icmp slt i64 %j, %n
  br i1 %c, label %loop, label %end
end:
{stores}
  ret void
}}
attributes #0 = {{ "prefer-vector-width"="512" "min-legal-vector-width"="512"
                   "target-features"="{flags}" }}
"""
CHAINS, STEPS = 12, 4


def _vectors(f, bf16: bool) -> tuple[str, int]:
    """Independent chains of vector multiply-adds; and the operations of one round."""
    n = f.width
    t = f"<{n} x float>"
    if bf16:
        declare = (
            f"declare {t} @llvm.x86.avx512bf16.dpbf16ps.512({t}, <32 x bfloat>, <32 x bfloat>)"
        )
        pair = "<32 x bfloat> splat (bfloat 0.5)"
    elif f.has("fma"):
        declare = f"declare {t} @llvm.fma.v{n}f32({t}, {t}, {t})"
    else:
        declare = ""
    phis, body, stores = [], [], []
    for c in range(CHAINS):
        phis.append(f"  %a{c} = phi {t} [ splat (float {c + 1}.0), %entry ], "
                    f"[ %r{c}_{STEPS - 1}, %loop ]")  # fmt: skip
        stores.append(f"  %p{c} = getelementptr float, ptr %out, i64 {c * n}")
        stores.append(f"  store {t} %r{c}_{STEPS - 1}, ptr %p{c}, align 4")
    for s in range(STEPS):
        for c in range(CHAINS):
            x, r = (f"%a{c}" if s == 0 else f"%r{c}_{s - 1}"), f"%r{c}_{s}"
            if bf16:
                body.append(f"  {r} = call {t} @llvm.x86.avx512bf16.dpbf16ps.512("
                            f"{t} {x}, {pair}, {pair})")  # fmt: skip
            elif declare:
                scale, shift = f"{t} splat (float 0.75)", f"{t} splat (float 1.25)"
                body.append(f"  {r} = call {t} @llvm.fma.v{n}f32({scale}, {t} {x}, {shift})")
            else:
                body.append(f"  %m{c}_{s} = fmul {t} {x}, splat (float 0.75)")
                body.append(f"  {r} = fadd {t} %m{c}_{s}, splat (float 1.25)")
    text = _MODULE.format(
        declare=declare,
        globals="",
        start="",
        phis="\n".join(phis),
        body="\n".join(body),
        stores="\n".join(stores),
        flags=f.flags,
    )
    return text, CHAINS * STEPS * n * 2 * (2 if bf16 else 1)


def _tiles(f) -> tuple[str, int]:
    """The same with matrix tiles: four accumulators from two left and two right tiles."""
    from codegen.cpu.lower.tiles import CONFIG

    data = ", ".join(f"i8 {b}" for b in CONFIG)
    body = [f"  call void @llvm.x86.tdpbf16ps(i8 {2 * x + y}, i8 {4 + x}, i8 {6 + y})"
            for _ in range(STEPS) for x in (0, 1) for y in (0, 1)]  # fmt: skip
    text = _MODULE.format(
        declare="declare void @llvm.x86.ldtilecfg(ptr)\ndeclare void @llvm.x86.tilerelease()\n"
        "declare void @llvm.x86.tilezero(i8)\ndeclare void @llvm.x86.tdpbf16ps(i8, i8, i8)",
        globals=f"@config = private constant [64 x i8] [{data}], align 64",
        start="  call void @llvm.x86.ldtilecfg(ptr @config)\n"
        + "\n".join(f"  call void @llvm.x86.tilezero(i8 {i})" for i in range(8)),
        phis="",
        body="\n".join(body),
        stores="  call void @llvm.x86.tilerelease()",
        flags=f.flags,
    )
    return text, len(body) * 16 * 16 * 32 * 2


def peak(dtype: str, threads: int) -> Callable[[], float]:
    """A function that measures the rate of so many threads at products of ``dtype``, in GFLOP/s.

    dtype: "fp32", or "bf16" with fp32 sums (the matrix tiles or the vector instruction where the
    host has them, else the fp32 rate, because bf16 is widened there).
    """
    from codegen.cpu.toolchain import Library, features, optimise

    f = features()
    bf16 = dtype == "bf16" and f.has("avx512bf16") and f.width == 16
    text, flops = _tiles(f) if dtype == "bf16" and f.amx else _vectors(f, bf16)
    library = Library(optimise(text, f)[2])
    call = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_void_p)(library.address("peak"))
    call.library = library
    out = [ctypes.create_string_buffer(CHAINS * f.width * 4) for _ in range(threads)]
    count = 300_000

    def measure() -> float:
        workers = [threading.Thread(target=call, args=(count, o)) for o in out]
        start = time.perf_counter()
        for w in workers:
            w.start()
        for w in workers:
            w.join()
        return threads * count * flops / (time.perf_counter() - start) / 1e9

    return measure

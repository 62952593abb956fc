"""What it costs to call, to import and to compile: ``python -m bench launch``.

Every figure is the least of its rounds: these are fixed amounts of work, and whatever else the
machine does only adds to them. The rival of the tkpy call is torch's operator on the same tensors;
the other rows have none. A limit is what no backend can take away: of a bare launch Triton's own
path with a launcher that does nothing, of the first launch in a process Triton's own start (it
hashes itself), of ``import tkpy`` the import of sympy alone, which it contains.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import timeit
from collections.abc import Callable
from pathlib import Path

import torch
import triton
import triton.language as tl

CALLS = 20  # few enough that a batch fits between two interruptions
ROOT = Path(__file__).resolve().parent.parent


@triton.jit
def add(x, y, o, n, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    tl.store(o + i, tl.load(x + i, mask=i < n) + tl.load(y + i, mask=i < n), mask=i < n)


def _row(work: str, ours: float, rival: str | None = None, rival_ms: float | None = None,
         limit: float | None = None) -> dict:  # fmt: skip
    return {
        "work": work,
        "ours_ms": ours,
        "rival": rival,
        "rival_ms": rival_ms,
        "ratio": rival_ms / ours if rival_ms else None,
        "limit_fraction": limit / ours if limit else None,
    }


def _least(rows: list[dict[str, float]]) -> dict[str, float]:
    return {k: min(r[k] for r in rows) for k in rows[0]}


def _times(fns: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Milliseconds of one call of each; they take turns."""
    took: dict[str, list[float]] = {k: [] for k in fns}
    for _ in range(400):
        for name, fn in fns.items():
            took[name].append(timeit.timeit(fn, number=CALLS) / CALLS * 1e3)
    return {k: min(v) for k, v in took.items()}


def bare() -> dict:
    """A Triton kernel of five arguments on 64 numbers, through ``kernel[grid](...)``."""
    x, y, o = (torch.randn(64) for _ in range(3))
    kernel = add[(1,)](x, y, o, 64, B=64)
    assert torch.equal(o, x + y)
    launcher = kernel.run

    def idle(*_):
        pass

    def alone():
        kernel._run = idle
        add[(1,)](x, y, o, 64, 64)
        kernel._run = launcher

    t = _times({"ours": lambda: add[(1,)](x, y, o, 64, 64), "limit": alone})
    return _row("launch 5 arguments", t["ours"], limit=t["limit"])


def call() -> dict:
    """A tkpy kernel on three 4-d tensors: checks, allocation of the output, launch."""
    from zoo.kernels.attention import attention

    sdpa = torch.nn.functional.scaled_dot_product_attention
    q, k, v = (torch.randn(1, 1, 16, 16) for _ in range(3))
    assert torch.allclose(attention(q, k, v), sdpa(q, k, v), rtol=1e-4, atol=1e-5)
    t = _times({"ours": lambda: attention(q, k, v), "torch": lambda: sdpa(q, k, v)})
    return _row("call three 4-d tensors", t["ours"], "torch", t["torch"])


# --- fresh interpreters ---------------------------------------------------------------------------


def _fresh(code: str, *options: str, **env: str) -> subprocess.CompletedProcess:
    """A fresh interpreter that has run ``code``."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **env}
    return subprocess.run(
        [sys.executable, *options, "-c", code],
        env=variables, cwd="/", check=True, capture_output=True, text=True,
    )  # fmt: skip


def _seconds(code: str, **env: str) -> dict[str, float]:
    """Milliseconds that a program prints as one JSON object."""
    return {k: v * 1e3 for k, v in json.loads(_fresh(code, **env).stdout).items()}


# Triton has been imported without us; then what it would import for us.
PLUGIN = "import triton, tkpy_triton.compiler, tkpy_triton.driver"
IMPORT = """
import json, time, torch, triton, triton.language
a = time.perf_counter()
import sympy
b = time.perf_counter()
import tkpy
c = time.perf_counter()
print(json.dumps({"sympy": b - a, "tkpy": c - a}))
"""
COMPILE = """
import json, time, torch
import codegen.cpu
from bench import kernels
from bench.launch import add
from zoo.kernels.attention import attention
x = torch.randn(64)
q = torch.randn(4, 128, 64)
o = torch.empty_like(q)
b = q[None]
times = {}
def timed(name, fn):
    start = time.perf_counter()
    fn()
    times[name] = time.perf_counter() - start
def own():
    try:
        from triton.runtime.cache import triton_key
    except ImportError:
        from triton.compiler.compiler import triton_key
    import triton.experimental.gluon
    triton_key()
timed("triton", own)
timed("first", lambda: codegen.cpu.run(add, (1,), x, x, x, 64, B=64))
timed("attention", lambda: codegen.cpu.run(
    kernels.attention, (1, 4), q, q, q, o, 128, 0.125, CAUSAL=True, BM=128, BN=64, D=64))
timed("tkpy", lambda: attention(b, b, b))
want = torch.nn.functional.scaled_dot_product_attention(b, b, b, is_causal=True)
assert torch.allclose(o, want[0], rtol=1e-4, atol=1e-5)
print(json.dumps(times))
"""


def plugin(rounds: int = 5) -> dict:
    """What the plug-in adds to ``import triton``: the time in its modules, and what they import."""
    took = []
    for _ in range(rounds):
        lines = _fresh(PLUGIN, "-X", "importtime", TRITON_BACKENDS_IN_TREE="1").stderr
        total = 0
        for line in lines.splitlines():
            fields = line.removeprefix("import time:").split("|")
            if len(fields) == 3 and fields[2].strip() in ("tkpy_triton.compiler",
                                                          "tkpy_triton.driver",
                                                          "tkpy_triton"):  # fmt: skip
                total += int(fields[1])
        took.append(total / 1e3)
    return _row("import triton: the plug-in", min(took))


def imports(rounds: int = 5) -> dict:
    """``import tkpy`` after torch and triton."""
    t = _least([_seconds(IMPORT) for _ in range(rounds)])
    return _row("import tkpy", t["tkpy"], limit=t["sympy"])


def compiles(rounds: int = 3) -> list[dict]:
    """First calls, with empty caches and with those that the first process left."""
    cold, cached = [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            env = {"TRITON_CACHE_DIR": f"{folder}/triton", "TKPY_CACHE_DIR": f"{folder}/tkpy"}
            cold.append(_seconds(COMPILE, **env))
            cached.append(_seconds(COMPILE, **env))
    names = {
        "first": "first launch of a process",
        "attention": "compile attention",
        "tkpy": "first call attention (tkpy)",
    }
    rows = []
    for key, name in names.items():
        for how, t in (("cold", _least(cold)), ("cached", _least(cached))):
            start = t["triton"] if key == "first" else 0
            rows.append(_row(f"{name} {how}", start + t[key], limit=start))
    return rows


def run() -> list[dict]:
    """Measure, print and give the rows."""
    import codegen.cpu

    os.environ["TRITON_DEFAULT_BACKEND"] = "cpu"
    os.environ.pop("TKPY_EXECUTOR", None)
    codegen.cpu.register()
    rows = []
    print(f"{'work':36}{'ours ms':>10}{'rival ms':>10}  {'rival':7}{'of limit':>9}")
    for measure in (bare, call, plugin, imports, compiles):
        found = measure()
        for row in [found] if isinstance(found, dict) else found:
            rows.append(row)
            rival, share = row["rival_ms"], row["limit_fraction"]
            print(f"{row['work']:36}{row['ours_ms']:10.4f}"
                  f"{'' if rival is None else f'{rival:.4f}':>10}  {row['rival'] or '-':7}"
                  f"{'' if share is None else f'{share:.2f}':>9}", flush=True)  # fmt: skip
    return rows

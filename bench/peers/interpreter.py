"""Ops of flash-linear-attention on this backend against Triton's interpreter.

Each side runs in a process of its own: the interpreter is chosen by an environment variable that
Triton reads when kernels are defined. An autotuner in the interpreter would run dozens of
configurations for minutes each, so there each kernel keeps only the configuration with the
largest blocks, which is the fastest one there (a block is one numpy operation).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

WORK = ("chunk_simple_gla", "parallel_based")


def _inputs(name: str, length: int):
    """B1 H4 in float32: heads of 64, or 16 features for the Taylor expansion."""
    import torch

    torch.manual_seed(0)
    k = 16 if name == "parallel_based" else 64
    x = [torch.randn(1, length, 4, n) for n in (k, k, 64)]
    if name == "chunk_simple_gla":
        x.append(torch.nn.functional.logsigmoid(torch.randn(1, length, 4)))
    return x


def _one_configuration() -> None:
    from triton.runtime.autotuner import Autotuner

    init = Autotuner.__init__

    def largest(self, fn, arg_names, configs, *args, **kwargs):
        def size(c):
            return sum(v for v in c.kwargs.values() if isinstance(v, int))

        init(self, fn, arg_names, [max(configs, key=size)], *args, **kwargs)

    Autotuner.__init__ = largest


class _Index(int):
    def to(self, *_):
        return self


def _typed_loop_indices() -> None:
    """Kernels cast loop indices, and the interpreter's are plain integers that cannot be cast."""

    def indices(*bounds):
        return map(_Index, range(*map(int, bounds)))

    for name, module in list(sys.modules.items()):
        if name.startswith("fla.ops."):
            module.range = indices


def child(name: str, length: int, interpret: bool) -> dict:
    """Milliseconds of one forward call, and a sample of what it gives."""
    from bench.peers.table import prepare

    prepare()
    if interpret:
        _one_configuration()
    import torch

    torch.set_num_threads(2)
    import fla.ops

    if interpret:
        _typed_loop_indices()
    op, x = getattr(fla.ops, name), _inputs(name, length)
    if not interpret:
        op(*x)
    times = []
    for _ in range(1 if interpret else 15):
        start = time.perf_counter()
        out = op(*x)
        times.append((time.perf_counter() - start) * 1e3)
    out = out[0] if isinstance(out, tuple) else out
    return {
        "ms": sorted(times)[len(times) // 2],
        "sample": out[0, :: max(1, length // 64), 0].tolist(),
    }


def _run(name: str, length: int, interpret: bool, limit: float) -> dict:
    env = {**os.environ, "TRITON_DEFAULT_BACKEND": "cpu", "TRITON_INTERPRET": str(int(interpret))}
    code = (f"import json; from bench.peers.interpreter import child; "
            f"print('\\n' + json.dumps(child({name!r}, {length}, {interpret})))")  # fmt: skip
    root = Path(__file__).resolve().parents[2]
    env["PYTHONPATH"] = os.pathsep.join([str(root), *filter(None, [env.get("PYTHONPATH")])])
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], env=env, cwd=root,
                          capture_output=True, text=True, timeout=limit)  # fmt: skip
    if done.returncode:
        raise RuntimeError(f"{name}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def against_interpreter(length: int = 2048, limit: float = 600) -> list[dict]:
    """Rows in the form of ``bench cpu``; the two results must agree."""
    import torch

    rows = []
    for name in WORK:
        ours, theirs = (_run(name, length, i, limit) for i in (False, True))
        a, b = torch.tensor(ours["sample"]), torch.tensor(theirs["sample"])
        error = float((a - b).abs().max() / b.abs().max())
        if not error <= 1e-4:
            raise AssertionError(f"{name}: relative difference {error:.3g}")
        rows.append({"work": f"fla {name} {length}", "ours_ms": ours["ms"],
                     "rival": "interpreter", "rival_ms": theirs["ms"],
                     "ratio": theirs["ms"] / ours["ms"], "limit_fraction": None})  # fmt: skip
    return rows

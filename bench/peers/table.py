"""Run all rows, each op in a process of its own, and write the table.

The packages are imported once; an op's process is forked from there, so that a crash or a hang
costs one row. The rows of an op share the kernels that they compile.
"""

from __future__ import annotations

import json
import os
import select
import signal
import sys
import time
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from bench.peers.known import SEEN

LENGTHS = (1, 63, 64, 200)
DTYPES = ("fp32", "bf16")
ORDER = ("works", "refused", "theirs", "wrong", "failed", "no recipe")
FOLDER = Path(__file__).resolve().parent.parent


def prepare() -> None:
    """Make the CPU backend the active one; before torch or triton are used."""
    os.environ.setdefault("TRITON_DEFAULT_BACKEND", "cpu")
    import codegen.cpu

    codegen.cpu.register()


@dataclass
class Job:
    """One op with its remaining rows, and the process that runs them."""

    name: str
    rows: list[tuple[int, str]]
    limit: float
    pid: int = 0
    pipe: int = -1
    since: float = 0.0
    text: bytes = b""
    done: list[dict] = field(default_factory=list)

    def start(self, recipe) -> None:
        read, write = os.pipe()
        self.since = time.monotonic()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(read)
            try:
                _child(recipe, self.rows, write)
            finally:
                os._exit(0)
        os.close(write)
        self.pipe = read

    def _take(self, row: dict) -> None:
        length, dtype = self.rows.pop(0)
        self.done.append({"op": self.name, "T": length, "dtype": dtype, **row})
        self.since = time.monotonic()

    def poll(self, recipe) -> bool:
        """Read what has come; True if there is nothing more to wait for."""
        ended = False
        while select.select([self.pipe], [], [], 0)[0]:
            got = os.read(self.pipe, 1 << 16)
            if not got:
                ended = True
                break
            self.text += got
            *lines, self.text = self.text.split(b"\n")
            for line in lines:
                self._take(json.loads(line))
        late = not ended and time.monotonic() - self.since > self.limit
        if late:
            os.kill(self.pid, signal.SIGKILL)
        if ended or late:
            _, status = os.waitpid(self.pid, 0)
            os.close(self.pipe)
            if self.rows:
                signum = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
                why = (
                    f"not done in {self.limit:.0f} s"
                    if late
                    else f"killed by {signal.Signals(signum).name}"
                    if signum
                    else "exited"
                )
                self._take({"status": "failed", "reason": why, "ratio": None, "launches": 0})
            if self.rows:
                self.text = b""
                self.start(recipe)
                return False
            return True
        return False


def _first_configuration() -> None:
    """Let autotuners take the first configuration that they do not prune, and compile no other."""
    from triton.runtime.autotuner import Autotuner

    prune = Autotuner.prune_configs
    Autotuner.prune_configs = lambda self, kwargs: prune(self, kwargs)[:1]


def _child(recipe, rows: list[tuple[int, str]], pipe: int) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    import torch

    from bench.peers.row import run

    torch.set_num_threads(1)
    for length, dtype in rows:
        line = json.dumps(run(recipe, length, dtype)) + "\n"
        data = line.encode()
        while data:
            data = data[os.write(pipe, data) :]


def _judge(row: dict, known: dict[str, str]) -> dict:
    """A failure that is proved to be the package's own is shown as such."""
    for key, proof in known.items():
        op, _, text = key.partition(": ")
        if (
            row["op"].endswith(op)
            and row["status"] in ("wrong", "failed", "refused")
            and (text in row["reason"])
        ):
            return {**row, "status": "theirs", "reason": f"{proof} [{row['reason']}]"}
    return row


def run(only: str = "", lengths=LENGTHS, dtypes=DTYPES, workers: int = 2, limit: float = 300,
        save: bool = False, tune: bool = False) -> list[dict]:  # fmt: skip
    """All rows whose op contains one of the comma-separated words of ``only``.

    ``save`` puts each op's rows into the files as soon as it is done; other rows there stay.
    ``tune`` lets autotuners try all of their configurations; of the kernels that are not picked
    nothing is seen, so they are only compiled if somebody wants to wait for it.
    """
    prepare()
    warnings.simplefilter("ignore")
    from rich.console import Console

    from bench.peers.names import public_ops
    from bench.peers.recipes import KNOWN, NO_KERNEL, RECIPES

    if not tune:
        _first_configuration()
    console = Console(width=None if sys.stdout.isatty() else 160)
    ops = public_ops()
    missing = [n for n in (*RECIPES, *NO_KERNEL) if n not in ops]
    if missing:
        raise LookupError(f"recipes for what the packages do not have: {', '.join(missing)}")
    words = [w for w in only.split(",") if w]
    names = [n for n in ops if not words or any(w in n for w in words)]
    wanted = [(t, d) for d in dtypes for t in lengths]
    results: list[dict] = []
    queue: list[Job] = []
    for name in names:
        if name in NO_KERNEL:
            results += [{"op": name, "T": t, "dtype": d, "status": "no kernel", "ratio": None,
                         "reason": NO_KERNEL[name]} for t, d in wanted]  # fmt: skip
        elif name not in RECIPES:
            results += [{"op": name, "T": t, "dtype": d, "status": "no recipe", "ratio": None,
                         "reason": ""} for t, d in wanted]  # fmt: skip
        else:
            queue.append(Job(name, list(wanted), limit))
    running: list[Job] = []
    total, begin = len(queue), time.monotonic()
    while queue or running:
        while queue and len(running) < workers:
            job = queue.pop(0)
            job.start(RECIPES[job.name])
            running.append(job)
        time.sleep(0.05)
        for job in list(running):
            if not job.poll(RECIPES[job.name]):
                continue
            running.remove(job)
            job.done = [_judge(r, KNOWN) for r in job.done]
            results += job.done
            count = Counter(r["status"] for r in job.done)
            ratios = [r["ratio"] for r in job.done if r["ratio"] is not None]
            console.print(
                f"{total - len(queue) - len(running):4d}/{total} {time.monotonic() - begin:6.0f} s"
                f"  {job.name}  " + ", ".join(f"{n} {s}" for s, n in count.items())
                + (f"  error/bound {max(ratios):.2f}" if ratios else ""),
                highlight=False, markup=False)  # fmt: skip
            for row in job.done:
                if row["status"] not in ("works", "no kernel"):
                    console.print(
                        f"       T={row['T']} {row['dtype']} {row['status']}: "
                        f"{row['reason'][:600]}",
                        highlight=False,
                        markup=False,
                    )
            if save:
                update(job.done, ops)
    if save:
        update(results, ops)
    results.sort(key=_place(ops))
    console.print(summary(results), highlight=False, markup=False)
    return results


def summary(results: list[dict]) -> str:
    """One line: how many rows there are and what became of them."""
    count = Counter(r["status"] for r in results)
    total = sum(n for s, n in count.items() if s != "no kernel")
    parts = ", ".join(f"{s} {count[s]}" for s in ORDER if count[s] or s in ("works", "refused",
                                                                            "wrong"))  # fmt: skip
    share = 100 * count["works"] / total if total else 0.0
    return (
        f"{total} rows of {len({r['op'] for r in results if r['status'] != 'no kernel'})} ops: "
        f"{parts}; {share:.1f} % work ({count['no kernel']} more rows launch no kernel)"
    )


def markdown(results: list[dict], versions: dict[str, str]) -> str:
    """The table, an op a line, and the reason of each row that does not work."""
    marks = {"works": "✓", "refused": "r", "theirs": "t", "wrong": "**w**", "failed": "**f**",
             "no recipe": "?"}  # fmt: skip
    columns = [(d, t) for d in DTYPES for t in LENGTHS]
    rows: dict[str, dict] = {}
    for r in results:
        rows.setdefault(r["op"], {})[r["dtype"], r["T"]] = r
    lines = [
        "# Other people's kernels on the CPU backend",
        "",
        "`python -m bench peers` runs every public op of the packages, forward and backward,",
        "against float64 references and writes this file. "
        + ", ".join(f"{k} {v}" for k, v in versions.items())
        + ".",
        "",
        summary(results) + ".",
        "",
        "Lengths are tokens, or rows where an op has none; mostly batches of 2 with 2 heads of 32."
        " Ops without a backward of their own (kernels for decoding, utilities) run forward only."
        " An autotuner takes its first configuration, or tries all with `--tune`.",
        "",
        "✓ works, r refused, t a defect of the package itself, **w** wrong, **f** failed,"
        " - launches no Triton kernel, ? not tried. The last column is the largest error in units"
        " of the bound (see `bench/peers/row.py`).",
        "",
        "| op | " + " | ".join(f"{d} {t}" for d, t in columns) + " | error |",
        "|---|" + "---|" * (len(columns) + 1),
    ]
    for name, cells in rows.items():
        if all(r["status"] == "no kernel" for r in cells.values()):
            continue
        ratios = [r["ratio"] for r in cells.values() if r["ratio"] is not None]
        marked = " | ".join(
            marks.get(cells[c]["status"], "-") if c in cells else "" for c in columns
        )
        lines.append(f"| `{name}` | {marked} | {f'{max(ratios):.2g}' if ratios else ''} |")
    reasons: dict[tuple[str, str, str], list[str]] = {}
    for r in results:
        if r["status"] not in ("works", "no kernel", "no recipe"):
            key = (r["op"], r["status"], r["reason"][:400].replace("\n", " "))
            reasons.setdefault(key, []).append(f"{r['dtype']} {r['T']}")
    if reasons:
        lines += [
            "",
            "## Rows that do not work",
            "",
            "| op | rows | | reason |",
            "|---|---|---|---|",
        ]
        lines += [f"| `{op}` | {', '.join(where)} | {status} | {why.replace('|', chr(92) + '|')} |"
                  for (op, status, why), where in reasons.items()]  # fmt: skip
    bare: dict[str, list[str]] = {}
    for r in results:
        if r["status"] == "no kernel" and r["op"] not in bare.get(r["reason"], []):
            bare.setdefault(r["reason"], []).append(r["op"])
    lines += ["", "## Seen in the packages", "", *(f"- {text}" for text in SEEN)]
    if bare:
        lines += ["", "## Names without a Triton kernel", ""]
        lines += [f"- {why}: " + ", ".join(f"`{n}`" for n in names) for why, names in bare.items()]
    return "\n".join(lines) + "\n"


def versions() -> dict[str, str]:
    """Of the packages that take part."""
    from importlib.metadata import version

    packages = ("flash-linear-attention", "fla-core", "liger-kernel", "triton", "torch")
    return {p: version(p) for p in packages}


def _place(ops):
    number = {n: i for i, n in enumerate(ops)}
    return lambda r: (number.get(r["op"], len(number)), DTYPES.index(r["dtype"]), r["T"])


def update(rows: list[dict], ops, folder: Path = FOLDER) -> None:
    """Put rows into ``peers.json`` in place of their last results, and write ``peers.md``."""
    path = folder / "peers.json"
    keep = ("op", "T", "dtype", "status", "reason", "ratio", "launches", "seconds")
    old = json.loads(path.read_text()) if path.exists() else []
    table = {(r["op"], r["T"], r["dtype"]): r for r in old if r["op"] in ops}
    for r in rows:
        table[r["op"], r["T"], r["dtype"]] = {k: r[k] for k in keep if k in r}
    both = sorted(table.values(), key=_place(ops))
    path.write_text("[\n" + ",\n".join(map(json.dumps, both)) + "\n]\n")
    (folder / "peers.md").write_text(markdown(both, versions()))

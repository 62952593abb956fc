"""The paper's claims at the size of a laptop: ``python -m zoo.based.claims recall``, or ``length``.

recall: accuracy on recall against the size of the state (C1 to C4 of the paper's argument): Taylor
linear attention with 4, 8 and 16 features, sliding windows of 8 and 32 keys alone, softmax
attention, chance. length: time to read a prompt and to write a token against the context, for BASED
and for softmax attention with its cache of keys and values, of the same width (C5). Each writes
rows as JSON and a picture beside this file; README.md says what they show.
"""

from __future__ import annotations

import itertools
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from zoo.based.config import BasedConfig, zoology
from zoo.based.model import Based, State
from zoo.training.runs import train

app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)
HERE = Path(__file__).parent

# --- recall against the state ---------------------------------------------------------------------

#: What is varied: a name, and settings of the preset "mqar-compare".
MODELS = {
    "linear f=4": ("linear", 4, 64),
    "linear f=8": ("linear", 8, 64),
    "linear f=16": ("linear", 16, 64),
    "window w=8": ("window", 16, 8),
    "window w=32": ("window", 16, 32),
    "attention": ("attention", 16, 64),
}


def state_elements(c: BasedConfig, length: int) -> int:
    """Numbers that a row's state holds after ``length`` tokens, as Zoology counts them.

    The symmetric half of linear attention's sums, the inputs of convolutions, keys and values of a
    window; of softmax attention all keys and values.
    """
    f, d = c.features, c.head
    each = {
        "conv": 3 * c.width,
        "linear": c.heads * (d + 1) * (f * (f + 1) // 2 + f + 1),
        "window": 2 * c.width * min(c.window, length),
        "attention": 2 * c.width * length,
    }
    return sum(each[kind] for kind in c.layers)


@app.command()
def recall(
    seeds: Annotated[int, typer.Option(help="Runs of each model.")] = 3,
    file: Annotated[Path, typer.Option("--json", help="Rows; a run in it is not repeated.")] = HERE
    / "recall.json",
    only: Annotated[str, typer.Option(help="Only models whose name contains this.")] = "",
) -> None:
    """Train every model with every seed, and draw accuracy against the size of the state."""
    rows = json.loads(file.read_text()) if file.exists() else []
    done = {(r["model"], r["seed"]) for r in rows}
    for seed in range(seeds):
        for name, (kind, features, window) in MODELS.items():
            if only not in name or (name, seed) in done:
                continue
            settings = [
                f"model.layers=conv,{kind}", f"model.features={features}", f"model.window={window}",
            ]  # fmt: skip
            result = train("based", "mqar-compare", settings=settings, seed=seed)
            c = zoology(kind, 32, 512, features, window)  # type: ignore[arg-type]
            accuracies = {r["length/pairs"]: r["accuracy"] for r in result.rows}
            rows.append({
                "model": name, "seed": seed, "state_elements": state_elements(c, 128),
                "steps": result.step, "seconds": round(result.seconds, 1), **accuracies,
                "mean": statistics.mean(accuracies.values()),
            })  # fmt: skip
            print(rows[-1], flush=True)
            file.write_text(json.dumps(rows, indent=1) + "\n")
    draw_recall(rows, file.with_suffix(".png"))


def draw_recall(rows: list[dict], file: Path) -> None:
    """Two panels: the mean over all tests, and the hardest, longer than any row of training."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    panels = {"mean": "mean of the four tests", "128/32": "128 tokens, 32 pairs (trained on 64)"}
    for axis, (test, title) in zip(axes, panels.items(), strict=True):
        for kind, colour in (("linear", "C0"), ("window", "C1"), ("attention", "C2")):
            mine = [r for r in rows if r["model"].startswith(kind)]
            if not mine:
                continue
            sizes = sorted({r["state_elements"] for r in mine})
            groups = [[r[test] for r in mine if r["state_elements"] == s] for s in sizes]
            label = {"linear": "convolution + linear attention, f = 4, 8, 16",
                     "window": "convolution + window alone, w = 8, 32",
                     "attention": "convolution + softmax attention"}[kind]  # fmt: skip
            means = [statistics.mean(g) for g in groups]
            axis.plot([4 * s for s in sizes], means, "o-", color=colour, label=label)
            for size, group in zip(sizes, groups, strict=True):
                axis.plot([4 * size] * len(group), group, ".", color=colour, alpha=0.5)
            if kind == "attention":
                axis.axhline(means[0], color=colour, lw=0.8, ls="--")
        axis.axhline(2 / 512, color="grey", lw=0.8, ls=":", label="chance")
        axis.set_xscale("log", base=2)
        axis.set_xlabel("state at 128 tokens, bytes in fp32")
        axis.set_title(title, fontsize=10)
        axis.set_ylim(-0.03, 1.03)
    axes[0].set_ylabel("accuracy of recall")
    axes[0].legend(fontsize=8, loc="lower right", bbox_to_anchor=(1.0, 0.04))
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)


# --- time against the context ---------------------------------------------------------------------

#: BASED with one layer of each kind, and a Transformer of the same width, depth and MLPs.
BASED = BasedConfig(
    ("conv", "linear", "window"), width=256, heads=4, features=16, window=64, vocabulary=256
)
TRANSFORMER = replace(BASED, layers=("attention",) * 3)


@app.command()
def length(
    file: Annotated[Path, typer.Option("--json", help="Rows; one in it is not repeated.")] = HERE
    / "length.json",
    most: Annotated[int, typer.Option(help="The longest context.")] = 32768,
    threads: Annotated[int, typer.Option(help="Of PyTorch and ours.")] = 1,
) -> None:
    """Time prefill and a token after contexts of 64 to 32k tokens, and draw both."""
    torch.set_num_threads(threads)
    rows = json.loads(file.read_text()) if file.exists() else []
    done = {(r["model"], r["context"]) for r in rows}
    models = {}
    for name, config in (("BASED", BASED), ("softmax", TRANSFORMER)):
        torch.manual_seed(0)
        models[name] = Based(config).eval()
    for n in (64 << k for k in range(max(most // 64, 1).bit_length())):
        if any((name, n) not in done for name in models):
            rows = [r for r in rows if r["context"] != n] + measured(models, n)
            print(*rows[-len(models) :], sep="\n", flush=True)
            file.write_text(json.dumps(rows, indent=1) + "\n")
    draw_length(rows, file.with_suffix(".png"))


@torch.no_grad()
def measured(models: dict[str, Based], n: int, rounds: int = 3, block: int = 16) -> list[dict]:
    """A row a model: the fastest prefill of n tokens, the lower quartile of single tokens after.

    Models take turns, so that what else the machine does meets them all; of tokens a block each,
    so that most of them find the caches as their own model left them.
    """
    steps = rounds * block
    tokens = torch.randint(256, (1, n + steps), generator=torch.Generator().manual_seed(0))

    def prefill(model, most=n):
        state = model.start(1)
        model.last(tokens[:, :most], state)
        return state

    for model in models.values():
        prefill(model, 64)
    runs = [
        {name: timed(prefill, model) for name, model in models.items()}
        for _ in range(5 if n < 2048 else 2)
    ]
    states = {name: state for name, (_, state) in runs[-1].items()}
    ms: dict[str, list[float]] = {name: [] for name in models}
    for first in range(n, n + steps, block):
        for (name, model), k in itertools.product(models.items(), range(first, first + block)):
            ms[name].append(timed(model.last, tokens[:, k, None], states[name])[0])
    return [
        {"model": name, "context": n, "prefill_ms": min(r[name][0] for r in runs),
         "token_ms": statistics.quantiles(ms[name], n=4)[0],
         "state_bytes": state_bytes(models[name].config, states[name], n)}
        for name in models
    ]  # fmt: skip


def state_bytes(c: BasedConfig, state: State, n: int) -> int:
    """Of what is kept, that a token after n others reads: of a cache its n keys and values, of all
    else everything."""
    return sum(
        n * 2 * 4 * c.width if kind == "attention" else sum(t.nbytes for t in layer)
        for kind, layer in zip(c.layers, state.layers, strict=True)
    )


def timed(fn: Callable, *args) -> tuple[float, Any]:
    """Milliseconds of a call, and what it gives."""
    began = time.perf_counter()
    got = fn(*args)
    return (time.perf_counter() - began) * 1e3, got


def draw_length(rows: list[dict], file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(12, 4))
    titles = {"prefill_ms": "reading the prompt, ms", "token_ms": "one more token, ms",
              "state_bytes": "state read for a token, bytes"}  # fmt: skip
    for axis, (key, title) in zip(axes, titles.items(), strict=True):
        for name in dict.fromkeys(r["model"] for r in rows):
            mine = [r for r in rows if r["model"] == name]
            axis.plot([r["context"] for r in mine], [r[key] for r in mine], "o-", label=name)
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        if key == "token_ms":
            axis.set_ylim(1, 100)
        axis.set_xlabel("context, tokens")
        axis.set_title(title, fontsize=10)
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    app()

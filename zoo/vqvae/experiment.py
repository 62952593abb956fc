"""Straight through against the rotation trick: ``python -m zoo.vqvae.experiment``.

Writes a row for every arm and seed to results.json beside this file, trains only what is not there
yet, and draws the pictures of README.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch

from zoo.training import runs
from zoo.vqvae import data, pictures
from zoo.vqvae.himmelblau import descend

HERE = Path(__file__).parent
#: Arms by name: what differs from the preset "digits".
ARMS: dict[str, tuple[str, ...]] = {
    "straight through": ("model.gradient=ste",),
    "rotation": (),
    "straight through, resets": ("model.gradient=ste", "model.reset=2.0"),
    "rotation, resets": ("model.reset=2.0",),
    "rotation, tangent": ("model.gradient=rotation_tangent",),
    "straight through, 3 numbers": ("model.gradient=ste", "model.dim=3"),
    "rotation, 3 numbers": ("model.dim=3",),
}
MAIN, REST = tuple(ARMS)[:4], tuple(ARMS)[4:]
COLUMNS = ("mse", "error", "relative_error", "length", "usage", "perplexity", "probe")


def train(arm: str, seed: int, out: Path) -> dict:
    """One row: what the arm's model does to test images after its training."""
    began = time.perf_counter()
    found = runs.train("vqvae", "digits", settings=ARMS[arm], seed=seed, out=out, resume=True)
    if not found.rows:
        raise SystemExit(f"stopped at step {found.step}; the same command goes on")
    row = {"arm": arm, "seed": seed, "steps": found.step}
    return row | {"seconds": time.perf_counter() - began} | found.rows[0]


def table(rows: list[dict]) -> str:
    """Mean and standard deviation over seeds, as Markdown."""
    lines = [f"| | seeds | {' | '.join(COLUMNS)} |", "|" + "---|" * (len(COLUMNS) + 2)]
    for arm in ARMS:
        mine = [r for r in rows if r["arm"] == arm]
        if not mine:
            continue
        cells = []
        for column in COLUMNS:
            values = [r[column] for r in mine]
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            cells.append(f"{statistics.mean(values):.3g} ± {spread:.1g}")
        lines.append(f"| {arm} | {len(mine)} | {' | '.join(cells)} |")
    return "\n".join(lines)


def toy(seeds: int) -> list[dict]:
    """Himmelblau's function: its mean over points' codes, and the distortion, at the end."""
    rows = []
    for gradient in ("ste", "rotation"):
        for seed in range(seeds):
            o = descend(gradient, seed)
            rows.append({"gradient": gradient, "seed": seed, "f": o.values[-1],
                         "f at start": o.values[0], "distortion": o.distortions[-1]})  # fmt: skip
    return rows


def main() -> None:
    """Train what is missing, print the tables, draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--json", type=Path, default=HERE / "results.json")
    parser.add_argument("--runs", type=Path, default=Path("runs/vqvae-experiment"))
    parser.add_argument("--seconds", type=float, default=float("inf"), help="begin no run later")
    args = parser.parse_args()
    torch.set_num_threads(1)
    known = json.loads(args.json.read_text()) if args.json.exists() else {"digits": []}
    done = {(r["arm"], r["seed"]) for r in known["digits"]}
    began = time.perf_counter()
    order = [(a, s) for arms in (MAIN, REST) for s in range(args.seeds) for a in arms]
    for arm, seed in order:
        if (arm, seed) in done:
            continue
        if time.perf_counter() - began > args.seconds:
            return
        out = args.runs / f"{arm.replace(', ', '-').replace(' ', '-')}-{seed}"
        known["digits"].append(train(arm, seed, out))
        args.json.write_text(json.dumps(known, indent=1) + "\n")
        print(f"{arm}, seed {seed}: mse {known['digits'][-1]['mse']:.4f}", flush=True)
    print(table(known["digits"]))
    known["himmelblau"] = toy(8)
    args.json.write_text(json.dumps(known, indent=1) + "\n")
    models = {arm: args.runs / f"{arm.replace(', ', '-').replace(' ', '-')}-0" for arm in ARMS}
    models = {arm: path for arm, path in models.items() if (path / "model.safetensors").exists()}
    pictures.reconstructions(models, data.split(data.Images())[1].images, HERE / "digits.png")
    pictures.codebooks(models, data.split(data.Images())[1].images, HERE / "codebooks.png")
    pictures.descent(HERE / "himmelblau.png")


if __name__ == "__main__":
    main()

"""Pictures: a timeline with a lane for each role and stage, and a roofline."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tkpy.errors import TkError
from tkpy.pipeline.simulate import Span, Timeline

COLOURS = {
    "matrix": "#2b6cb0",
    "arithmetic": "#38a169",
    "special": "#d69e2e",
    "shared": "#805ad5",
    "copy": "#4fd1c5",
    "held": "#cbd5e0",
    "stall": "#fed7d7",
}
_SAYS = {
    "matrix": "product",
    "arithmetic": "arithmetic",
    "special": "exp and kin",
    "shared": "shared memory",
    "copy": "copy under way",
    "held": "stage is full",
    "stall": "waits",
}
#: Iterations that a picture shows; more are no longer told apart.
SHOWN = 16


def draw(line: Timeline, title: str, stem: str | Path) -> list[Path]:
    """Writes STEM.png and STEM.svg, and returns their paths.

    Raises TkError where matplotlib is not installed.
    """
    plt = _matplotlib()
    n = line.pipeline.iterations
    many = (n if isinstance(n, int) else max(n)) * line.pipeline.tasks
    end = line.time * min(1.0, SHOWN / max(many, 1))
    lanes = _lanes(line)
    figure, axes = plt.subplots(figsize=(12, 1.6 + 0.34 * len(lanes)))
    unit, name = (1e6, "µs") if end < 1e-2 else (1e3, "ms")
    for y, lane in enumerate(lanes):
        for kind in COLOURS:
            spans = [s for s in line.spans if s.lane == lane and s.kind == kind and s.start < end]
            if not spans:
                continue
            axes.broken_barh(
                [(s.start * unit, (min(s.end, end) - s.start) * unit) for s in spans],
                (y - 0.4, 0.8),
                facecolors=COLOURS[kind],
                edgecolors="#c53030" if kind == "stall" else "white",
                linewidth=0.4,
                hatch="////" if kind == "stall" else None,
            )
            if kind == "stall":
                _reasons(axes, spans, y, unit, end)
    axes.set_yticks(range(len(lanes)), lanes)
    axes.set_ylim(len(lanes) - 0.4, -0.6)
    axes.set_xlim(0, end * unit)
    part = "" if end >= line.time else f", the first {end / line.time:.0%}"
    axes.set_xlabel(f"{name} on one multiprocessor{part}")
    axes.set_title(title, loc="left", fontsize=10)
    kinds = [k for k in COLOURS if any(s.kind == k for s in line.spans)]
    boxes = [
        plt.Rectangle(
            (0, 0), 1, 1, facecolor=COLOURS[k], hatch="////" if k == "stall" else None,
            edgecolor="#c53030" if k == "stall" else "white",
        )
        for k in kinds
    ]  # fmt: skip
    axes.legend(
        boxes, [_SAYS[k] for k in kinds], loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8,
        frameon=False,
    )  # fmt: skip
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    return _saved(plt, figure, stem)


def _lanes(line: Timeline) -> list[str]:
    """Roles in their order, then stages in the order of the rings."""
    found = {s.lane for s in line.spans}
    roles = [
        lane
        for r in line.pipeline.roles
        for lane in ([r.name] if r.groups == 1 else [f"{r.name} {g}" for g in range(r.groups)])
    ]
    stages = [f"{r.name}[{i}]" for r in line.pipeline.rings for i in range(r.stages)]
    return [lane for lane in (*roles, *stages) if lane in found]


def _reasons(axes, spans: Sequence[Span], y: int, unit: float, end: float) -> None:
    """Names what is waited for, where the stall is wide enough to write in."""
    for s in spans:
        shown = min(s.end, end) - s.start
        if shown > end * 0.009 * len(s.label):
            axes.text(
                (s.start + shown / 2) * unit, y, s.label, ha="center", va="center", fontsize=6,
                color="#742a2a", clip_on=True, bbox={"fc": "#fff5f5", "ec": "none", "pad": 0.6},
            )  # fmt: skip


def roofline(points: dict[str, tuple[float, float]], device, dtype: str, stem) -> list[Path]:
    """Writes STEM.png and STEM.svg: FLOP/s over intensity, with the device's roofs.

    Args:
        points: of each kernel, its FLOPs a byte and its predicted FLOP/s.
    """
    plt = _matplotlib()
    figure, axes = plt.subplots(figsize=(7, 4.5))
    xs = [2.0**k for k in range(-4, 14)]
    matrix, vector = device.products(dtype), device.vector
    for top, label in ((matrix, f"products, {dtype}"), (vector, "fp32 arithmetic")):
        axes.plot(xs, [min(top, x * device.dram) for x in xs], label=label, lw=1.5)
    for name, (intensity, rate) in points.items():
        axes.plot([intensity], [rate], "o", color="#c53030")
        axes.annotate(name, (intensity, rate), xytext=(5, -12), textcoords="offset points")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("FLOPs a byte of memory traffic")
    axes.set_ylabel("FLOP/s")
    axes.set_title(f"{device.title}: {device.dram / 1e9:,.0f} GB/s", loc="left", fontsize=10)
    axes.grid(True, which="major", lw=0.3)
    axes.legend(fontsize=8)
    return _saved(plt, figure, stem)


def _saved(plt, figure, stem: str | Path) -> list[Path]:
    paths = [Path(f"{stem}.png"), Path(f"{stem}.svg")]
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130, bbox_inches="tight")
    plt.close(figure)
    return paths


def _matplotlib():
    try:
        import matplotlib
    except ImportError:
        raise TkError(
            "a picture needs matplotlib, which is not installed\n  fix: pip install 'tkpy[plots]'"
        ) from None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt

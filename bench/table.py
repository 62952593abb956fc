"""The rows of a measurement as a Markdown table, one line for each work."""

from __future__ import annotations

NAMES = ("torch", "torch.compile", "jax", "interpreter")


def _number(x: float) -> str:
    return f"{x:.3g}" if x < 1000 else f"{x:.0f}"


def markdown(rows: list[dict]) -> str:
    """A table of ``rows``: milliseconds of ours, our speed as a multiple of each rival's, and the
    share of the limit.

    Every row has work, ours_ms, rival, ratio and limit_fraction, as ``python -m bench cpu --json``
    writes them.
    """
    found = [n for n in NAMES if any(r["rival"] == n for r in rows)]
    lines = [
        "| work | ours, ms | " + " | ".join(f"times {n}" for n in found) + " | of the limit |",
        "|---|" + "---|" * (len(found) + 2),
    ]
    for work in dict.fromkeys(r["work"] for r in rows):
        mine = {r["rival"]: r for r in rows if r["work"] == work}
        first = next(iter(mine.values()))
        ratios = [_number(mine[n]["ratio"]) if n in mine else "" for n in found]
        cells = [work, _number(first["ours_ms"]), *ratios, f"{first['limit_fraction']:.2f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)

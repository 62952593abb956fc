"""The time of a kernel from its cost alone: the largest of what its parts take."""

from __future__ import annotations

from collections.abc import Mapping

from codegen.cost import Cost, evaluate
from tkpy.pipeline.device import Device


def roofline_seconds(cost: Cost, sizes: Mapping[str, int], device: Device) -> tuple[float, str]:
    """Seconds at the least, and what binds: products, arithmetic, special, memory or cache.

    Arithmetic and special functions share the issue of a warp, so they add up.
    """
    types = {w.dtype.name for w in cost.works if w.kind == "matrix"}
    vector = cost.number("vector", sizes) / device.vector
    special = cost.number("special", sizes) / device.special
    moved = cost.number("load", sizes) + cost.number("store", sizes)
    parts = {
        "products": sum(cost.number("matrix", sizes, t) / device.products(t) for t in types),
        "arithmetic" if vector >= special else "special": vector + special,
        "memory": evaluate(cost.bytes(), sizes) / device.dram,
        "cache": moved / device.l2,
    }
    name = max(parts, key=lambda k: parts[k])
    return parts[name], name

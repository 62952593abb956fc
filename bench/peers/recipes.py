"""All recipes by the full name of the op."""

from __future__ import annotations

from bench.peers import fla_attn, fla_delta, fla_modules, fla_ops, inductor, liger
from bench.peers.known import KNOWN, NO_KERNEL

__all__ = ["KNOWN", "NO_KERNEL", "RECIPES", "fla_attn", "fla_delta"]

RECIPES = {**fla_ops.RECIPES, **fla_modules.RECIPES, **liger.RECIPES, **inductor.RECIPES}

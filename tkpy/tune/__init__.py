"""Tile sizes chosen by the cost model, the best few of them measured, the winner remembered."""

from tkpy.tune.memory import Memory
from tkpy.tune.tuner import Row, Tuned, TunedKernel, tune, tuned

__all__ = ["Memory", "Row", "Tuned", "TunedKernel", "tune", "tuned"]

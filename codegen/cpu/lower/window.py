"""Some rows of a tensor, of which a strip is made."""

from __future__ import annotations

from codegen.cpu.emit import Val
from codegen.cpu.lower.tensor import Nest, Tensor
from codegen.cpu.ttir import Type


class Window(Tensor):
    """Some rows of a tensor that is not in memory."""

    def __init__(self, ty: Type, src: Tensor, row: Val) -> None:
        super().__init__(ty)
        self.src, self.row, self.inputs = src, row, (src,)
        self.near = range(len(ty.shape))
        self.heavy, self.reads, self.data = src.heavy, src.reads, src.data
        self.flops = getattr(src, "flops", 0)

    def index(self, g: Nest, idx) -> tuple[Val, ...]:
        """Where an element is in the whole."""
        e, i = g.e, idx[0]
        level = min(max(e.base_level, i.level), e.scope.level)
        with e.at_level(level):
            moved = e.add(i, self.row)
        moved.level = level
        return (moved, *idx[1:])

    def at(self, g: Nest, idx):
        return g.at(self.src, self.index(g, idx))

    def stride(self, axis):
        return self.src.stride(axis)

    def constant(self):
        return self.src.constant()

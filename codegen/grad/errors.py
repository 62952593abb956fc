"""What has no derivative."""

from __future__ import annotations

from codegen.ir import Op


class NoGradient(Exception):
    """The kernel has no derivative with respect to what was asked: the operation, and why."""

    def __init__(self, op: Op | None, message: str, fix: str = ""):
        super().__init__(message)
        self.op, self.message, self.fix = op, message, fix


__all__ = ["NoGradient"]

"""tkpy: ThunderKittens-style tiles in Python, compiled to Triton.

import tkpy as tk

@tk.kernel
def scale(x: tk.Global["N D"], y: tk.Out["N D"], factor: tk.f32):
    i = tk.grid(tk.cdiv("N", 64))
    tk.store(y, tk.load(x, (i, 0), shape=(64, "D")) * factor, (i, 0))
"""

from codegen.ir import bf16, bool_, f16, f32, i8, i16, i32, i64, u8
from tkpy.errors import CallError, CompileError, TkError
from tkpy.frontend import Inlined as _Inlined
from tkpy.kernel import Kernel, kernel
from tkpy.signature import Global, InOut, Out
from tkpy.vocabulary import *  # noqa: F403


def function(fn):
    """Decorator: a helper that kernels call; its body is compiled into each of them."""
    return _Inlined(fn)


__version__ = "0.1.0"

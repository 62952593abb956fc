"""tkpy: ThunderKittens-style tiles in Python, compiled to Triton.

import tkpy as tk

@tk.kernel
def scale(x: tk.Global["N D"], y: tk.Out["N D"], factor: tk.f32):
    i = tk.grid(tk.cdiv("N", 64))
    tk.store(y, tk.load(x, (i, 0), shape=(64, "D")) * factor, (i, 0))
"""

from pathlib import Path as _Path

from tkpy._shadow import check_siblings as _check_siblings

_check_siblings(_Path(__file__))

import codegen.cpu as _cpu  # noqa: F401  in a checkout, this is what Triton knows the CPU by
from codegen.ir import bf16 as bf16
from codegen.ir import bool_ as bool_
from codegen.ir import c64 as c64
from codegen.ir import f16 as f16
from codegen.ir import f32 as f32
from codegen.ir import fp8e4m3 as fp8e4m3
from codegen.ir import fp8e5m2 as fp8e5m2
from codegen.ir import i8 as i8
from codegen.ir import i16 as i16
from codegen.ir import i32 as i32
from codegen.ir import i64 as i64
from codegen.ir import u8 as u8
from codegen.ir import u32 as u32
from codegen.ir import u64 as u64
from tkpy.errors import CallError as CallError
from tkpy.errors import CompileError as CompileError
from tkpy.errors import TkError as TkError
from tkpy.frontend import Inlined as _Inlined
from tkpy.kernel import Kernel as Kernel
from tkpy.kernel import kernel as kernel
from tkpy.signature import Global as Global
from tkpy.signature import InOut as InOut
from tkpy.signature import Out as Out
from tkpy.template.decorators import lcf as lcf
from tkpy.template.decorators import lcsf as lcsf
from tkpy.vocabulary import *  # noqa: F403


def function(fn):
    """Decorator: a helper that kernels call; its body is compiled into each of them."""
    return _Inlined(fn)


def tuned(kernel):
    """The kernel with the tile sizes that ``kernel.tune(...)`` remembered: ``tkpy.tune.tuned``."""
    from tkpy.tune import tuned as remembered

    return remembered(kernel)


__version__ = "0.1.0"

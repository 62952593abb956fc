"""Which executor runs a kernel on which device.

On a GPU Triton's own launcher does. Tensors on the CPU go to Triton's interpreter, unless a
Triton backend for the CPU is there and takes them.
"""

from __future__ import annotations

import torch


def interprets(device: torch.device) -> bool:
    """True if kernels on ``device`` run in Triton's interpreter."""
    return device.type == "cpu"

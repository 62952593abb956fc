"""Memory that nobody wrote, made recognisable: the checking mode fills it with one pattern.

While ``TKPY_CPU_CHECK=1`` is set, ``torch.empty`` and its kin fill what they give on the CPU with
the four bytes of ``POISON``. Whatever is written there afterwards, by a kernel, by torch or by
numpy, replaces it, so a kernel that reads the pattern reads memory nobody wrote. ``poison`` says
the same of any tensor. The pattern is a signalling NaN as fp32, which arithmetic never gives; as
integers or bytes it is one value of 2**32, looked for at addresses that are multiples of four. A
1- or 2-byte element counts only while the four bytes around it are all unwritten.
"""

from __future__ import annotations

import functools

from codegen.cpu import environment
from codegen.cpu.lower.guard import POISON

FACTORIES = ("empty", "empty_like", "empty_strided", "empty_permuted")
METHODS = ("new_empty", "new_empty_strided")


def poison(tensor):
    """Declare that nobody wrote a CPU tensor's storage yet; gives the tensor."""
    import torch

    storage = tensor.untyped_storage()
    start = -storage.data_ptr() % 4
    with torch.no_grad():
        raw = torch.zeros(0, dtype=torch.uint8).set_(storage)
        pattern = torch.tensor(list(POISON.to_bytes(4, "little")), dtype=torch.uint8)
        whole = max(len(raw) - start, 0) // 4 * 4
        raw[start : start + whole].view(-1, 4).copy_(pattern)
        raw[start + whole :] = pattern[: len(raw) - start - whole]
    return tensor


def _filled(factory):
    @functools.wraps(factory)
    def create(*args, **kwargs):
        import torch

        out = factory(*args, **kwargs)
        if torch.compiler.is_compiling() or not environment.checking():
            return out
        fresh = kwargs.get("out") is None and type(out) is torch.Tensor
        if fresh and out.device.type == "cpu" and out.layout is torch.strided and out.numel():
            poison(out)
        return out

    create.fills = factory
    return create


def install() -> None:
    """Let torch's factories of unwritten memory fill it, once."""
    import torch

    for owner, names in ((torch, FACTORIES), (torch.Tensor, METHODS)):
        for name in names:
            factory = getattr(owner, name, None)
            if factory is not None and not hasattr(factory, "fills"):
                setattr(owner, name, _filled(factory))

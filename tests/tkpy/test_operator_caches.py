"""Compilers that keep what they compiled on disk, and kernels that are edited in between."""

import os
import subprocess
import sys

import pytest
from operator_kernels import gram, scaled
from torch.compiler import config

PROGRAM = """
import torch, tkpy as tk

@tk.kernel
def rounded(x: tk.Global["N"], o: tk.Out["N"{dtype}], *, rows: int = 16):
    i = tk.grid(tk.cdiv("N", rows))
    tk.store(o, tk.load(x, (i,), shape=(rows,)), (i,))

def f(x):
    return rounded(x).float() * 2

x = torch.full((20,), 1 + 2.0**-12)
torch._dynamo.config.automatic_dynamic_shapes = False
print(torch.compile(f, fullgraph=True)(x)[0].item() == f(x)[0].item())
"""


@pytest.mark.slow
def test_an_edited_kernel_is_compiled_anew(tmp_path):
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    for dtype in ("", ", tk.bf16", ""):
        (tmp_path / "program.py").write_text(PROGRAM.format(dtype=dtype))
        ran = subprocess.run(
            [sys.executable, str(tmp_path / "program.py")],
            capture_output=True, text=True, timeout=300, env=environment, check=True,
        )  # fmt: skip
        assert ran.stdout == "True\n", dtype


def test_the_tag_of_a_user_stays():
    scaled.operator.ready()
    with config.patch(cache_key_tag="mine" + config.cache_key_tag):
        assert gram.operator.ready() and "tkpy:" in config.cache_key_tag
        assert config.cache_key_tag.startswith("mine")

"""The README says what is so: its kernel checks, its Triton is what comes out, its table is whole."""

import json
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tkpy.vocabulary import VERBS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def block(marker):
    return re.search(rf"<!-- {marker} -->\n```python\n(.*?)```", README, re.S).group(1)


@pytest.fixture(scope="module")
def attention(tmp_path_factory):
    path = tmp_path_factory.mktemp("readme") / "attention.py"
    path.write_text(block("attention.py"))
    return runpy.run_path(str(path))["attention"]


def test_kernel_is_short_and_right(attention):
    lines = block("attention.py").split("@attention.reference")[0].split("@tk.kernel")[1]
    assert len(lines.strip().splitlines()) <= 25
    q, k, v = (torch.randn(2, 4, n, 40) for n in (100, 77, 77))
    want = torch.nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double())
    assert (attention(q, k, v, 40**-0.5) - want).abs().max() < 1e-5


def test_kernel_passes_check(attention):
    from tkpy.testing import check

    check(attention, examples=8).raise_if_failed()


def test_triton_is_what_comes_out(attention):
    x = torch.zeros(1, 1, 64, 64, dtype=torch.bfloat16)
    key = attention.key_of(attention.binder.bind((x, x, x, 1.0), {}))
    assert block("triton").strip() in attention.lower(key).source


def test_table_holds_every_verb():
    table = README.split("## The vocabulary")[1].split("\n## ")[0]
    words = set(re.findall(r"`(\w+)`", table))
    assert {name for name in VERBS} <= words


def test_error_message_is_real(tmp_path):
    import tkpy as tk

    source = block("attention.py").replace("s = tk.mma_ABt(qt, kt)", "s = tk.mma_AB(qt, kt)")
    path = tmp_path / "attention.py"
    path.write_text(source)
    wrong = runpy.run_path(str(path))["attention"]
    x = torch.zeros(1, 1, 64, 64, dtype=torch.bfloat16)
    with pytest.raises(tk.CompileError) as e:
        wrong(x, x, x, 1.0, cols=48)
    shown = re.search(r"```\n(attention\.py:\d+: mma_AB.*?)```", README, re.S).group(1)
    assert str(e.value).replace(str(path), "attention.py").strip() == shown.strip()


@pytest.mark.slow
def test_gradients_in_a_compiled_graph(tmp_path):
    (tmp_path / "attention.py").write_text(block("attention.py"))
    (tmp_path / "train.py").write_text(block("torch"))
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}:{ROOT}"}
    out = subprocess.run([sys.executable, str(tmp_path / "train.py")], check=True, text=True,
                         env=environment, timeout=300, stdout=subprocess.PIPE)  # fmt: skip
    assert out.stdout == "torch.Size([2, 4, 100, 40]) tkpy.attention_attention.default\n"


def test_a_foreign_kernel_runs_as_the_readme_says(tmp_path):
    path = tmp_path / "foreign.py"
    path.write_text(block("foreign"))
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path / "cache")}
    subprocess.run([sys.executable, str(path)], check=True, env=environment, timeout=300)


def test_the_liger_example_runs_where_it_is_installed(tmp_path):
    pytest.importorskip("liger_kernel")
    path = tmp_path / "liger.py"
    path.write_text(block("liger"))
    subprocess.run([sys.executable, str(path)], check=True, timeout=300)


def test_the_table_of_figures_is_the_measured_one():
    from bench.table import markdown

    rows = json.loads((ROOT / "bench" / "cpu.json").read_text())
    assert README.split("<!-- bench -->\n")[1].split("\n\n")[0].strip() == markdown(rows)

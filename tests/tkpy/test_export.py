"""Exported files: they run where there is no tkpy, agree with the kernel, and refuse the rest."""

from __future__ import annotations

import ast
import json
import os
import stat
import subprocess
import sys

import cli_kernels
import pytest
import torch

import tkpy as tk
from tkpy.ahead import Setting, SettingError, choose_sizes, key_of
from tkpy.export import condition_text, export_source, write
from tkpy.signature import Condition

# Runs an exported file in an interpreter that cannot import anything of this project.
ALONE = """
import importlib.util, json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("tkpy", "codegen", "zoo"):
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
import torch

spec = importlib.util.spec_from_file_location("exported", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
report = {}
for name, (args, kwargs) in torch.load(sys.argv[2]).items():
    try:
        out = getattr(module, sys.argv[3])(*args, **kwargs)
        report[name] = [t.tolist() for t in (out if isinstance(out, tuple) else (out,))]
    except AssertionError as e:
        report[name] = f"refused: {e}"
print(json.dumps(report))
"""


@pytest.fixture(autouse=True, scope="module")
def _caches(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TKPY_CACHE_DIR", str(tmp_path_factory.mktemp("tkpy")))
        yield


def run_alone(folder, source: str, name: str, calls: dict) -> dict:
    (folder / "exported.py").write_text(source)
    torch.save(calls, folder / "calls.pt")
    done = subprocess.run(
        [sys.executable, "-I", "-c", ALONE, "exported.py", "calls.pt", name],
        cwd=folder,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_alone_it_computes_what_the_kernel_computes(tmp_path):
    source = export_source(
        cli_kernels.many, Setting("f32", {"F": 20}, {"sums": True, "alpha": True, "mode": "mul"})
    )
    x = torch.randn(6, 21, 20)
    rows = torch.tensor([[0, 1], [2, 20]], dtype=torch.int32)
    given = torch.full((6, 22, 40), 7.0)
    good = ((x, None, rows), {"alpha": 0.5})
    report = run_alone(
        tmp_path,
        source,
        "many",
        {
            "good": good,
            "strided": ((x.transpose(0, 1).contiguous().transpose(0, 1), None, rows, 4, 0.5), {}),
            "into": (good[0], {"alpha": 0.5, "y": given}),
            "empty": ((x[:0], None, rows), {"alpha": 0.5}),
            "constant": (good[0], {"alpha": 0.5, "mode": "add"}),
            "given": ((x, x[0, 0], rows), {"alpha": 0.5}),
            "dtype": ((x.double(), None, rows), {"alpha": 0.5}),
            "static": ((x[..., :16].contiguous(), None, rows), {"alpha": 0.5}),
            "rank": ((x[0], None, rows), {"alpha": 0.5}),
            "precondition": ((x[:5], None, rows), {"alpha": 0.5}),
            "elements": ((x, None, rows + 1), {"alpha": 0.5}),
            "order": ((x, None, rows.flip(1)), {"alpha": 0.5}),
            "inner stride": ((x.mT.contiguous().mT, None, rows), {"alpha": 0.5}),
            "output": (good[0], {"alpha": 0.5, "y": given[:, :, :-1]}),
        },
    )
    y, sums = cli_kernels.many(x, None, rows, alpha=0.5, mode="mul", sums=True)
    # The kernel leaves the last row and the right half of y unwritten.
    for name in ("good", "strided", "into"):
        got = torch.tensor(report[name][0])[:, :21, :20]
        assert torch.equal(got, y[:, :21, :20]), name
        torch.testing.assert_close(torch.tensor(report[name][1]), sums)
    assert report["into"][0][0][21] == [7.0] * 40
    assert report["empty"] == [[], []] or report["empty"][1] == []
    words = {
        "constant": "compiled for mode=mul",
        "given": "compiled without bias",
        "dtype": "torch.float64",
        "static": "compiled for F=20, not 16",
        "rank": "torch.Size",
        "precondition": "H % G == 0",
        "elements": "0 <= rows_of < N",
        "order": "sorted(rows_of)",
        "inner stride": "innermost stride",
        "output": "",
    }
    for name, word in words.items():
        assert report[name].startswith("refused: ") and word in report[name], (name, report[name])


def test_text_is_clean_python_in_every_variant():
    for setting in (
        Setting(),
        Setting("f16", {"F": 3, "H": 8}),
        Setting("f32", {}, {"bias": True, "twice": True, "alpha": True}),
    ):
        source = export_source(cli_kernels.many, setting)
        tree = ast.parse(source)
        imported = {
            a.name for n in ast.walk(tree) if isinstance(n, ast.Import | ast.ImportFrom)
            for a in n.names
        }  # fmt: skip
        assert imported == {"torch", "triton", "triton.language"}
        assert max(map(len, source.splitlines())) <= 110
        function = tree.body[-1]
        assert isinstance(function, ast.FunctionDef) and function.name == "many"
        assert "backslash \\ with quotes" in ast.get_docstring(function)
        assert "twice=" in ast.get_docstring(function)


def test_strides_are_left_to_triton_and_sizes_are_not():
    source = export_source(cli_kernels.scaled)
    assert '@triton.jit(do_not_specialize=["factor", "N"])' in source
    assert "stride16" not in source


@tk.kernel
def _launch(x: tk.Global["N D"], y: tk.Out["N D"]):
    i = tk.grid(tk.cdiv("N", 16))
    tk.store(y, tk.load(x, (i, 0), shape=(16, "D")), (i, 0))


def test_names_that_would_clash_are_refused():
    with pytest.raises(tk.TkError, match="rename"):
        export_source(_launch)


# --- writing --------------------------------------------------------------------------------------


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    file = tmp_path / "out.py"
    write(file, export_source(cli_kernels.scaled))
    before = file.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(tk.TkError, match=r"out\.py cannot be written: No space left"):
        write(file, "other")
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]


def test_modes_and_links_are_kept(tmp_path):
    file, link = tmp_path / "out.py", tmp_path / "link.py"
    source = export_source(cli_kernels.scaled)
    write(file, source)
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(file.stat().st_mode) == 0o666 & ~mask
    file.chmod(0o640)
    link.symlink_to(file)
    write(link, source + "\n")
    assert link.is_symlink() and file.read_text() == source + "\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


# --- settings -------------------------------------------------------------------------------------


def test_the_variant_is_the_one_a_call_uses():
    x = torch.randn(5, 64, dtype=torch.bfloat16)
    called = cli_kernels.scaled.key_of(cli_kernels.scaled.binder.bind((x,), {}))
    assert key_of(cli_kernels.scaled, Setting(), device="cpu") == called
    on_gpu = key_of(cli_kernels.scaled, Setting())
    assert on_gpu.aligned and not called.aligned
    assert not key_of(cli_kernels.scaled, Setting(sizes={"D": 40})).aligned


def test_sizes_are_chosen_so_that_preconditions_hold():
    sizes = choose_sizes(cli_kernels.many.signature, {"H": 6}, {})
    assert sizes["H"] == 6 and 6 % sizes["G"] == 0 and sizes["F"] == 16 and sizes["N"] == 64
    with pytest.raises(SettingError, match=r"F <= 24.* F = 25"):
        choose_sizes(cli_kernels.many.signature, {"F": 25}, {})


@pytest.mark.parametrize(
    "setting, said",
    [
        (Setting("f64"), "unknown dtype 'f64'"),
        (Setting(sizes={"C": 3}), "no dimension C"),
        (Setting(constants={"twise": True}), "did you mean twice"),
        (Setting(constants={"mode": "sub"}), "'sub' is none of 'add', 'mul'"),
    ],
)
def test_settings_that_are_refused(setting, said):
    with pytest.raises(tk.TkError, match=said):
        key_of(cli_kernels.many, setting)


@pytest.mark.parametrize(
    "source, value, holds",
    [
        ("0 <= t < 4", [0, 3], True),
        ("0 <= t < 4", [0, 4], False),
        ("sorted(t)", [1, 1, 2], True),
        ("sorted(t)", [1, 0], False),
        ("distinct(t)", [1, 0], True),
        ("distinct(t)", [1, 1], False),
        ("n % 2 == 0 and t[0] == 0", [0, 5], True),
        ("n % 2 == 0 and t[0] == 0", [5, 0], False),
    ],
)
def test_preconditions_as_text(source, value, holds):
    text = condition_text(Condition.of(source), {"t"})
    assert bool(eval(text, {"t": torch.tensor(value), "n": 4})) is holds


def test_a_template_for_a_gpu_asserts_what_descriptors_need(tmp_path):
    from zoo.kernels.gemm import gemm

    setting = Setting("f32", {}, {"rows": 32, "cols": 32, "depth": 32})
    source = export_source(gemm, setting, "sm_90")
    assert "triton.set_allocator(" in source and "tl.make_tensor_descriptor(" in source
    assert "make_tensor_descriptor" not in export_source(gemm, setting)
    a, b = torch.randn(50, 72), torch.randn(72, 100)
    odd = torch.randn(72, 33)
    calls = {"good": ((a, b), {}), "odd": ((a, odd), {}), "moved": ((a[:, 1:], b[1:]), {})}
    report = run_alone(tmp_path, source, "gemm", calls)
    assert (torch.tensor(report["good"][0]) - a @ b).abs().max() < 1e-4
    assert report["odd"] == "refused: descriptors need strides of 16 bytes"
    assert report["moved"] == "refused: descriptors need addresses of 16 bytes"

"""What a plug-in owes to Triton and torch: found, light, never in the way, never raising."""

import importlib
import inspect
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import forked
import pytest
import torch
import triton
import triton.language as tl
from triton import backends as registry

import codegen.cpu
from codegen.cpu.compiler import CpuBackend
from codegen.cpu.driver import CpuDriver

ROOT = Path(__file__).resolve().parents[3]
GROUP = "triton.backends"


def declared() -> dict:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project["entry-points"][GROUP]


def install(where: Path, entries: dict) -> None:
    """Make ``where`` a folder in which a distribution with these entry points is installed."""
    info = where / "example_plugin-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: example-plugin\nVersion: 1.0\n")
    lines = [f"[{GROUP}]", *(f"{k} = {v}" for k, v in entries.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n")


def python(code: str, *path: Path, torch_first: bool = False, **env: str) -> str:
    """What a fresh interpreter prints; ``path`` comes before everything else.

    With ``torch_first`` it has imported torch before, which for a program that does so is quicker.
    """
    variables = {k: v for k, v in os.environ.items() if k != "TRITON_DEFAULT_BACKEND"}
    variables |= {"PYTHONPATH": os.pathsep.join(map(str, path)), **env}
    if torch_first:
        done = forked.python(code, env=variables, cwd="/")
    else:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env=variables, cwd="/"
        )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture
def site(tmp_path):
    install(tmp_path / "site", declared())
    return tmp_path / "site"


# --- found ----------------------------------------------------------------------------------------


def test_installed_it_is_found_and_light(site):
    """Times are the machine's mood; what is imported is not."""
    code = (
        "import sys, triton\n"
        "from triton.backends import backends\n"
        "heavy = {'llvmlite', 'sympy', 'torch', 'numpy', 'tkpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "assert 'codegen.cpu.toolchain' not in sys.modules\n"
        "print(backends['cpu'].compiler.__module__, backends['cpu'].driver.__module__)"
    )
    assert python(code, site, ROOT) == "codegen.cpu.compiler codegen.cpu.driver"


@pytest.mark.parametrize(
    "first", ["import codegen.cpu, triton", "import triton, codegen.cpu", "import tkpy, triton"]
)
def test_a_checkout_registers_on_import(first):
    without = (
        "import importlib.metadata as m\n"
        "real = m.entry_points\n"
        "class Others:\n"
        "    def select(self, **q):\n"
        "        return [e for e in real(**q) if e.name != 'cpu']\n"
        "m.entry_points = lambda **q: real(**q) if q else Others()\n"
    )
    code = f"{without}{first}\nprint(triton.backends.backends['cpu'].driver.__name__)"
    assert python(code, ROOT) == "CpuDriver"


def test_each_module_offers_one_concrete_class():
    from triton.backends.compiler import BaseBackend
    from triton.backends.driver import DriverBase

    import tkpy_triton.compiler
    import tkpy_triton.driver

    assert declared() == {"cpu": "tkpy_triton"}
    for module, base, want in (
        (tkpy_triton.compiler, BaseBackend, CpuBackend),
        (tkpy_triton.driver, DriverBase, CpuDriver),
    ):
        found = [c for c in vars(module).values() if isinstance(c, type) and issubclass(c, base)]
        assert found == [want] and not inspect.isabstract(want)


# --- never in the way -----------------------------------------------------------------------------


class Gpu(CpuDriver):
    """A driver of another backend that says what it is told to."""

    answer: object = True

    @classmethod
    def is_active(cls):
        if isinstance(cls.answer, Exception):
            raise cls.answer
        return cls.answer


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.delenv("TRITON_DEFAULT_BACKEND", raising=False)
    monkeypatch.setitem(registry.backends, "gpu", registry.Backend(CpuBackend, Gpu))
    return monkeypatch


def chosen() -> type:
    module = importlib.import_module("triton.runtime.driver")  # the name is bound to an object too
    return type(module._create_driver())


def test_a_gpu_that_is_active_wins(gpu):
    gpu.setattr(Gpu, "answer", True)
    assert not CpuDriver.is_active()
    assert chosen() is Gpu


@pytest.mark.parametrize("answer", [False, RuntimeError("no libcuda"), OSError("broken driver")])
def test_without_an_active_gpu_ours_is(gpu, answer):
    gpu.setattr(Gpu, "answer", answer)
    assert CpuDriver.is_active()
    if answer is False:
        assert chosen() is CpuDriver


def test_asked_for_by_name_ours_is_active_beside_a_gpu(gpu):
    gpu.setattr(Gpu, "answer", True)
    gpu.setenv("TRITON_DEFAULT_BACKEND", "cpu")
    assert CpuDriver.is_active()
    if tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 7):  # 3.6 does not read it
        assert chosen() is CpuDriver
    gpu.setenv("TRITON_DEFAULT_BACKEND", "gpu")
    assert not CpuDriver.is_active()


def test_hidden_it_stays_hidden_and_our_own_kernels_run(site, tmp_path):
    kernel = tmp_path / "twice.py"
    kernel.write_text(
        "import tkpy as tk\n\n\n"
        "@tk.kernel\n"
        'def twice(x: tk.Global["N D"], y: tk.Out["N D"]):\n'
        '    i = tk.grid(tk.cdiv("N", 16))\n'
        '    tk.store(y, tk.load(x, (i, 0), shape=(16, "D")) * 2, (i, 0))\n'
    )
    code = (
        "import torch, triton, tkpy, codegen.cpu\n"
        "assert 'cpu' not in triton.backends.backends\n"
        "from twice import twice\n"
        "x = torch.randn(20, 16)\n"
        "assert torch.equal(twice(x), x * 2)\n"
        "print('ran')"
    )
    env = {"TRITON_BACKENDS_IN_TREE": "1", "TKPY_EXECUTOR": "native"}
    assert python(code, site, tmp_path, ROOT, torch_first=True, **env) == "ran"


# --- never raising --------------------------------------------------------------------------------


def seeded(tmp_path: Path) -> Path:
    """A copy of the plug-in, to be damaged."""
    where = tmp_path / "copy"
    skip = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "tkpy_triton", where / "tkpy_triton", ignore=skip)
    shutil.copytree(ROOT / "codegen", where / "codegen", ignore=skip)
    return where


INERT = (
    "import triton, os\n"
    "cpu = triton.backends.backends['cpu']\n"
    "target = triton.backends.compiler.GPUTarget('cpu', '', 1)\n"
    "assert not cpu.compiler.supports_target(target)\n"
    "assert not cpu.driver.is_active()\n"
    "os.environ['TRITON_DEFAULT_BACKEND'] = 'cpu'\n"
    "try:\n"
    "    cpu.driver()\n"
    "except ImportError as error:\n"
    "    print(error)"
)


@pytest.mark.parametrize("fault", ["syntax", "gone", "raises"])
def test_damaged_files_leave_triton_whole(fault, site, tmp_path):
    copy = seeded(tmp_path)
    damaged = copy / "codegen" / "cpu" / "driver.py"
    if fault == "gone":
        damaged.unlink()
    else:
        damaged.write_text("def" if fault == "syntax" else "raise OSError('disk')")
    out = python(INERT, site, copy)
    assert "tkpy's CPU backend cannot be loaded" in out
    reason = {"syntax": "SyntaxError", "gone": "codegen.cpu.driver", "raises": "OSError: disk"}
    assert reason[fault] in out


def test_a_package_of_the_users_called_codegen_is_neither_run_nor_fatal(site, tmp_path):
    other = tmp_path / "project" / "codegen"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("print('must not run')")
    out = python(INERT, site, other.parent, ROOT)
    assert str(other / "__init__.py") in out and "must not run" not in out


def test_without_llvmlite_only_a_launch_raises(site, tmp_path):
    missing = tmp_path / "missing" / "llvmlite"
    missing.mkdir(parents=True)
    (missing / "__init__.py").write_text("raise ImportError('seeded')")
    (tmp_path / "missing" / "user.py").write_text(
        "import triton, triton.language as tl\n\n\n@triton.jit\ndef one(o):\n    tl.store(o, 1.0)\n"
    )
    code = (
        "import torch, triton\n"
        "from torch.utils._triton import has_triton, triton_hash_with_backend\n"
        "assert has_triton() and triton_hash_with_backend()\n"
        "import user\n"
        "try:\n"
        "    user.one[(1,)](torch.zeros(1))\n"
        "except ImportError as error:\n"
        "    print(error)"
    )
    out = python(code, site, missing.parent, ROOT, torch_first=True)
    assert "seeded" in out and "pip install llvmlite" in out


def test_a_file_that_cannot_be_read_still_gives_a_version(tmp_path):
    copy = seeded(tmp_path)
    (copy / "codegen" / "cpu" / "dangling.py").symlink_to(tmp_path / "nowhere")
    code = (
        "from codegen.cpu import compiler, driver\n"
        "assert str(compiler.__file__).startswith(%r)\n"
        "print(len(compiler.CpuBackend(driver.CpuDriver().get_current_target()).hash()))"
    )
    assert int(python(code % str(copy), copy)) > 20


# --- options --------------------------------------------------------------------------------------


@triton.jit
def add_one(x, o, B: tl.constexpr):
    i = tl.arange(0, B)
    tl.store(o + i, tl.load(x + i) + 1)


def test_unknown_options_are_accepted_and_ignored():
    x, o = torch.randn(16), torch.empty(16)
    options = {"num_warps": 8, "num_stages": 5, "maxnreg": 128, "waves_per_eu": 2,
               "matrix_instr_nonkdim": 16, "fpsan_homomorphic_casts": True}  # fmt: skip
    add_one[(1,)](x, o, B=16, **options)
    assert torch.equal(o, x + 1)
    codegen.cpu.run(add_one, (1,), x, o.zero_(), B=16, **options)
    assert torch.equal(o, x + 1)


def test_what_a_cpu_ignores_does_not_make_other_code():
    backend = CpuBackend(CpuDriver().get_current_target())
    plain = backend.parse_options({})
    tuned = backend.parse_options({"num_warps": 8, "num_stages": 5, "num_ctas": 2, "kpack": 2})
    assert plain.hash() == tuned.hash()
    assert plain.hash() != backend.parse_options({"enable_fp_fusion": False}).hash()
    assert isinstance(hash(tuned), int)

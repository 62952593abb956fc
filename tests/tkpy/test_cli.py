"""The command line: every command on a user's own file, facts as JSON, and how it refuses."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import cli_kernels
import forked
import operator_kernels
import pytest
from typer.testing import CliRunner

import tkpy
from codegen.aot import CPU, TARGETS
from codegen.inspect import INSTRUCTIONS
from tkpy.cli import app, find
from tkpy.cli.check import differentiated
from tkpy.cli.find import Found
from tkpy.cli.options import AnyTarget, Target

FILE = cli_kernels.__file__
RUNNER = CliRunner()


@pytest.fixture(autouse=True, scope="module")
def _caches(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TKPY_CACHE_DIR", str(tmp_path_factory.mktemp("tkpy")))
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


class Entry:
    """An entry point of a package that registers the kernels of cli_kernels."""

    name, value = "example", "example_package"

    def __init__(self, kernels=None, error=None):
        self._kernels, self._error = kernels, error

    def load(self):
        if self._error:
            raise self._error
        module = type(sys)("example_package")
        module.kernels = lambda: self._kernels
        return module


@pytest.fixture
def register(monkeypatch):
    def put(*entries):
        monkeypatch.setattr(find, "packages", lambda: list(entries))

    return put


def tk(*arguments: str, status: int = 0):
    result = RUNNER.invoke(app, list(arguments), env={"COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == status, (result.stdout, result.stderr)
    return result


# --- list -----------------------------------------------------------------------------------------


def test_list(register):
    register(Entry({"scaled": cli_kernels.scaled, "many": cli_kernels.many}))
    out = tk("list").stdout
    assert re.search(r"scaled\s+x\[N D\], factor; rows -> y\[N D\]\s+y = x \* factor\.", out)
    assert "bias[F]?" in out and "y[H N+1 2*F]" in out


def test_list_json(register):
    register(Entry({"many": cli_kernels.many}))
    (fact,) = json.loads(tk("list", "--json").stdout)
    assert set(fact) == {"name", "origin", "file", "line", "summary", "arguments", "where"}
    assert fact["name"] == "many" and fact["origin"] == "example_package"
    assert fact["file"] == FILE and fact["summary"] == "One line about it."
    assert fact["where"][1] == "H % G == 0"
    kinds = {a["name"]: (a["kind"], a["type"]) for a in fact["arguments"]}
    assert kinds["x"] == ("in", 'tk.Global["H N F"]')
    assert kinds["sums"] == ("out", 'tk.Out["H", f32] | None')
    assert kinds["count"] == ("scalar", "i32")
    assert kinds["twice"] == ("constant", "bool")


def test_no_package_registers_anything(register):
    register()
    assert "no kernels" in tk("list").stdout
    assert json.loads(tk("list", "--json").stdout) == []
    assert "no kernels are registered" in tk("check", status=2).stderr


@pytest.mark.parametrize(
    "entry, said",
    [
        (Entry(error=ImportError("no module named that")), "ImportError: no module named that"),
        (Entry(kernels=3), "kernels() failed"),
        (Entry(kernels={"f": len}), "registers f, which is not a tk.kernel"),
    ],
)
def test_a_broken_package_is_a_warning(register, entry, said):
    register(entry, Entry({"scaled": cli_kernels.scaled}))
    result = tk("list", "--json")
    assert [f["name"] for f in json.loads(result.stdout)] == ["scaled"]
    assert said in result.stderr


def test_two_packages_with_one_name(register):
    register(Entry({"scaled": cli_kernels.scaled}), Entry({"scaled": cli_kernels.wrong}))
    result = tk("list", "--json")
    assert json.loads(result.stdout)[0]["summary"] == "y = x * factor."
    assert "scaled is registered by" in result.stderr


# --- names ----------------------------------------------------------------------------------------


def test_unknown_names(register):
    register(Entry({"scaled": cli_kernels.scaled}))
    said = tk("show", "scald", status=2).stderr
    assert "no kernel 'scald'" in said and "did you mean scaled?" in said
    assert "there is scaled" in tk("show", "zzz", status=2).stderr
    assert "did you mean scaled?" in tk("show", f"{FILE}:scald", status=2).stderr
    assert "plain in" in tk("show", f"{FILE}:plain", status=2).stderr
    assert "say which" in tk("show", FILE, status=2).stderr
    assert "no file nowhere.py" in tk("show", "nowhere.py:x", status=2).stderr


@pytest.mark.parametrize(
    "text, line, said",
    [
        ("import tkpy\nx = undefined_name\n", 2, "NameError: name 'undefined_name'"),
        ("\n\ndef f(:\n    pass\n", 3, "SyntaxError"),
        ("import no_such_module_at_all\n", 1, "ModuleNotFoundError"),
        (
            "import tkpy as tk\n\n@tk.kernel\ndef f(x):\n    pass\n",
            3,
            "f: parameter x has no annotation",
        ),
        ("def g():\n    raise ValueError('deep')\ng()\n", 2, "ValueError: deep"),
        ("import sys\nsys.exit(3)\n", None, "exits when it is imported (status 3)"),
        ("x = 1\n", None, "defines no kernel"),
    ],
)
def test_a_broken_file_is_told_by_its_line(tmp_path, text, line, said):
    file = tmp_path / "broken.py"
    file.write_text(text)
    result = RUNNER.invoke(app, ["show", f"{file}:f"])
    assert result.exit_code in (1, 2) and isinstance(result.exception, SystemExit)
    assert said in result.stderr and "Traceback" not in result.stderr
    assert (f"{file}:{line}:" if line else str(file)) in result.stderr
    assert result.stdout == ""


def test_an_illegal_kernel_is_told_by_its_line():
    for command in ("show", "inspect", "export"):
        said = tk(command, f"{FILE}:illegal", status=1).stderr
        assert re.search(r"cli_kernels\.py:\d+: @: .*inner sizes", said) and "t @ tk.zeros" in said


def test_a_users_file_may_import_its_neighbours(tmp_path):
    (tmp_path / "neighbour_of_mine.py").write_text("ROWS = 16\n")
    file = tmp_path / "mine.py"
    file.write_text(
        "import tkpy as tk\nfrom neighbour_of_mine import ROWS\n\n"
        '@tk.kernel\ndef one(x: tk.Global["N D"], y: tk.Out["N D"]):\n'
        '    i = tk.grid(tk.cdiv("N", ROWS))\n'
        '    tk.store(y, tk.load(x, (i, 0), shape=(ROWS, "D")), (i, 0))\n'
    )
    assert "tl.store" in tk("show", str(file)).stdout  # its only kernel needs no name


# --- show -----------------------------------------------------------------------------------------

STAGES = {
    "source": "def scaled(x:",
    "tile": "kernel scaled(",
    "triton": "@triton.jit",
    "ttir": "tt.func public @scaled_kernel",
    "ttgir": "#ttg.",
    "llir": "define",
    "ptx": ".target sm_90a",
    "sass": "EXIT",
    "amdgcn": "s_endpgm",
    "llvm": "define void @kernel",
    "asm": "kernel:",
}


@pytest.mark.parametrize("stage", STAGES)
def test_show_every_stage(stage):
    out = tk("show", f"{FILE}:scaled", "--stage", stage).stdout
    assert STAGES[stage] in out and "\x1b[" not in out


@pytest.mark.parametrize("stage", ["triton", "ttir", "llvm", "asm"])
@pytest.mark.parametrize("features", ["", "base"])
def test_show_for_this_processor(stage, features, monkeypatch):
    """The text is that of the kernel which a call on CPU tensors would run."""
    monkeypatch.setenv("TKPY_CPU_FEATURES", features)
    common = ["show", f"{FILE}:scaled", "--dtype", "f32", "--target", "cpu", "--stage", stage]
    out = tk(*common).stdout
    assert STAGES[stage] in out
    if features and stage == "llvm":
        assert "<4 x float>" in out and "<8 x float>" not in out
    # A GPU's strides may be passed in units of 16, which the CPU has no use for.
    gpu = tk("show", f"{FILE}:scaled", "--dtype", "f32", "--stage", "triton").stdout
    assert stage != "triton" or out != gpu


def test_show_is_byte_for_byte_in_a_pipe():
    narrow = RUNNER.invoke(app, ["show", f"{FILE}:scaled"], env={"COLUMNS": "20"}).stdout
    assert narrow == tk("show", f"{FILE}:scaled").stdout
    compile(narrow, "shown", "exec")


def test_show_other_variants():
    out = tk("show", f"{FILE}:scaled", "--dim", "D=40", "--dtype", "f32", "--set", "rows=32").stdout
    assert "tl.arange(0, 32)" in out and "< 40" in out
    out = tk("show", f"{FILE}:many", "--stage", "tile", "--set", "mode=mul", "--set", "sums=true")
    assert "sums: out f32" in out.stdout and "bias" not in out.stdout
    assert (
        ".target sm_80"
        in tk("show", f"{FILE}:scaled", "--stage", "ptx", "--target", "sm_80").stdout
    )


def test_show_after_a_pass():
    first = tk("show", f"{FILE}:many", "--stage", "tile", "--pass", "frontend").stdout
    last = tk("show", f"{FILE}:many", "--stage", "tile").stdout
    assert first.startswith("kernel many(") and first != last
    said = tk("show", f"{FILE}:many", "--stage", "tile", "--pass", "no", status=2).stderr
    assert "there is frontend, " in said
    assert "--stage tile" in tk("show", f"{FILE}:many", "--pass", "dce", status=2).stderr


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--dim", "Q=3"], "no dimension Q"),
        (["--dim", "D"], "NAME=VALUE"),
        (["--dim", "D=0"], "positive"),
        (["--dim", "D=-4"], "positive"),
        (["--set", "rose=32"], "did you mean rows?"),
        (["--set", "rows=many"], "of type int"),
        (["--stage", "obj"], "obj"),
        (["--stage", "asm", "--target", "sm_90"], "sm_90 has no stage asm; it has ttir, ttgir"),
        (["--stage", "llir", "--target", "cpu"], "cpu has no stage llir; it has ttir, llvm, asm"),
        (["--target", "sm_99"], "sm_99"),
        (["--stage", "ptx", "--target", "gfx942"], "gfx942 has no stage ptx"),
        (["--stage", "amdgcn", "--target", "sm_90"], "sm_90 has no stage amdgcn"),
    ],
)
def test_options_that_are_refused(arguments, said):
    result = tk("show", f"{FILE}:scaled", *arguments, status=2)
    assert said in re.sub(r"[\s│]+", " ", result.stderr) and result.stdout == ""


def test_sizes_that_break_a_precondition_are_refused():
    said = tk("inspect", f"{FILE}:many", "--dim", "H=3", "--dim", "G=2", status=2).stderr
    assert "H % G == 0" in said
    assert "mode" in tk("show", f"{FILE}:many", "--set", "mode=sub", status=1).stderr


# --- inspect --------------------------------------------------------------------------------------


def test_targets_are_those_of_the_compiler():
    assert [str(t) for t in Target] == list(TARGETS)
    assert [str(t) for t in AnyTarget] == [*TARGETS, CPU]


def test_inspect_reads_gpus_only():
    """Occupancy, warps and shared memory mean nothing on a CPU."""
    assert "sm_90" in tk("inspect", f"{FILE}:scaled", "--target", "cpu", status=2).stderr


def test_what_changes_in_place_has_no_backward_to_check(capsys):
    found = [Found(k.name, k, "here") for k in (operator_kernels.gram, operator_kernels.step)]
    assert [differentiated(f) for f in found] == [True, False]
    assert "step is left out: it changes state in place" in capsys.readouterr().err


def test_inspect_a_backward():
    """A report a program: the forward that saves, then those of the gradients."""
    reports = json.loads(tk("inspect", f"{FILE}:scaled", "--backward", "--json").stdout)
    assert len(reports) >= 2 and all(r["registers"] > 0 for r in reports)
    said = tk("inspect", f"{FILE}:scaled", "--backward").stdout
    assert "the gradients of x by scaled" in said and "scaled_backward" in said


@pytest.mark.parametrize("target", TARGETS)
def test_inspect_json(target):
    report = json.loads(tk("inspect", f"{FILE}:scaled", "--target", target, "--json").stdout)
    assert set(report) == {
        "target", "registers", "spills", "shared_bytes", "occupancy", "instructions"
    }  # fmt: skip
    assert report["target"] == target and report["registers"] > 0 and report["spills"] == 0
    assert 0 < report["occupancy"] <= 1
    assert list(report["instructions"]) == list(INSTRUCTIONS)
    assert all(isinstance(n, int) for n in report["instructions"].values())


def test_inspect_as_a_table():
    out = tk("inspect", f"{FILE}:scaled").stdout
    assert out.startswith("scaled for sm_90: rows=16, D=64, x: bf16, y: bf16\n")
    assert re.search(r"registers\s+\d+", out) and "none of: wgmma" in out


# --- check ----------------------------------------------------------------------------------------


def test_check_passes():
    out = tk("check", f"{FILE}:scaled", "--examples", "5").stdout
    assert re.search(r"scaled\s+5\s+[\d.e-]+\s+[\d.]+\s+ok", out)


def test_check_json():
    (fact,) = json.loads(tk("check", f"{FILE}:scaled", "--examples", "5", "--json").stdout)
    assert set(fact) == {"name", "examples", "worst_error", "ok"}
    assert fact["name"] == "scaled" and fact["examples"] == 5 and fact["ok"] is True
    assert 0 <= fact["worst_error"] <= 1


def test_check_finds_what_is_wrong():
    out = tk("check", f"{FILE}:wrong", "--examples", "10", status=1).stdout
    assert re.search(r"wrong\s+\d+\s+[\d.e+]+\s+[\d.]+\s+FAILED", out)
    # What is printed runs in a fresh interpreter.
    lines = [
        line.removeprefix("    ") for line in out.split("reproduce:")[1].strip("\n").split("\n")
    ]
    done = forked.python("\n".join(lines), cwd="/")
    assert done.returncode == 0 and done.stdout, done.stderr


def test_check_all(register):
    register(Entry({n: getattr(cli_kernels, n) for n in ("scaled", "unreferenced", "illegal")}))
    facts = json.loads(tk("check", "--examples", "3", "--json", status=1).stdout)
    assert [f["ok"] for f in facts] == [True, False, False]
    assert all(set(f) == {"name", "examples", "worst_error", "ok", "failure"} for f in facts[1:])
    assert facts[1]["worst_error"] is None and "no reference" in facts[1]["failure"]
    assert "inner sizes" in facts[2]["failure"]


def test_check_refuses_a_silly_count():
    tk("check", f"{FILE}:scaled", "--examples", "0", status=2)


# --- export ---------------------------------------------------------------------------------------


def test_export_to_standard_output():
    text = tk("export", f"{FILE}:scaled").stdout
    compile(text, "exported", "exec")
    assert text == tk("export", f"{FILE}:scaled", "-o", "-").stdout


def test_export_writes_and_replaces_only_its_own(tmp_path):
    file = tmp_path / "deep" / "out.py"
    assert "scaled" in tk("export", f"{FILE}:scaled", "-o", str(file)).stdout
    first = file.read_text()
    tk("export", f"{FILE}:scaled", "-o", str(file), "--set", "rows=32")
    assert file.read_text() != first
    file.write_text("precious = 1\n")
    assert "--force" in tk("export", f"{FILE}:scaled", "-o", str(file), status=1).stderr
    tk("export", f"{FILE}:illegal", "-o", str(file), "--force", status=1)
    assert file.read_text() == "precious = 1\n"
    tk("export", f"{FILE}:scaled", "-o", str(file), "--force")
    assert file.read_text() == first
    assert "is a folder" in tk("export", f"{FILE}:scaled", "-o", str(tmp_path), status=1).stderr
    blocked = str(file / "below.py")
    assert "cannot be written" in tk("export", f"{FILE}:scaled", "-o", blocked, status=1).stderr
    assert [p.name for p in file.parent.iterdir()] == ["out.py"]  # no temporary file is left


# --- the program itself ---------------------------------------------------------------------------


PROGRAM = """
import sys
from tkpy.cli import app
try:
    app()
finally:
    sys.stdout.flush()
    assert not any(m.split(".")[0] == "zoo" for m in sys.modules), "tkpy imported the zoo"
"""


def test_version_and_help():
    assert tk("--version").stdout == f"tkpy {tkpy.__version__}\n"
    for command in ("list", "show", "export", "check", "inspect", "demo"):
        assert command in tk("--help").stdout
        assert "--help" in tk(command, "--help").stdout
    tk("nonsense", status=2)


def test_where_nothing_can_be_written_and_in_a_narrow_pipe(tmp_path):
    folder = tmp_path / "sealed"
    folder.mkdir()
    folder.chmod(0o500)
    environment = {
        **os.environ,
        "HOME": "/proc/nowhere",
        "TKPY_CACHE_DIR": "/proc/nowhere/tkpy",
        "TRITON_CACHE_DIR": "/proc/nowhere/triton",
        "TERM": "xterm-256color",
        "COLUMNS": "30",
    }
    done = forked.python(PROGRAM, "inspect", f"{FILE}:scaled", cwd=folder, env=environment)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert done.stdout.startswith("scaled for sm_90: rows=16, D=64, x: bf16, y: bf16\n")
    assert "\x1b[" not in done.stdout


def test_a_reader_that_stops_early():
    command = [sys.executable, "-c", PROGRAM, "show", f"{FILE}:scaled", "--stage", "tile"]
    done = subprocess.run(
        f"{shlex.join(command)} | head -1", shell=True, capture_output=True, text=True, timeout=120
    )
    assert done.stderr == "" and done.stdout == "kernel scaled(\n"


def test_installed_script_is_this_app():
    from importlib.metadata import entry_points

    (script,) = {e.value for e in entry_points(group="console_scripts") if e.name == "tkpy"}
    assert script == "tkpy.cli:app"
    assert Path(tkpy.__file__).parent.joinpath("cli").is_dir()

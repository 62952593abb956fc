"""The kernels are as short as the table says, and the counting rule is the one that is stated."""

import importlib.util
import sys
from pathlib import Path

import pytest

_PATH = Path(__file__).resolve().parents[2] / "bench" / "lines.py"
_SPEC = importlib.util.spec_from_file_location("bench_lines", _PATH)
lines = sys.modules["bench_lines"] = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(lines)


@pytest.mark.parametrize("title", [t for t, (_, limit, _) in lines.ROWS.items() if limit])
def test_a_kernel_is_short(title):
    names, limit, fla = lines.ROWS[title]
    assert lines.count(names).own <= limit < fla


def test_every_kernel_of_the_zoo_is_counted():
    assert {n for names, *_ in lines.ROWS.values() for n in names} == set(lines.zoo.kernels())


def test_the_counting_rule(monkeypatch, tmp_path):
    module = tmp_path / "two_kernels.py"
    module.write_text(
        '"""Two kernels."""\n'
        "import tkpy as tk\n"
        "BIG = 1.0\n\n\n"
        "@tk.function\n"
        "def shared(x):\n"
        "    return x + 1\n\n\n"
        "@tk.function\n"
        "def private(x):\n"
        '    """Not\n\n    counted."""\n'
        "    return shared(x)  # counted\n\n\n"
        "@tk.kernel\n"
        'def one(x: tk.Global["N"], y: tk.Out["N"]):\n'
        '    """Not counted."""\n'
        "    i = tk.grid(1)\n\n"
        "    # not counted\n"
        "    tk.store(y, private(tk.load(x, i, 16)) * BIG, i)\n\n\n"
        "@tk.kernel\n"
        'def two(x: tk.Global["N"], y: tk.Out["N"]):\n'
        "    tk.store(\n"
        "        y, shared(tk.load(x, 0, 16)), tk.grid(1)\n"
        "    )\n"
    )
    spec = importlib.util.spec_from_file_location("two_kernels", module)
    loaded = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "two_kernels", loaded)
    spec.loader.exec_module(loaded)
    monkeypatch.setattr(lines.zoo, "kernels", lambda: {"one": loaded.one, "two": loaded.two})
    # one: 4 lines, private: 3, BIG: 1; shared: 3 of both; two: 5.
    assert lines.count(("one",)) == lines.Count(8, 3)
    assert lines.count(("two",)) == lines.Count(5, 3)

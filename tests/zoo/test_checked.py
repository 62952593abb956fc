"""Every kernel runs in the CPU backend's checking mode: in bounds, written first, without races."""

import pytest
from test_poison import CASES, FAST_OR_SLOW
from zoo_helpers import outputs

import zoo
from codegen.cpu import poison
from codegen.cpu.check import CheckedLauncher


@pytest.mark.parametrize("case", FAST_OR_SLOW)
def test_checked(case, monkeypatch):
    monkeypatch.setenv("TKPY_EXECUTOR", "native")
    name, args, keywords = CASES[case]
    kernel = zoo.kernels()[name]
    monkeypatch.setenv("TKPY_CPU_CHECK", "1")
    poison.install()
    launches = []
    run = CheckedLauncher.__call__
    monkeypatch.setattr(
        CheckedLauncher, "__call__", lambda self, *a: launches.append(self) or run(self, *a)
    )
    got = outputs(kernel, *args, **keywords)
    assert launches
    assert got and not any(x.isnan().any() for x in got.values())

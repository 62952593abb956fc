"""Every test here runs stock Triton kernels on the CPU backend."""

import os

os.environ.setdefault("TRITON_DEFAULT_BACKEND", "cpu")

import pytest
import torch

import codegen.cpu

codegen.cpu.register()


@pytest.fixture(autouse=True)
def _same_numbers():
    """A test that fails once fails again."""
    torch.manual_seed(0)

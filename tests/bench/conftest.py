"""Rows run stock Triton kernels on the CPU backend."""

import os

os.environ.setdefault("TRITON_DEFAULT_BACKEND", "cpu")

import codegen.cpu

codegen.cpu.register()

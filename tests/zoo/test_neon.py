"""Code for 64-bit ARM, which is compiled here and not run: what comes out is vector code of it."""

import re

import llvmlite.binding as binding
import pytest
import torch
from test_poison import CASES
from zoo_helpers import outputs

import codegen.cpu
import zoo
from codegen.cpu.lower.function import lower
from codegen.cpu.parser import parse
from codegen.cpu.toolchain import Features, _simplify, llvm

NEON = Features("neon", "cortex-a76", "+neon,+fp-armv8", 4, 32, base="+fma,+f16c")
# What the C library of every host has, or LLVM's own runtime.
KNOWN = {"memcpy", "memset", "memmove", "fmodf", "fmod", "abort"}


@pytest.fixture(scope="module")
def machine():
    llvm()
    binding.initialize_all_targets()
    binding.initialize_all_asmprinters()
    target = binding.Target.from_triple("aarch64-unknown-linux-gnu")
    return target.create_target_machine(cpu=NEON.cpu, features=NEON.flags, opt=2)


#: Other kernels are compiled for ARM by the slow tests.
EVERY_TIME = {"gemm", "softmax", "rotary", "attention", "layernorm", "based_decode", "short_conv"}
NARROW = ("gemm", "softmax", "rotary", "attention, causal")


@pytest.mark.parametrize(
    "name, dtype",
    [
        pytest.param(
            n,
            torch.float32,
            marks=() if n in EVERY_TIME else pytest.mark.slow,
        )
        for n in CASES
    ]
    + [(n, torch.bfloat16) for n in NARROW],
    ids=str,
)
def test_vector_code_for_arm(name, dtype, machine, capfd, monkeypatch):
    kernel, args, keywords = CASES[name]
    args = [x.to(dtype) if x.is_floating_point() else x for x in args]
    keywords = {n: x.to(dtype) if isinstance(x, torch.Tensor) else x for n, x in keywords.items()}
    compiled, run = [], codegen.cpu.run
    monkeypatch.setattr(codegen.cpu, "run", lambda *a, **k: compiled.append(run(*a, **k)))
    outputs(zoo.kernels()[kernel], *args, **keywords)
    text, _ = lower(parse(compiled[-1].asm["ttir"]), NEON)
    module = binding.parse_assembly(text)
    module.triple = machine.triple
    module.verify()
    _simplify(binding, machine, module, text.count("\n"))
    assembly = machine.emit_assembly(module)
    assert "x86" not in text
    called = set(re.findall(r"\bbl\s+(\w+)", assembly))
    assert called <= KNOWN | {"program"} | {f for f in called if f.startswith("__aarch64")}, called
    wanted = r"\bfmla\s+v" if "gemm" in name or "attention" in name else r"\bf(add|mul)\s+v"
    assert re.search(wanted, assembly), "no vector arithmetic"
    assert "not a recognized feature" not in capfd.readouterr().err

"""A loop that Triton loses when it splits it by warp is scheduled anew, and left whole."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

import tkpy as tk
from codegen.inspect import Report
from tkpy.ahead import Setting, compile_lowered, key_of, lower_for
from tkpy.cli.inspect import remarks
from tkpy.pipeline import derive
from tkpy.pipeline.events import Wait
from tkpy.pipeline.model import PipelineError
from tkpy.template import proof
from tkpy.template.proof import survives, whole
from zoo.kernels.linear_attention import linear_attention


@tk.lcf(stages=2, consumer_warps=4)
def product(a: tk.Global["M K"], b: tk.Global["K N"], c: tk.Out["M N"]):
    i, j = tk.tasks(tk.cdiv("M", 64), tk.cdiv("N", 64))

    def setup():
        return tk.zeros(64, 64)

    def load(k):
        return tk.load(a, (i, k), (64, 64)), tk.load(b, (k, j), (64, 64))

    def compute(k, acc, at, bt):
        return tk.mma_AB(at, bt, acc)

    def finish(acc):
        tk.store(c, acc, (i, j))

    tk.run(tk.cdiv("K", 64), setup, load, compute, finish)


def test_a_loop_that_would_be_lost_is_left_whole():
    asked = lower_for(linear_attention, Setting(), target="sm_100", split=True)
    assert asked.fn.schedule.specialise
    assert not survives(asked)
    got = lower_for(linear_attention, Setting(), target="sm_100")
    assert not got.fn.schedule.specialise
    assert "not specialised: Triton loses this loop when it does" in got.fn.schedule.notes
    assert "warp_specialize" in asked.source and "warp_specialize" not in got.source
    assert whole(got.fn, compile_lowered(linear_attention, got, "sm_100").assembly)


def test_a_pipeline_is_checked_before_anything_is_compiled(monkeypatch):
    key = key_of(product, Setting())
    proof.in_order(product, key)
    right = derive.derive

    def hasty(*args, **kwargs):
        """What derive gives, with a consumer that does not wait for its inputs."""
        p = right(*args, **kwargs)
        role = p.roles[-1]
        body = tuple(e for e in role.body if not isinstance(e, Wait))
        return replace(p, roles=(*p.roles[:-1], replace(role, body=body)))

    monkeypatch.setattr("tkpy.pipeline.of_kernel.derive", hasty)
    monkeypatch.setattr(proof, "loss", lambda *_: pytest.fail("compiled before it was checked"))
    product._whole.clear()
    with pytest.raises(PipelineError, match="compute"):
        product.lower(key)


def test_what_stays_whole_is_specialised():
    lowered = lower_for(product, Setting())
    assert lowered.fn.schedule.specialise
    assert "setmaxnreg" in compile_lowered(product, lowered, "sm_90").assembly


@pytest.mark.parametrize(
    "assembly, stays",
    [
        ("ret;", False),
        ("st.shared.b32 [a], b; wgmma.mma_async.sync c;", False),
        ("st.global.b32 [a], b;", False),
        ("mad.lo.s32 r, r, r, r; fma.rn.f32 f, f, f, f; st.global.b32 [a], b;", False),
        ("st.global.v4.b32 [a], b; wgmma.mma_async.sync c;", True),
        ("cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [a]; tcgen05.mma.x d;", True),
        ("cp.async.bulk.tensor.2d.shared::cluster.global.x [a]; tcgen05.mma.x d;", False),
    ],
)
def test_whole_wants_stores_and_products(assembly, stays):
    assert whole(lower_for(product, Setting()).fn, assembly) == stays


@pytest.mark.parametrize("split, left, why", [
    (None, 0, proof.LOST), (0, 0, ""), (96, 0, proof.SPILLS), (96, 96, ""), (96, None, ""),
])  # fmt: skip
def test_a_split_loop_may_not_spill_more(monkeypatch, split, left, why):
    made = {"split": split, "left": left}
    monkeypatch.setattr(proof, "_compile", lambda x: (made[x.name] is not None and x) or None)
    monkeypatch.setattr(proof, "_spilled", lambda x: made[x.name])
    monkeypatch.setattr(proof, "whole", lambda *_: True)
    kind = lambda name: SimpleNamespace(name=name, fn=None, assembly="")  # noqa: E731
    assert proof.loss(kind("split"), lambda _: kind("left")) == why


def test_exact_products_are_not_split_by_warp():
    notes = lower_for(product, Setting(dtype="f32")).fn.schedule.notes
    assert any("exact fp32" in note for note in notes)
    report = Report("sm_90", 255, 96, 0, 0.1, {})
    assert "exact fp32" in remarks(None, report, True)[0]
    assert remarks(None, report) == ["96 bytes a thread are spilled: smaller tiles or more warps"]

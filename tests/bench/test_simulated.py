"""The simulated pipelines of ``python -m bench timeline`` against what was published."""

from bench.timeline import GEMM, MEASURED, attention_seconds, gemm
from tkpy.pipeline.device import DEVICES
from tkpy.pipeline.simulate import simulate

H100 = DEVICES["h100"]


def test_gemm_is_near_the_figure_that_its_share_comes_from():
    few = gemm(4096, H100)
    rate = 2 * 4096**3 / simulate(few, H100).time / 1e12
    assert 0.85 < rate / GEMM["h100"] <= 1.02


def test_attention_is_within_a_quarter_at_short_lengths():
    for n in (768, 1536):
        for causal in (False, True):
            flops = 4 * 16 * 16 * n * n * 128 / (2 if causal else 1)
            rate = flops / attention_seconds(n, causal, H100) / 1e12
            assert abs(rate / MEASURED[n][causal] - 1) < 0.25

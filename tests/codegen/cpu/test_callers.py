"""Everything that calls kernels: autotuning, heuristics, hooks, autograd, torch.compile."""

import pytest
import torch
import triton
import triton.language as tl

hooked: list = []


def configs():
    def before(arguments):
        hooked.append(arguments["n"])

    return [
        triton.Config({"B": 16}, num_warps=2),
        triton.Config({"B": 64}, num_warps=8, num_stages=4, pre_hook=before),
        triton.Config({"B": 64}, num_warps=4, maxnreg=64),
    ]


@triton.autotune(configs(), key=["n"], reset_to_zero=["total"], restore_value=["x"])
@triton.jit
def bump(x, total, n, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    v = tl.load(x + i, mask=i < n, other=0.0)
    tl.store(x + i, v + 1, mask=i < n)
    tl.atomic_add(total, tl.sum(v))


def test_autotune_with_hooks_and_restored_arguments():
    for n in (100, 300, 100):
        grid = lambda meta, n=n: (triton.cdiv(n, meta["B"]),)  # noqa: E731
        x = torch.arange(n, dtype=torch.float32)
        want, total = x + 1, torch.zeros(1)
        del hooked[:]
        bump[grid](x, total, n)
        assert torch.equal(x, want)  # once, however many trials there were
        assert total.item() == (want - 1).sum().item()
        assert bump.best_config.kwargs["B"] in (16, 64)
        assert set(hooked) <= {n}
    assert len(bump.cache) == 2


@triton.heuristics({"B": lambda a: triton.next_power_of_2(a["n"]), "EVEN": lambda a: a["n"] == 64})
@triton.jit
def doubled(x, o, n, B: tl.constexpr, EVEN: tl.constexpr):
    i = tl.arange(0, B)
    if EVEN:
        tl.store(o + i, tl.load(x + i) * 2)
    else:
        tl.store(o + i, tl.load(x + i, mask=i < n) * 2, mask=i < n)


@pytest.mark.parametrize("n", [64, 37])
def test_heuristics(n):
    x, o = torch.randn(n), torch.zeros(n + 8)
    doubled[(1,)](x, o, n)
    assert torch.equal(o[:n], x * 2) and not o[n:].any()


@triton.autotune([triton.Config({}, num_warps=w) for w in (1, 2)], key=["n"])
@triton.heuristics({"B": lambda a: triton.next_power_of_2(a["n"])})
@triton.jit
def halved(x, o, n, B: tl.constexpr):
    i = tl.arange(0, B)
    tl.store(o + i, tl.load(x + i, mask=i < n) / 2, mask=i < n)


def test_heuristics_under_an_autotuner():
    x, o = torch.randn(50), torch.empty(50)
    halved[(1,)](x, o, 50)
    assert torch.equal(o, x / 2)


@triton.jit
def scaled(x, o, factor, n, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    tl.store(o + i, tl.load(x + i, mask=i < n) * factor, mask=i < n)


def scale(x, factor):
    out = torch.empty_like(x)
    scaled[(triton.cdiv(x.numel(), 64),)](x, out, factor, x.numel(), B=64)
    return out


def test_pre_run_and_launch_hooks(monkeypatch):
    seen = []
    monkeypatch.setattr(scaled, "pre_run_hooks", [lambda *a, **k: seen.append(k["B"])])
    monkeypatch.setattr(triton.knobs.runtime, "launch_enter_hook", lambda m: seen.append(m.get()))
    monkeypatch.setattr(triton.knobs.runtime, "launch_exit_hook", lambda m: seen.append("left"))
    x = torch.randn(100)
    assert torch.equal(scale(x, 3.0), x * 3)
    assert seen[0] == 64 and seen[1]["name"] == "scaled" and seen[2] == "left"


def test_do_bench_measures_and_runs():
    x, runs = torch.randn(100), []
    time = triton.testing.do_bench(lambda: runs.append(scale(x, 2.0)), warmup=1, rep=2)
    assert 0 < time < 1e4 and torch.equal(runs[-1], x * 2)
    low, mid, high = triton.testing.do_bench(
        lambda: scale(x, 2.0), warmup=1, rep=2, quantiles=[0.2, 0.5, 0.8]
    )
    assert 0 < low <= mid <= high
    for mode in ("min", "max", "mean", "median"):
        assert triton.testing.do_bench(lambda: scale(x, 2.0), rep=1, return_mode=mode) > 0


def test_do_bench_clears_gradients():
    x = torch.randn(8, requires_grad=True)
    triton.testing.do_bench(lambda: (x * 2).sum().backward(), warmup=1, rep=1, grad_to_none=[x])
    assert torch.equal(x.grad, torch.full((8,), 2.0))  # of the last run alone


class Scale(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor):
        ctx.factor = factor
        return scale(x, factor)

    @staticmethod
    def backward(ctx, grad):
        return scale(grad.contiguous(), ctx.factor), None


def test_an_autograd_function():
    x = torch.randn(7, 9, requires_grad=True)
    (Scale.apply(x, 3.0) * Scale.apply(x, 0.5)).sum().backward()
    assert torch.allclose(x.grad, 3 * x.detach(), rtol=1e-6)
    # autograd runs the backward on a thread of its own; several at once share the backend
    xs = [torch.randn(500, requires_grad=True) for _ in range(8)]
    torch.autograd.backward([Scale.apply(t, float(k)).sum() for k, t in enumerate(xs)])
    for k, t in enumerate(xs):
        assert torch.equal(t.grad, torch.full((500,), float(k)))


def test_launches_from_several_threads():
    import threading

    x, wrong = torch.randn(1000), []

    def work(k):
        for _ in range(50):
            if not torch.equal(scale(x, float(k)), x * k):
                wrong.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


# --- inside torch.compile ---------------------------------------------------------------------------


@pytest.fixture
def compiled(tmp_path, monkeypatch):
    import torch._inductor.config as config

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    torch._dynamo.reset()
    options = {"cpu_backend": "triton", "compile_threads": 1, "fx_graph_cache": False,
               "triton.autotune_pointwise": False}  # fmt: skip
    with config.patch(options):
        yield lambda fn: torch.compile(fn, fullgraph=True)
    torch._dynamo.reset()


def test_a_users_kernel_in_a_whole_graph(compiled):
    def fn(x):
        return scale(x.sin(), 3.0) + 1

    x = torch.randn(100)
    assert torch.allclose(compiled(fn)(x), x.sin() * 3 + 1, rtol=1e-5, atol=1e-6)


def test_an_autotuned_kernel_in_a_whole_graph(compiled):
    def fn(x):
        out = torch.empty_like(x)
        tuned[lambda meta: (triton.cdiv(x.numel(), meta["B"]),)](x, out, x.numel())
        return out * 2

    x = torch.randn(100)
    assert torch.equal(compiled(fn)(x), (x + 1) * 2)


@triton.autotune([triton.Config({"B": 32}), triton.Config({"B": 128})], key=["n"])
@triton.jit
def tuned(x, o, n, B: tl.constexpr):
    i = tl.program_id(0) * B + tl.arange(0, B)
    tl.store(o + i, tl.load(x + i, mask=i < n) + 1, mask=i < n)


def test_an_autograd_function_in_a_whole_graph(compiled):
    x = torch.randn(64, requires_grad=True)
    (compiled(lambda x: Scale.apply(x, 3.0).cos())(x)).sum().backward()
    want = -3 * (3 * x.detach()).sin()
    assert torch.allclose(x.grad, want, rtol=1e-5, atol=1e-5)


def test_a_triton_operator(compiled):
    @torch.library.triton_op("tkpy_tests::scaled", mutates_args={})
    def operator(x: torch.Tensor, factor: float) -> torch.Tensor:
        out = torch.empty_like(x)
        torch.library.wrap_triton(scaled)[(2,)](x, out, factor, x.numel(), B=64)
        return out

    x = torch.randn(100)
    assert torch.equal(operator(x, 2.0), x * 2)
    assert torch.equal(compiled(lambda x: operator(x, 2.0))(x), x * 2)

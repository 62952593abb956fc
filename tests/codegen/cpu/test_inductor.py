"""torch.compile on the CPU: undisturbed by default, and with Inductor's Triton kernels run here."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True, scope="module")
def _inductor(tmp_path_factory):
    import torch._inductor.config as config

    options = {"cpu_backend": "triton", "compile_threads": 1, "fx_graph_cache": False,
               "triton.autotune_pointwise": False}  # fmt: skip
    with pytest.MonkeyPatch.context() as patch, config.patch(options):
        patch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path_factory.mktemp("inductor")))
        yield
    torch._dynamo.reset()


def compiled(fn, **options):
    torch._dynamo.reset()
    return torch.compile(fn, fullgraph=True, **options)


def held(got, eager, exact, what="") -> None:
    """No further from fp64 than four times eager's own distance and four roundings."""
    assert got.dtype == eager.dtype and got.shape == eager.shape, what
    if not got.dtype.is_floating_point:
        assert torch.equal(got, eager), what
        return
    assert torch.equal(got.isnan(), eager.isnan()), what
    eps = torch.finfo(got.dtype).eps
    got, eager, exact = (t.detach().double().nan_to_num() for t in (got, eager, exact))
    bound = 4 * (eager - exact).abs().max() + 4 * eps * exact.abs().max()
    assert (got - exact).abs().max() <= bound, what


class Block(nn.Module):
    """A transformer block: two norms, causal attention written out, and a gelu network."""

    def __init__(self, width=32, heads=2):
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.RMSNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x):
        b, t, d = x.shape
        qkv = self.qkv(self.before(x)).view(b, t, 3, self.heads, d // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        s = q @ k.transpose(-1, -2) * (d // self.heads) ** -0.5
        below = torch.ones(t, t, dtype=torch.bool, device=x.device).tril()
        y = s.masked_fill(~below, float("-inf")).softmax(-1) @ v
        x = x + self.out(y.transpose(1, 2).reshape(b, t, d))
        return x + self.down(F.gelu(self.up(self.between(x))))


def step(block, fn, x):
    """Output and gradients of a forward and a backward."""
    x = x.detach().requires_grad_()
    block.zero_grad()
    y = fn(x)
    y.square().mean().backward()
    return [y, x.grad, *(p.grad for p in block.parameters())]


@pytest.mark.parametrize("dtype, lengths", [
    pytest.param(torch.float32, [33], marks=pytest.mark.slow),
    pytest.param(torch.bfloat16, [33, 18, 50], marks=pytest.mark.slow),
])  # fmt: skip
def test_a_transformer_block_forward_and_backward(dtype, lengths):
    torch.manual_seed(0)
    block = Block()
    exact = Block().double()
    block.to(dtype)
    exact.load_state_dict(block.state_dict())
    dynamic = len(lengths) > 1
    fast = compiled(block, dynamic=dynamic)
    with torch._inductor.utils.fresh_cache():
        for n, t in enumerate(lengths):
            x = torch.randn(2, t, 32).to(dtype)
            made = torch._dynamo.utils.counters["stats"]["unique_graphs"]
            ours = step(block, fast, x)
            theirs, want = step(block, block, x), step(exact, exact, x.double())
            if n:  # sizes are arguments of the kernels: nothing is compiled again
                assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == made
            for k, (a, b, c) in enumerate(zip(ours, theirs, want, strict=True)):
                held(a, b, c, f"length {t}, tensor {k}")


def test_its_kernels_are_triton_and_run_here():
    from torch._inductor.utils import run_and_get_code

    x = torch.randn(20, 30)
    fn = compiled(lambda x: (x.sin() + 1).sum(1))
    got, (code,) = run_and_get_code(fn, x)
    assert "@triton.jit" in code and "cpp_fused" not in code
    assert "type='cpu'" in code
    held(got, (x.sin() + 1).sum(1), (x.double().sin() + 1).sum(1))


UNARY = (
    "abs acos asin asinh atan atanh ceil cos cosh erf erfc exp exp2 expm1 floor frac isinf isnan "
    "lgamma log log10 log1p log2 logit neg reciprocal relu round rsqrt sigmoid sign signbit sin "
    "sinh sqrt square tan tanh trunc digamma"
)
# Not floor_divide: Inductor replaces it by a formula of its own, which differs at infinity.
BINARY = (
    "add atan2 copysign div fmax fmin fmod hypot ldexp logaddexp maximum minimum mul nextafter "
    "pow remainder sub"
)


def test_elementwise_functions():
    """All in one kernel, special values among the arguments; eager's own error is the measure."""
    torch.manual_seed(0)
    special = torch.tensor([0.0, -0.0, 1.0, -1.0, float("inf"), -float("inf"), float("nan")])
    x = torch.cat([torch.rand(90) * 0.9 + 0.05, torch.randn(20), special])
    y = torch.cat([torch.rand(90) + 0.5, torch.randn(20), special.flip(0)])
    unary, binary = UNARY.split(), BINARY.split()

    def every(x, y):
        pairs = [getattr(torch, n)(x, y) for n in binary]
        return [getattr(torch, n)(x) for n in unary] + pairs

    got, eager, exact = compiled(every)(x, y), every(x, y), every(x.double(), y.double())
    for name, a, b, c in zip(unary + binary, got, eager, exact, strict=True):
        if not a.dtype.is_floating_point:
            assert torch.equal(a, b), name
            continue
        assert torch.equal(a.isnan(), b.isnan()) and torch.equal(a.isinf(), b.isinf()), name
        finite = b.isfinite()
        a, b, c = (t[finite].double() for t in (a, b, c))
        error = (a - c).abs() - 4 * (b - c).abs()
        assert (error <= 8 * torch.finfo(torch.float32).eps * c.abs() + 2**-126).all(), name


def _reductions(x, wide):
    return [x.sum(), x.sum(0), wide.sum(1), wide.mean(), x.var(0), wide.std(1), x.amax(1),
            x.max(1).indices, x.argmin(0), wide.argmax(1), (x > 0).any(1), (x > -9).all(0),
            x.abs().prod(1), x.cumsum(1), wide.cumsum(1), x.sigmoid().cumprod(1),
            x.logcumsumexp(1), x.cummax(1).values, x.cummin(1).indices, x.softmax(1),
            wide.log_softmax(1), F.layer_norm(wide, wide.shape[1:])]  # fmt: skip


def _indexing(x, at, v):
    zero = x.new_zeros(37, 21)
    return [x[at], zero.index_add(0, at, v), zero.index_put((at,), v, accumulate=True),
            zero.scatter_reduce(0, at[:, None].expand(50, 21), v, "amax"),
            x.gather(0, at[:, None].expand(50, 21)), torch.where(x > 0, x, -x), x.flip(0),
            torch.cat([x, x * 2], 1), x.roll(3, 1), F.pad(x, (1, 2)), x.T.contiguous(),
            torch.bucketize(x, torch.linspace(-2, 2, 9, dtype=x.dtype)),
            at // 3, (at - 20) // 3, (at - 20) % 7, at << 2, at**2]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reductions_and_scans(dtype):
    torch.manual_seed(0)
    x, wide = torch.randn(37, 21).to(dtype), torch.randn(3, 3000).to(dtype)
    got = compiled(_reductions)(x, wide)
    want = zip(_reductions(x, wide), _reductions(x.double(), wide.double()), strict=True)
    for k, (a, (b, c)) in enumerate(zip(got, want, strict=True)):
        held(a, b, c, f"row {k}")


def test_indexing_and_atomics():
    torch.manual_seed(0)
    x, at, v = torch.randn(37, 21), torch.randint(0, 37, (50,)), torch.randn(50, 21)
    got = compiled(_indexing)(x, at, v)
    want = zip(_indexing(x, at, v), _indexing(x.double(), at, v.double()), strict=True)
    for k, (a, (b, c)) in enumerate(zip(got, want, strict=True)):
        held(a, b, c, f"row {k}")


def test_sorting():
    x = torch.randint(0, 9, (5, 13)).float()
    values, order = compiled(lambda x: x.sort(dim=1, stable=True))(x)
    want = x.sort(dim=1, stable=True)
    assert torch.equal(values, want.values) and torch.equal(order, want.indices)


def test_random_numbers_have_their_distribution():
    """Inductor's own generator: not eager's numbers, so moments are held, to five deviations."""
    n = 20000

    def draw():
        return torch.rand(n), torch.randn(n), F.dropout(torch.ones(n), 0.25)

    torch.manual_seed(1)
    fn = compiled(draw)
    uniform, normal, dropped = fn()
    root = n**0.5
    assert uniform.min() >= 0 and uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 5 * 0.29 / root and abs(normal.mean()) < 5 / root
    assert abs(normal.std() - 1) < 5 * 0.71 / root
    kept = (dropped > 0).float().mean()
    assert abs(kept - 0.75) < 5 * 0.44 / root and set(dropped.tolist()) == set(
        torch.tensor([0, 4 / 3]).tolist()
    )
    torch.manual_seed(1)
    assert torch.equal(fn()[0], uniform) and not torch.equal(fn()[0], uniform)


@pytest.mark.parametrize("option", ["coordinate_descent_tuning", "max_autotune_pointwise"])
def test_tuning(option):
    x = torch.randn(64, 48)
    got = compiled(lambda x: x.softmax(1) * 2, options={option: True})(x)
    held(got, x.softmax(1) * 2, x.double().softmax(1) * 2)


def test_what_has_no_counterpart_is_refused_by_name():
    with pytest.raises(Exception, match="__nv_cyl_bessel_i0f has no counterpart on the CPU"):
        compiled(torch.special.i0)(torch.randn(8))


# --- by default -----------------------------------------------------------------------------------

DEFAULT = """
import torch, triton
from torch._inductor.utils import run_and_get_code
torch.manual_seed(0)
x, w = torch.randn(8, 12), torch.randn(12, 9)
got, (code,) = run_and_get_code(torch.compile(lambda x, w: (x @ w).relu().softmax(1)), x, w)
print("cpu" in triton.backends.backends)
print(got.flatten().tolist())
print(code)
"""


@pytest.mark.slow
@pytest.mark.skipif(
    not (os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")),
    reason="torch.compile on the CPU generates C++ by default, and there is no C++ compiler",
)
def test_by_default_torch_compile_generates_the_same_code_as_without_us(tmp_path):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "TORCHINDUCTOR_FX_GRAPH_CACHE": "0",
           "TORCHINDUCTOR_AUTOGRAD_CACHE": "0", "TORCHINDUCTOR_COMPILE_THREADS": "1",
           "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}  # fmt: skip
    env.pop("TRITON_DEFAULT_BACKEND", None)
    outputs = []
    for hidden in ("1", "0"):
        program = DEFAULT if hidden == "1" else "import codegen.cpu\n" + DEFAULT
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True,
                              env={**env, "TRITON_BACKENDS_IN_TREE": hidden})  # fmt: skip
        assert done.returncode == 0, done.stderr
        outputs.append(done.stdout)
    without, ours = outputs
    assert without.startswith("False\n") and ours.startswith("True\n")
    assert "cpp_fused" in ours and "@triton.jit" not in ours
    assert without.split("\n", 1)[1] == ours.split("\n", 1)[1]

"""Every program that is not legal is refused with its file, line, operands and the fix."""

import textwrap

import pytest
import torch

import tkpy as tk

SIGNATURE = 'def k(x: tk.Global["M N"], y: tk.Global["N M"], o: tk.Out["M N"], s: tk.f32):\n'
GRID = "    i = tk.grid(tk.cdiv('M', 32))\n"
X = "    a = tk.load(x, (i, 0), shape=(32, 64))\n"
Y = "    b = tk.load(y, (0, i), shape=(64, 32))\n"
STORE = "    tk.store(o, a, (i, 0))\n"

#: What the body says, the line (within the body) that is to blame, and what the message holds.
REFUSED = {
    "inner size": (
        GRID + X + Y + "    a = a + tk.mma_ABt(a, b) * 0\n" + STORE, 4,
        ["mma_ABt", "a is 32x64 f32", "b is 64x32 f32", "inner sizes 64 and 32 differ", "mma_AB"],
    ),
    "dtype mix": (
        GRID + X + Y + "    c = tk.mma_AB(a, tk.cast(b, tk.bf16))\n" + STORE, 4,
        ["a is 32x64 f32", "64x32 bf16", "element types differ", "tk.cast"],
    ),
    "elementwise dtype mix": (
        GRID + X + "    a = a + tk.cast(a, tk.f16)\n" + STORE, 3,
        ["a is 32x64 f32", "32x64 f16", "fix: convert one of them"],
    ),
    "not a multiple of 16": (
        GRID + "    a = tk.load(x, (i, 0), shape=(20, 64))\n" + STORE, 2,
        ["multiple of 16", "20", "use 32"],
    ),
    "unknown name": (GRID + X + "    a = aa + 1\n" + STORE, 3, ["unknown name aa", "mean a"]),
    "unknown verb": (
        GRID + X + "    a = tk.expp(a)\n" + STORE, 3, ["tkpy has no expp", "did you mean exp"],
    ),
    "unsupported construct": (
        GRID + X + "    while True:\n        pass\n" + STORE, 3,
        ["while loops are not part of the language", "tk.range"],
    ),
    "comprehension": (
        GRID + X + "    l = list(a for _ in range(2))\n" + STORE, 3, ["not part of the language", "[...]"],
    ),
    "with": (GRID + X + "    with x:\n        pass\n" + STORE, 3, ["not part of the language"]),
    "use before definition": (
        GRID + "    c = a\n" + X + STORE, 2, ["a is used before it is defined"],
    ),
    "defined in one branch": (
        GRID + X + "    if i > 3:\n        c = a + 1\n    a = c\n" + STORE, 5,
        ["c is used before it is defined here", "only one branch of the `if`"],
    ),
    "defined in a loop": (
        GRID + X + "    for j in tk.range(i):\n        c = a + 1\n    a = c\n" + STORE, 5,
        ["c is only assigned inside the loop", "zero times"],
    ),
    "loop changes shape": (
        GRID + X + "    c = tk.zeros(32, 64)\n    for j in tk.range(i):\n        c = a.T\n" + STORE, 4,
        ["c enters the loop as 32x64 f32 and leaves it as 64x32 f32"],
    ),
    "loop changes dtype": (
        GRID + X + "    c = tk.zeros(32, 64)\n    for j in tk.range(i):\n"
        "        c = tk.cast(c + a, tk.bf16)\n" + STORE, 4,
        ["c enters the loop as 32x64 f32 and leaves it as 32x64 bf16", "tk.cast(c, tk.f32)"],
    ),
    "loop changes extent": (
        GRID + X + "    c = tk.zeros(32, 64)\n    for j in tk.range(tk.cdiv('M', 32)):\n"
        "        c = c + tk.load(x, (j, 0), shape=(32, 64))\n" + STORE, 4,
        ["live extent of c changes with every trip", "tk.fill_dead"],
    ),
    "branches differ": (
        GRID + X + "    if i > 3:\n        c = a + 1\n    else:\n        c = a.T\n" + STORE, 3,
        ["c is 32x64 f32 in one branch and 64x32 f32 in the other"],
    ),
    "output never stored": (GRID + X, 0, ["the output o is never stored", "tk.store(o"]),
    "store to input": (GRID + X + "    tk.store(x, a, (i, 0))\n" + STORE, 3, ["x is an input"]),
    "load from output": (
        GRID + "    a = tk.load(o, (i, 0), shape=(32, 64))\n" + STORE, 2, ["o is an output", "InOut"],
    ),
    "coordinates": (
        GRID + "    a = tk.load(x, (0, i, 0), shape=(32, 64))\n" + STORE, 2,
        ["x has 2 dimensions (M N) and 3 coordinates"],
    ),
    "keyword": (
        GRID + "    a = tk.load(x, (i, 0), shap=(32, 64))\n" + STORE, 2,
        ["unexpected keyword argument 'shap'", "did you mean shape=?"],
    ),
    "arity": (GRID + X + "    a = tk.exp(a, 2)\n" + STORE, 3, ["too many positional", "tk.exp(x)"]),
    "tensor as tile": (GRID + X + "    a = x + 1\n" + STORE, 3, ["tensor in global memory", "tk.load(x"]),
    "plain function": (
        GRID + X + "    a = helper(a)\n" + STORE, 3, ["plain Python function", "@tk.function"],
    ),
    "truth of a tile": (
        GRID + X + "    if a > 0:\n        a = a + 1\n" + STORE, 3, ["not one truth value", "tk.where"],
    ),
    "python range": (
        GRID + X + "    for j in range(i):\n        a = a + 1\n" + STORE, 3,
        ["only known at run time", "tk.range"],
    ),
    "return a value": (GRID + X + STORE + "    return a\n", 4, ["a kernel returns nothing"]),
    "no grid": (X.replace("(i, 0)", "(0, 0)") + STORE.replace("(i", "(0"), 0, ["no grid"]),
    "unknown dimension": (
        "    i = tk.grid('Q')\n" + X + STORE, 1, ["'Q' is not a dimension", "M, N"],
    ),
    "vector length": (
        GRID + X + "    v = tk.load(x, (0, i), shape=(32,))\n    a = a + v\n" + STORE, 4,
        ["a is 32x64", "v is vector of 32", "tk.col_vec"],
    ),
    "slice": (GRID + X + "    c = a[:, 0:20]\n" + STORE, 3, ["20 elements", "multiple of 16"]),
    "assert": (GRID + "    assert 1 > 2, 'never'\n" + X + STORE, 2, ["never"]),
    "item assignment": (GRID + X + "    a[0:16, :] = 1\n" + STORE, 3, ["not assigned to in part"]),
    "recursion": (GRID + X + "    a = forever(a)\n" + STORE, None, ["calls itself"]),
    "integer division of floats": (
        GRID + X + "    a = tk.exp(tk.cast(a, tk.i32))\n" + STORE, 3,
        ["exp takes float", "i32", "tk.cast"],
    ),
    "unroll": (
        GRID + X + "    for j in range(1000):\n        a = a + 1\n" + STORE, 3, ["unrolled 1000 times"],
    ),
}  # fmt: skip

HEADER = """\
import tkpy as tk

def helper(a):
    return a

@tk.function
def forever(a):
    return forever(a)

@tk.kernel
"""


def compile_body(tmp_path, name, body, signature=SIGNATURE):
    import importlib.util

    path = tmp_path / f"case_{name.replace(' ', '_')}.py"
    path.write_text(HEADER + signature + body)
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.k, path, len((HEADER + signature).splitlines())


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_place_operands_and_fix(tmp_path, name):
    body, line, parts = REFUSED[name]
    kernel, path, above = compile_body(tmp_path, name, body)
    x, y = torch.zeros(40, 64), torch.zeros(64, 40)
    with pytest.raises(tk.CompileError) as e:
        kernel(x, y, 1.0)
    message = str(e.value)
    for part in parts:
        assert part in message, message
    if line is not None:
        where = f"{path}:{above + line if line else above}"
        assert message.startswith(f"{where}: "), f"{where} not in {message}"
        if line:
            assert body.splitlines()[line - 1].strip() in message
    assert "Traceback" not in message


@pytest.mark.parametrize("name", ["of the kernel", "of the call"])
def test_the_traceback_is_the_authors(tmp_path, monkeypatch, name):
    kernel, _, _ = compile_body(tmp_path, "trace", GRID + X + "    b = a @ a\n" + STORE)
    args = (torch.zeros(40, 64), torch.zeros(64, 40), 1.0)[: 3 if name == "of the kernel" else 2]
    with pytest.raises(tk.TkError) as e:
        kernel(*args)
    assert len(e.traceback) == 2  # this line, and the kernel's call
    monkeypatch.setenv("TKPY_TRACEBACK", "full")
    with pytest.raises(tk.TkError) as e:
        kernel(*args)
    assert len(e.traceback) > 2


def test_the_same_body_without_the_mistake_compiles(tmp_path):
    kernel, _, _ = compile_body(tmp_path, "right", GRID + X + STORE)
    x = torch.randn(40, 64)
    assert torch.equal(kernel(x, torch.zeros(64, 40), 1.0), x)


def call_errors():
    x, y = torch.zeros(40, 64), torch.zeros(64, 40)
    return {
        "rank": ((x[0], y, 1.0), {}, ["x has 1 dimensions", "2"]),
        "dtype": ((x.int(), y, 1.0), {}, ["x is torch.int32", "float32"]),
        "shared dtype": ((x, y.half(), 1.0), {}, ["y is f16 and x is f32", "y.to(x.dtype)"]),
        "dimension": ((x, torch.zeros(64, 41), 1.0), {}, ["y and x disagree on M", "41", "40"]),
        "type": ((x, [1], 1.0), {}, ["y must be a torch.Tensor, got list"]),
        "missing": ((x,), {}, ["y is missing"]),
        "too many": ((x, y, 1.0, 2), {}, ["takes 3 positional arguments (x, y, s), got 4"]),
        "typo": ((x, y), {"ss": 1.0}, ["unknown keyword ss", "did you mean s?"]),
        "twice": ((x, y, 1.0), {"s": 2.0}, ["s is given twice"]),
        "scalar": ((x, y, "a"), {}, ["s must be a number"]),
        "device": ((x, y.to("meta"), 1.0), {}, ["y is on meta and x on cpu"]),
        "grad": (
            (x, y, torch.tensor(1.0, requires_grad=True)),
            {},
            ["s requires grad", "s.item()"],
        ),
        "out shape": ((x, y, 1.0), {"o": torch.zeros(40, 63)}, ["o and x disagree on N"]),
        "overlap": ((x, y, 1.0), {"o": x}, ["shares memory with x"]),
        "sparse": ((x.to_sparse(), y, 1.0), {}, ["not a dense tensor"]),
    }


@pytest.mark.parametrize("name", call_errors())
def test_calls_refused(tmp_path, name):
    kernel, _, _ = compile_body(tmp_path, "call", GRID + X + STORE)
    args, kwargs, parts = call_errors()[name]
    with pytest.raises(tk.CallError) as e:
        kernel(*args, **kwargs)
    for part in parts:
        assert part in str(e.value)
    assert isinstance(e.value, TypeError)
    assert isinstance(e.value, ValueError)


@pytest.mark.parametrize(
    ("signature", "parts"),
    [
        ('def k(x, o: tk.Out["M N"]):\n', ["parameter x has no annotation", "tk.Global"]),
        ('def k(x: list, o: tk.Out["M N"]):\n', ["parameter x is annotated", "tk.Global"]),
        ("def k(n: tk.i32):\n", ["a kernel needs a tensor"]),
        ('def k(*x: tk.Global["M"]):\n', ["*x is not allowed"]),
    ],
)
def test_signatures_refused(tmp_path, signature, parts):
    with pytest.raises(tk.TkError) as e:
        compile_body(tmp_path, "signature", GRID + X + STORE, signature)
    for part in parts:
        assert part in str(e.value)


def test_preconditions(tmp_path):
    source = textwrap.dedent("""\
        import tkpy as tk

        @tk.kernel(where=["M % 8 == 0", "0 <= t < V", "sorted(t)"])
        def k(x: tk.Global["M V"], t: tk.Global["M", tk.i64], o: tk.Out["M V"]):
            i = tk.grid(tk.cdiv("M", 16))
            tk.store(o, tk.load(x, (i, 0), shape=(16, "V")), (i, 0))
        """)
    path = tmp_path / "pre.py"
    path.write_text(source)
    scope: dict = {}
    exec(compile(source, str(path), "exec"), scope)
    k = scope["k"]
    x, t = torch.randn(8, 5), torch.tensor([0, 0, 1, 2, 3, 4, 4, 4])
    assert torch.equal(k(x, t), x)
    for wrong, condition in (
        ((x[:7], t[:7]), "M % 8 == 0"),
        ((x, t + 1), "0 <= t < V"),
        ((x, t - 1), "0 <= t < V"),
        ((x, t.flip(0)), "sorted(t)"),
    ):
        with pytest.raises(tk.CallError) as e:
            k(*wrong)
        assert repr(condition) in str(e.value)


def test_verbs_outside_a_kernel_say_so():
    with pytest.raises(tk.TkError, match=r"tk.exp works on tiles, inside a kernel"):
        tk.exp(1.0)

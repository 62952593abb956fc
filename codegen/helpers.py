"""Small Triton functions that emitted kernels may call; a module carries the ones it uses."""

SOURCES = {
    "tanh": """@triton.jit
def tanh(x):
    # Odd polynomial near zero, where 1 - exp(-2|x|) would cancel; the quotient elsewhere.
    a = tl.abs(x)
    t = tl.exp(-2.0 * a)
    far = (1.0 - t) / (1.0 + t)
    y = x * x
    near = a * (1.0 + y * (-1.0 / 3 + y * (2.0 / 15 + y * (-17.0 / 315 + y * (62.0 / 2835)))))
    out = tl.where(a < 0.2, near, far)
    return tl.where(x < 0, -out, out)
""",
    "floordiv": """@triton.jit
def floordiv(a, b):
    # Rounds down like Python; Triton's own // truncates towards zero.
    q = a // b
    r = a - q * b
    return tl.where((r != 0) & ((r < 0) != (b < 0)), q - 1, q)
""",
    "floormod": """@triton.jit
def floormod(a, b):
    # Has the sign of the divisor like Python; Triton's own % has that of the dividend.
    r = a % b
    return tl.where((r != 0) & ((r < 0) != (b < 0)), r + b, r)
""",
    "product": """@triton.jit
def _times(a, b):
    return a * b


@triton.jit
def product(x, axis: tl.constexpr):
    return tl.reduce(x, axis, _times)
""",
}

"""Small Triton functions that emitted kernels may call; a module carries the ones it uses."""

SOURCES = {
    "raster": """@triton.jit
def raster(task, rows, columns, group: tl.constexpr):
    # Down groups of so many rows, column after column: neighbours share operands in L2.
    first = task // (group * columns) * group
    height = min(rows - first, group)
    within = task % (group * columns)
    return first + within % height, within // height
""",
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
    "shl": """@triton.jit
def shl(x, n, bits: tl.constexpr):
    # What machines and LLVM leave open is settled: bits leave the word one by one.
    return tl.where((n >= 0) & (n < bits), x << (n & (bits - 1)).to(x.dtype), 0)
""",
    "shr": """@triton.jit
def shr(x, n, bits: tl.constexpr):
    # Arithmetic for signed types, logical for unsigned ones, as Triton's own >>.
    inside = (n >= 0) & (n < bits)
    return tl.where(inside, x >> (n & (bits - 1)).to(x.dtype), tl.where(x < 0, -1, 0).to(x.dtype))
""",
    "mulhi": """@triton.jit
def mulhi(a, b):
    # The high half of a signed product, from that of the same bits read as unsigned.
    high = tl.umulhi(a, b)
    return high - tl.where(a < 0, b, 0) - tl.where(b < 0, a, 0)
""",
    "round_even": """@triton.jit
def round_even(x):
    # Adding 2^23 makes the adder round to an integer, ties to even; from there on all are integers.
    size = tl.abs(x)
    near = tl.where(size < 8388608.0, (size + 8388608.0) - 8388608.0, size)
    sign = x.to(tl.int32, bitcast=True) & -2147483648
    return (near.to(tl.int32, bitcast=True) | sign).to(tl.float32, bitcast=True)
""",
    "truncate": """@triton.jit
def truncate(x):
    return tl.where(x < 0, tl.ceil(x), tl.floor(x))
""",
    "product": """@triton.jit
def _times(a, b):
    return a * b


@triton.jit
def product(x, axis: tl.constexpr):
    return tl.reduce(x, axis, _times)
""",
}

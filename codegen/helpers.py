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
    "count_bins": """@triton.jit
def count_bins(x, bins: tl.constexpr, block: tl.constexpr):
    # What is no bin is not counted; Triton leaves it open.
    flat = tl.reshape(x, (x.numel,))
    return tl.histogram(flat.to(tl.int32), block, mask=(flat >= 0) & (flat < bins))
""",
    "rank_key": """@triton.jit
def rank_key(value, position):
    if value.dtype == tl.float32:
        bits = (value + 0.0).to(tl.int32, bitcast=True)  # -0 is 0
        # A negative number's bits fall as it rises: all are turned, of others the sign only.
        high = tl.where(value != value, -1, bits ^ ((bits >> 31) | -2147483648))
    else:
        high = value ^ -2147483648
    low = ~position.to(tl.uint32, bitcast=True)  # the smaller position wins
    return (high.to(tl.uint32, bitcast=True).to(tl.uint64) << 32) | low.to(tl.uint64)
""",
    "key_position": """@triton.jit
def key_position(key):
    return (~key.to(tl.uint32)).to(tl.int32, bitcast=True)
""",
    "key_i32": """@triton.jit
def key_i32(key):
    return (key >> 32).to(tl.int32) ^ -2147483648
""",
    "key_f32": """@triton.jit
def key_f32(key):
    high = (key >> 32).to(tl.int32)
    value = (high ^ (~(high >> 31) | -2147483648)).to(tl.float32, bitcast=True)
    value = tl.where(high == -1, float("nan"), value)
    return tl.where(key == 0, float("-inf"), value)
""",
    "largest": """@triton.jit
def largest(keys, k: tl.constexpr, block: tl.constexpr):
    # k rounds, each of which takes the largest of every row out.
    slot = tl.arange(0, block)[None, :]
    out = tl.zeros((keys.shape[0], block), tl.uint64)
    for r in range(k):
        top = tl.max(keys, axis=1)[:, None]
        out = tl.where(slot == r, top, out)
        keys = tl.where(keys == top, tl.zeros_like(keys), keys)
    return out
""",
    "largest_of_both": """@triton.jit
def largest_of_both(some, more, k: tl.constexpr, block: tl.constexpr):
    slot = tl.arange(0, block)[None, :]
    out = tl.zeros((some.shape[0], block), tl.uint64)
    for r in range(k):
        top = tl.maximum(tl.max(some, axis=1), tl.max(more, axis=1))[:, None]
        out = tl.where(slot == r, top, out)
        some = tl.where(some == top, tl.zeros_like(some), some)
        more = tl.where(more == top, tl.zeros_like(more), more)
    return out
""",
    "to_fp8e4m3": """@triton.jit
def to_fp8e4m3(x):
    # PyTorch's rule, spelt out, for machines differ: too large is 448; a NaN keeps its sign.
    word = x.to(tl.float8e4nv).to(tl.uint8, bitcast=True)
    sign = (x.to(tl.int32, bitcast=True) >> 24).to(tl.uint8) & 0x80
    word = tl.where(tl.abs(x) > 448.0, sign | 0x7E, word)
    word = tl.where(x != x, sign | 0x7F, word)
    return word.to(tl.float8e4nv, bitcast=True)
""",
    "to_fp8e5m2": """@triton.jit
def to_fp8e5m2(x):
    # PyTorch's rule, spelt out, for machines saturate: too large is infinite.
    word = x.to(tl.float8e5).to(tl.uint8, bitcast=True)
    sign = (x.to(tl.int32, bitcast=True) >> 24).to(tl.uint8) & 0x80
    word = tl.where(tl.abs(x) < 61440.0, word, sign | 0x7C)
    word = tl.where(x != x, sign | 0x7F, word)
    return word.to(tl.float8e5, bitcast=True)
""",
    "row_pairs": """@triton.jit
def row_pairs(x, f: tl.constexpr, block: tl.constexpr):
    # Column d f + i has x[i] x[(i + d + 1) % f]; past f (f - 1) / 2 pairs come a second time.
    at = tl.arange(0, block)[None, :]
    first = tl.broadcast_to(at % f, (x.shape[0], block))
    second = tl.broadcast_to((at % f + at // f + 1) % f, (x.shape[0], block))
    both = tl.gather(x, first, 1) * tl.gather(x, second, 1)
    return tl.where(at < f * (f - 1) // 2, both, 0.0)
""",
    "row_unpair": """@triton.jit
def row_unpair(g, x, f: tl.constexpr, turns: tl.constexpr, block: tl.constexpr):
    # An element meets that d + 1 ahead of it as the first of a pair, that behind it as the second.
    rows: tl.constexpr = g.shape[0]
    width: tl.constexpr = x.shape[1]
    last: tl.constexpr = g.shape[1] - 1
    g = tl.where((tl.arange(0, g.shape[1]) < f * (f - 1) // 2)[None, :], g, 0.0)
    at = tl.arange(0, block * width)[None, :]
    d, i = at // width, at % width
    ahead = tl.broadcast_to((i + d + 1) % f, (rows, block * width))
    behind = tl.broadcast_to((i + 2 * f - d - 1) % f, (rows, block * width))
    mine = tl.broadcast_to(tl.minimum(d * f + i, last), (rows, block * width))
    other = tl.minimum(d * f + behind, last)
    sums = tl.gather(g, mine, 1) * tl.gather(x, ahead, 1)
    sums += tl.gather(g, other, 1) * tl.gather(x, behind, 1)
    if turns < block:
        sums = tl.where(d < turns, sums, 0.0)
    return tl.sum(tl.reshape(sums, (rows, block, width)), axis=1)
""",
    "product": """@triton.jit
def _times(a, b):
    return a * b


@triton.jit
def product(x, axis: tl.constexpr):
    return tl.reduce(x, axis, _times)
""",
}

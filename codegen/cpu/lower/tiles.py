"""bf16 products on Intel's matrix tiles (AMX): 16 x 16 blocks of fp32 in eight tile registers.

The left operand is read as it lies (row-major, 32 values of a row at a time), the right one from
panels of bf16 pairs, and the accumulators are loaded from and stored to the result's buffer.
"""

from __future__ import annotations

from codegen.cpu.emit import Val, const
from codegen.cpu.lower import access
from codegen.cpu.lower.inplace import InPlace
from codegen.cpu.lower.tensor import Buffer, Fresh, Tensor, nest

ROW_BYTES = 64
NEAR_BYTES = 20 << 10  # of a first-level cache that two threads may share
# A tile configuration: palette 1, then bytes per row of each tile at 16, rows of each at 48.
CONFIG = bytes([1, *[0] * 15, *[ROW_BYTES, 0] * 8, *[0] * 16, *[16] * 8, *[0] * 8])


def applies(features, m: int, k: int, n: int, elems: tuple[str, str, str]) -> bool:
    """Whole tiles of bf16 x bf16 -> fp32 on a host that has them."""
    whole = m % 16 == 0 and n % 16 == 0 and k % 32 == 0
    return features.amx and elems == ("bf16", "bf16", "f32") and whole


def panel_width(n: int) -> int:
    """Columns per panel of the right operand."""
    return 32 if n % 32 == 0 else 16


def configure(e) -> str:
    """The line that sets the tiles up, with the constant it reads."""
    data = ", ".join(f"i8 {b}" for b in CONFIG)
    e.globals["@tileconfig"] = f"@tileconfig = private constant [64 x i8] [{data}], align 64"
    e.declare("declare void @llvm.x86.ldtilecfg(ptr)")
    return "call void @llvm.x86.ldtilecfg(ptr @tileconfig)"


def multiply(low, a: Buffer, panel, c: Tensor, out: Buffer, live) -> None:
    """out = a @ panel + c for the live rows, columns and pairs of inner steps."""
    e = low.e
    m, k = a.shape
    m_stop, n_stop, k_stop = live
    zero = c.constant() == 0
    if isinstance(c, Fresh):
        e.branch_if(c.first, lambda: low.write(c.value, out))
    elif not zero and c is not out:
        low.write(c, out)
    low.uses_tiles = True
    width = panel.width
    most_m, most_n = (2 if m % 32 == 0 else 1), width // 16

    pitch = out.pitch if isinstance(out, InPlace) else const("i64", 4 * out.steps[0])

    def tile(op: str, number: int, p: Val, stride: Val | int) -> None:
        stride = str(stride) if isinstance(stride, int) else e.operand(stride)
        e.intrinsic(f"llvm.x86.{op}", "void",
                    [("i8", str(number)), ("ptr", e.operand(p)), ("i64", stride)])  # fmt: skip

    def ask(pair: Val, i: Val, j: Val, ways_m: int, ways_n: int) -> None:
        """Ask for a share of the accumulators below: a tensor's are not near, as a buffer's are."""
        each = -(-16 * ways_m // (k // 32))
        step = e.op("lshr", "i32", pair, const("i32", 4))
        row = e.add(e.add(i, const("i32", 16 * ways_m)), e.mul(step, const("i32", each)))
        for r, y in ((r, y) for r in range(each) for y in range(ways_n)):
            at = (e.add(row, const("i32", r)), e.add(j, const("i32", 16 * y)))
            access.prefetch(e, out.address(e, at), near=True)

    def block(i: Val, j: Val, ways_m: int, ways_n: int) -> None:
        places = {}
        for x in range(ways_m):
            for y in range(ways_n):
                row = e.add(i, const("i32", 16 * x))
                places[x, y] = out.address(e, (row, e.add(j, const("i32", 16 * y))))
                if zero:
                    e.intrinsic("llvm.x86.tilezero", "void", [("i8", str(2 * x + y))])
                else:
                    tile("tileloadd64", 2 * x + y, places[x, y], pitch)
        left = [e.offset(a.base, e.mul(e.add(i, const("i32", 16 * x)), const("i32", a.steps[0])), 2)
                for x in range(ways_m)]  # fmt: skip
        right = e.offset(panel.base, e.mul(j, const("i32", k // 2)), 4)

        def step(pair: Val, _) -> None:
            """Loads in the order of their first use, so that products start before the last."""
            ready = set()

            def ensure(x: int, y: int) -> None:
                if ("left", x) not in ready:
                    p = e.offset(left[x], e.mul(pair, const("i32", 2)), 2)
                    tile("tileloadd64", 4 + x, p, 2 * a.steps[0])
                if ("right", y) not in ready:
                    at = e.add(e.mul(pair, const("i32", width)), const("i32", 16 * y))
                    tile("tileloadd64", 6 + y, e.offset(right, at, 4), 4 * width)
                ready.update({("left", x), ("right", y)})

            if not zero and isinstance(out, InPlace):
                ask(pair, i, j, ways_m, ways_n)
            for x in range(ways_m):
                for y in range(ways_n):
                    ensure(x, y)
                    numbers = (2 * x + y, 4 + x, 6 + y)
                    e.intrinsic("llvm.x86.tdpbf16ps", "void", [("i8", str(k)) for k in numbers])

        if isinstance(k_stop, int) and k_stop <= 64:
            for pair in range(0, k_stop, 16):
                step(const("i32", pair), None)
        else:
            e.loop(0, k_stop, 16, step)
        for (x, y), p in places.items():
            tile("tilestored64", 2 * x + y, p, pitch)

    def along(stop, most: int, body) -> None:
        """``body(start, tiles)`` for two tiles at a time, and for one that is left over."""
        if most == 1 or isinstance(stop, int):
            e.loop(0, stop, 16 * most, lambda at, _: body(at, most))
            return
        e.loop(0, e.add(stop, const("i32", -16)), 32, lambda at, _: body(at, 2))
        done = e.op("and", "i32", e.add(stop, const("i32", 15)), const("i32", -32))
        e.loop(done, stop, 32, lambda at, _: body(at, 1))

    def by_rows() -> None:
        along(m_stop, most_m, lambda i, x: along(n_stop, most_n, lambda j, y: block(i, j, x, y)))

    def by_columns() -> None:
        along(n_stop, most_n, lambda j, y: along(m_stop, most_m, lambda i, x: block(i, j, x, y)))

    with nest(e):  # what the inner loop goes over again and again should stay in the first cache
        by_rows() if 2 * k * out.shape[1] <= NEAR_BYTES else by_columns()

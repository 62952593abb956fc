"""Step 6: neighbours share. Programs walk down ``super_m`` rows of tiles before the next column.

Those that run at the same time then need few rows of a and few columns of b between them, which
stay in the cache that all of them read from. (The last band of rows may be a narrower one.)
"""

import tkpy as tk


@tk.kernel(num_warps=8)
def gemm(
    a: tk.Global["M K", tk.bf16],
    b: tk.Global["K N", tk.bf16],
    c: tk.Out["M N", tk.bf16],
    *,
    rows: int = 128,
    cols: int = 128,
    depth: int = 64,
    super_m: int = 8,
):
    down, across = tk.cdiv("M", rows), tk.cdiv("N", cols)
    t = tk.grid(down * across)
    band = t // (super_m * across)
    height = min(down - band * super_m, super_m)
    inside = t - band * super_m * across
    i, j = band * super_m + inside % height, inside // height
    acc = tk.zeros(rows, cols)
    for k in tk.range(tk.cdiv("K", depth)):
        acc = tk.mma_AB(tk.load(a, (i, k), (rows, depth)), tk.load(b, (k, j), (depth, cols)), acc)
    tk.store(c, acc, (i, j))


if __name__ == "__main__":
    from ladder import show

    show(gemm)

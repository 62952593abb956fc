"""Step 2: larger tiles. A program loads 2 x 64 x 16 numbers for 64 x 64 x 16 multiply-adds."""

import tkpy as tk


@tk.kernel(where=["M % rows == 0", "N % cols == 0", "K % 16 == 0"])
def gemm(
    a: tk.Global["M K", tk.f32],
    b: tk.Global["K N", tk.f32],
    c: tk.Out["M N", tk.f32],
    *,
    rows: int = 64,
    cols: int = 64,
):
    i, j = tk.grid(tk.dim("M") // rows, tk.dim("N") // cols)
    acc = tk.zeros(rows, cols)
    for k in tk.range(tk.dim("K // 16")):
        acc = tk.mma_AB(tk.load(a, (i, k), (rows, 16)), tk.load(b, (k, j), (16, cols)), acc)
    tk.store(c, acc, (i, j))


if __name__ == "__main__":
    from ladder import show

    show(gemm)

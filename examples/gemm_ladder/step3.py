"""Step 3: bf16 in, bf16 out, fp32 in between, which is what matrix units are built for."""

import tkpy as tk


@tk.kernel(where=["M % rows == 0", "N % cols == 0", "K % 16 == 0"])
def gemm(
    a: tk.Global["M K", tk.bf16],
    b: tk.Global["K N", tk.bf16],
    c: tk.Out["M N", tk.bf16],
    *,
    rows: int = 64,
    cols: int = 64,
):
    i, j = tk.grid(tk.dim("M") // rows, tk.dim("N") // cols)
    acc = tk.zeros(rows, cols)  # fp32, as every product of 16-bit tiles
    for k in tk.range(tk.dim("K // 16")):
        acc = tk.mma_AB(tk.load(a, (i, k), (rows, 16)), tk.load(b, (k, j), (16, cols)), acc)
    tk.store(c, acc, (i, j))


if __name__ == "__main__":
    from ladder import show

    show(gemm)

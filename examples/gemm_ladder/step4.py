"""Step 4: more of K at a time. Loads and products of 64 keep the units busy longer each."""

import tkpy as tk


@tk.kernel(where=["M % rows == 0", "N % cols == 0", "K % depth == 0"], num_warps=8)
def gemm(
    a: tk.Global["M K", tk.bf16],
    b: tk.Global["K N", tk.bf16],
    c: tk.Out["M N", tk.bf16],
    *,
    rows: int = 128,
    cols: int = 128,
    depth: int = 64,
):
    i, j = tk.grid(tk.dim("M") // rows, tk.dim("N") // cols)
    acc = tk.zeros(rows, cols)
    for k in tk.range(tk.dim("K") // depth):
        acc = tk.mma_AB(tk.load(a, (i, k), (rows, depth)), tk.load(b, (k, j), (depth, cols)), acc)
    tk.store(c, acc, (i, j))


if __name__ == "__main__":
    from ladder import show

    show(gemm)

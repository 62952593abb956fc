"""Step 1: one 16x16 tile of the result a program, one 16x16x16 product at a time."""

import tkpy as tk


@tk.kernel(where=["M % 16 == 0", "N % 16 == 0", "K % 16 == 0"])
def gemm(a: tk.Global["M K", tk.f32], b: tk.Global["K N", tk.f32], c: tk.Out["M N", tk.f32]):
    i, j = tk.grid("M // 16", "N // 16")
    acc = tk.zeros(16, 16)
    for k in tk.range(tk.dim("K // 16")):
        acc = tk.mma_AB(tk.load(a, (i, k), (16, 16)), tk.load(b, (k, j), (16, 16)), acc)
    tk.store(c, acc, (i, j))


if __name__ == "__main__":
    from ladder import show

    show(gemm)

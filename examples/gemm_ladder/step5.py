"""Step 5: any size. ``tk.cdiv`` instead of ``//``, and no precondition: that is all.

The compiler splits the loop into the whole tiles, in bounds by construction, and a ragged one, the
only one that pays for a mask. ``tkpy show step5.py:gemm --stage triton`` prints both.
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
):
    i, j = tk.grid(tk.cdiv("M", rows), tk.cdiv("N", cols))
    acc = tk.zeros(rows, cols)
    for k in tk.range(tk.cdiv("K", depth)):
        acc = tk.mma_AB(tk.load(a, (i, k), (rows, depth)), tk.load(b, (k, j), (depth, cols)), acc)
    tk.store(c, acc, (i, j))


if __name__ == "__main__":
    from ladder import show

    show(gemm)

"""Step 8: programs that stay. As many as the device holds walk over the tiles of C.

``persistent`` (the default, which step 7 switched off) lets the next tile's loads run while this
one is stored. ``consumer_groups=2``: two groups of four warps share a tile of 128 x 256, and the
producer warps hand them their registers.
"""

import tkpy as tk


@tk.lcf(stages=3, super_m=8, consumer_warps=8, producer_warps=4, consumer_groups=2)
def gemm(
    a: tk.Global["M K", tk.bf16],
    b: tk.Global["K N", tk.bf16],
    c: tk.Out["M N", tk.bf16],
    *,
    rows: int = 128,
    cols: int = 256,
    depth: int = 64,
):
    i, j = tk.tasks(tk.cdiv("M", rows), tk.cdiv("N", cols))

    def setup():
        return tk.zeros(rows, cols)

    def load(k):
        return tk.load(a, (i, k), (rows, depth)), tk.load(b, (k, j), (depth, cols))

    def compute(k, acc, at, bt):
        return tk.mma_AB(at, bt, acc)

    def finish(acc):
        tk.store(c, acc, (i, j))

    tk.run(tk.cdiv("K", depth), setup, load, compute, finish)


if __name__ == "__main__":
    from ladder import show

    show(gemm)

"""Step 7: loads run ahead. The template lcf has hooks, and a ring of stages between them.

``load`` fills a stage as soon as ``compute`` has emptied it, so that the products do not wait for
memory. On a GPU some warps do nothing but load, where bases and strides are multiples of 16 bytes
through descriptors, one instruction a tile. Nobody counts arrivals or phases: they follow from what
the hooks take and return.
"""

import tkpy as tk


@tk.lcf(stages=4, super_m=8, consumer_warps=8, persistent=False)
def gemm(
    a: tk.Global["M K", tk.bf16],
    b: tk.Global["K N", tk.bf16],
    c: tk.Out["M N", tk.bf16],
    *,
    rows: int = 128,
    cols: int = 128,
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

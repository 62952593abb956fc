"""Templates for test_template.py: right ones, and one for every mistake that is refused."""

# ruff: noqa: F841, F823, B007  two of the mistakes, and an index that hooks alone read

import tkpy as tk


def staged(stages):
    @tk.lcf(stages=stages, super_m=2)
    def gemm(a: tk.Global["M K"], b: tk.Global["K N"], c: tk.Out["M N"], *, side: int = 32):
        i, j = tk.tasks(tk.cdiv("M", side), tk.cdiv("N", side))

        def setup():
            return tk.zeros(side, side)

        def load(k):
            return tk.load(a, (i, k), (side, side)), tk.load(b, (k, j), (side, side))

        def compute(k, acc, at, bt):
            return tk.mma_AB(at, bt, acc)

        def finish(acc):
            tk.store(c, acc, (i, j))

        tk.run(tk.cdiv("K", side), setup, load, compute, finish)

    return gemm


gemm = staged(4)


@tk.kernel(num_warps=8, num_stages=4)
def plain(a: tk.Global["M K"], b: tk.Global["K N"], c: tk.Out["M N"], *, side: int = 32):
    i, j = tk.grid(tk.cdiv("M", side), tk.cdiv("N", side))
    acc = tk.zeros(side, side)
    for k in tk.range(tk.cdiv("K", side)):
        at = tk.load(a, (i, k), (side, side))
        bt = tk.load(b, (k, j), (side, side))
        acc = tk.mma_AB(at, bt, acc)
    tk.store(c, acc, (i, j))


@tk.lcsf(stages=2, output_stages=2)
def scaled(x: tk.Global["M N"], y: tk.Out["M N"], total: tk.Out["M"]):
    i = tk.tasks(tk.cdiv("M", 16))

    def setup():
        return tk.zeros(16)

    def load(k):
        return tk.load(x, (i, k), (16, 32))

    def compute(k, sums, xt):
        return sums + tk.row_sum(xt), xt * 2.0

    def store(k, yt):
        tk.store(y, yt, (i, k))

    def finish(sums):
        tk.store(total, sums, i)

    tk.run(tk.cdiv("N", 32), setup, load, compute, store, finish)


@tk.lcf
def rated(x: tk.Global["M N"], w: tk.Global["N"], y: tk.Out["M"]):
    i = tk.tasks(tk.cdiv("M", 16))

    def setup():
        return tk.zeros(16)

    @tk.ring(stages=3)
    def load_x(k):
        return tk.load(x, (i, k), (16, 16))

    @tk.ring(stages=2, every=2)
    def load_w(k):
        return tk.load(w, k, 32)

    def compute(k, acc, xt, wt):
        return acc + tk.row_sum(xt) * tk.sum(wt)

    def finish(acc):
        tk.store(y, acc, i)

    tk.run(tk.cdiv("N", 16), setup, (load_x, load_w), compute, finish)


@tk.lcf
def roles(q: tk.Global["N D"], k: tk.Global["M D"], v: tk.Global["M D"], o: tk.Out["N D"]):
    i = tk.tasks(tk.cdiv("N", 16))
    qt = tk.load(q, (i, 0), (16, "D"))

    @tk.ring(stages=2)
    def load_k(j):
        return tk.load(k, (j, 0), (16, "D"))

    @tk.ring(stages=3)
    def load_v(j):
        return tk.load(v, (j, 0), (16, "D"))

    @tk.role(reads=load_k, warps=4)
    def score(j, kt):
        return tk.mma_ABt(qt, kt)

    def start():
        return tk.neg_infty(16), tk.zeros(16)

    @tk.role(reads=score, setup=start, warps=4, stages=2)
    def softmax(j, top, total, s):
        new = tk.row_max(s, top)
        p, decay = tk.exp(s - new), tk.exp(top - new)
        return new, total * decay + tk.row_sum(p), p, decay

    def nothing():
        return tk.zeros(16, "D")

    @tk.role(reads=(softmax, load_v), setup=nothing)
    def update(j, acc, p, decay, vt):
        return tk.mma_AB(p, vt, acc * decay)

    def finish(top, total, acc):
        tk.store(o, acc / total, (i, 0))

    tk.run(tk.cdiv("M", 16), None, (load_k, load_v), (score, softmax, update), finish)


def nested(runs=1, finish=True):
    """The largest entry of every row of a b; ``finish``: only within a loop may it be left out."""

    @tk.lcf(stages=2)
    def largest(a: tk.Global["M K"], b: tk.Global["K N"], most: tk.Out["M"]):
        i = tk.tasks(tk.cdiv("M", 16))

        def setup():
            return tk.zeros(16, 16)

        def load(k):
            return tk.load(a, (i, k), (16, 16)), tk.load(b, (k, j), (16, 16))

        def compute(k, acc, at, bt):
            return tk.mma_AB(at, bt, acc)

        top = tk.neg_infty(16)
        for j in tk.range(tk.cdiv("N", 16)):
            for _ in range(runs):
                acc = tk.run(tk.cdiv("K", 16), setup, load, compute)
            top = tk.row_max(acc, top)
        tk.store(most, top, i)

    @tk.lcf
    def alone(a: tk.Global["M K"], most: tk.Out["M"]):
        i = tk.tasks(tk.cdiv("M", 16))

        def setup():
            return tk.neg_infty(16)

        def load(k):
            return tk.load(a, (i, k), (16, 16))

        def compute(k, top, at):
            return tk.row_max(at, top)

        top = tk.run(tk.cdiv("K", 16), setup, load, compute)
        tk.store(most, top, i)

    return largest if finish else alone


@tk.kernel
def helped(x: tk.Global["M N"], y: tk.Out["M N"]):
    i, j = tk.grid(tk.cdiv("M", 16), tk.cdiv("N", 16))
    factor = 4.0

    def line(t):
        scaled = t * factor
        return scaled + 1.0

    tk.store(y, line(tk.load(x, (i, j), (16, 16))), (i, j))


@tk.kernel
def untemplated(x: tk.Global["M N"], y: tk.Out["M N"]):
    i = tk.grid(tk.cdiv("M", 16))

    def load(k): return tk.load(x, (i, k), (16, 16))  # fmt: skip

    tk.run(tk.cdiv("N", 16), None, load, load, load)


@tk.lcf
def idle(x: tk.Global["M N"], y: tk.Out["M N"]):
    i, j = tk.tasks(tk.cdiv("M", 16), tk.cdiv("N", 16))
    tk.store(y, tk.load(x, (i, j), (16, 16)), (i, j))


# fmt: off
@tk.lcf
def no_finish(x: tk.Global["M N"], y: tk.Out["M"]):
    i = tk.tasks(tk.cdiv("M", 16))
    def setup(): return tk.zeros(16)
    def load(k): return tk.load(x, (i, k), (16, 16))
    def compute(k, acc, xt): return acc + tk.row_sum(xt)
    tk.run(tk.cdiv("N", 16), setup, load, compute)  # no finish


@tk.lcf
def too_few(x: tk.Global["M N"], y: tk.Out["M"]):
    i = tk.tasks(tk.cdiv("M", 16))
    def setup(): return tk.zeros(16), tk.zeros(16)
    def load(k): return tk.load(x, (i, k), (16, 16))
    def compute(k, acc, more, xt): return acc + tk.row_sum(xt)  # one of two
    def finish(acc, more): tk.store(y, acc, i)
    tk.run(tk.cdiv("N", 16), setup, load, compute, finish)


@tk.lcf
def too_many(x: tk.Global["M N"], y: tk.Out["M"]):
    i = tk.tasks(tk.cdiv("M", 16))
    def setup(): return tk.zeros(16)
    def load(k): return tk.load(x, (i, k), (16, 16))
    def compute(k, acc, xt): return acc + tk.row_sum(xt), xt  # an output in lcf
    def finish(acc): tk.store(y, acc, i)
    tk.run(tk.cdiv("N", 16), setup, load, compute, finish)


@tk.lcf
def wrong_parameters(x: tk.Global["M N"], y: tk.Out["M"]):
    i = tk.tasks(tk.cdiv("M", 16))
    def setup(): return tk.zeros(16)
    def load(k): return tk.load(x, (i, k), (16, 16)), tk.load(x, (i, k), (16, 32))
    def compute(k, acc, xt): return acc + tk.row_sum(xt)  # takes one input
    def finish(acc): tk.store(y, acc, i)
    tk.run(tk.cdiv("N", 16), setup, load, compute, finish)


@tk.lcf
def compute_stores(x: tk.Global["M N"], y: tk.Out["M N"]):
    i = tk.tasks(tk.cdiv("M", 16))
    def load(k): return tk.load(x, (i, k), (16, 16))
    def compute(k, xt): tk.store(y, xt, (i, k))  # stores
    def finish(): pass
    tk.run(tk.cdiv("N", 16), None, load, compute, finish)


@tk.lcsf
def load_reads_output(x: tk.Global["M N"], y: tk.Out["M N"]):
    i = tk.tasks(tk.cdiv("M", 16))
    def load(k): return tk.load(y, (i, k), (16, 16))  # reads y
    def compute(k, xt): return xt
    def store(k, yt): tk.store(y, yt, (i, k))
    tk.run(tk.cdiv("N", 16), None, load, compute, store)


@tk.lcsf
def load_reads_stored(x: tk.InOut["M N"], y: tk.Out["M N"]):
    i = tk.tasks(tk.cdiv("M", 16))
    def load(k): return tk.load(x, (i, k), (16, 16))  # reads x
    def compute(k, xt): return xt, xt
    def store(k, one, two):
        tk.store(x, one, (i, k + 1))
        tk.store(y, two, (i, k))
    tk.run(tk.cdiv("N", 16), None, load, compute, store)


@tk.lcsf
def nothing_to_store(x: tk.Global["M N"], y: tk.Out["M N"]):
    i = tk.tasks(tk.cdiv("M", 16))
    def setup(): return tk.zeros(16)
    def load(k): return tk.load(x, (i, k), (16, 16))
    def compute(k, acc, xt): return acc + tk.row_sum(xt)  # no output
    def store(k, yt): tk.store(y, yt, (i, k))
    tk.run(tk.cdiv("N", 16), setup, load, compute, store)


@tk.lcf
def load_of_nothing(x: tk.Global["M N"], y: tk.Out["M"]):
    i = tk.tasks(tk.cdiv("M", 16))
    def setup(): return tk.zeros(16)
    def load(k): xt = tk.load(x, (i, k), (16, 16))  # no return
    def compute(k, acc): return acc
    def finish(acc): tk.store(y, acc, i)
    tk.run(tk.cdiv("N", 16), setup, load, compute, finish)


@tk.lcf
def changes_type(x: tk.Global["M N"], y: tk.Out["M"]):
    i = tk.tasks(tk.cdiv("M", 16))
    def setup(): return tk.zeros(16)
    def load(k): return tk.load(x, (i, k), (16, 16))
    def compute(k, acc, xt): return xt
    def finish(acc): tk.store(y, acc, i)
    tk.run(tk.cdiv("N", 16), setup, load, compute, finish)  # acc changes


@tk.lcf
def assigns_outer(x: tk.Global["M N"], y: tk.Out["M"]):
    i = tk.tasks(tk.cdiv("M", 16))
    total = tk.zeros(16)
    def load(k): return tk.load(x, (i, k), (16, 16))
    def compute(k, xt):
        total = total + tk.row_sum(xt)  # not the outer one
    def finish(): tk.store(y, total, i)
    tk.run(tk.cdiv("N", 16), None, load, compute, finish)


@tk.lcf
def unread_role(x: tk.Global["M N"], y: tk.Out["M"]):
    i = tk.tasks(tk.cdiv("M", 16))
    def load(k): return tk.load(x, (i, k), (16, 16))
    def one(k, xt): return tk.row_sum(xt)  # says not what it reads
    def two(k, s): return s
    def finish(): pass
    tk.run(tk.cdiv("N", 16), None, load, (one, two), finish)
# fmt: on


#: Kernel, words of its message, and the comment on the line that the message must name.
WRONG = {
    "no_finish": (no_finish, ["the hook finish of tk.lcf is missing"], "# no finish"),
    "too_few": (too_few, ["compute returns 1 values", "acc, more"], "# one of two"),
    "too_many": (too_many, ["compute returns 2 values", "its state has 1"], "# an output in lcf"),
    "wrong_parameters": (wrong_parameters, ["compute takes 3 values", "given 4"], "# takes one"),
    "compute_stores": (compute_stores, ["compute writes y"], "# stores"),
    "load_reads_output": (load_reads_output, ["y is an output"], "# reads y"),
    "load_reads_stored": (load_reads_stored, ["load reads x, which store writes"], "# reads x"),
    "nothing_to_store": (nothing_to_store, ["compute returns nothing to store"], "# no output"),
    "load_of_nothing": (load_of_nothing, ["load returns nothing"], "# no return"),
    "changes_type": (changes_type, ["acc enters the loop as"], "# acc changes"),
    "assigns_outer": (assigns_outer, ["total is used before it is defined"], "# not the outer"),
    "unread_role": (unread_role, ["one is one of 2 roles"], "# says not"),
}

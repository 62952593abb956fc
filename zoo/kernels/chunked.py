"""What kernels that work a sequence off in chunks share: the state that they carry, and its use."""

import tkpy as tk


@tk.function
def begin(state, coord, *shape):
    """The state to go on from: zeros where none is given."""
    return tk.zeros(*shape) if state is None else tk.load(state, coord, shape)


@tk.function
def end(state, x, coord):
    """Writes the state after, where it is asked for."""
    if state is not None:
        tk.store(state, x, coord)


@tk.function
def operand(x, like):
    """``x`` as an operand beside ``like``: bf16 beside bf16, else fp32.

    What a kernel makes of fp16 inputs may be too large for fp16; tf32 has the same mantissa.
    """
    return tk.cast(x, tk.bf16 if like.dtype == tk.bf16 else tk.f32)


@tk.function
def advance(q, k, v, within, before, after, whole, state):
    """y of a chunk with decay, and the state after it.

    y[i] = before[i] q[i] state + sum over j of within[i, j] (q[i] . k[j]) v[j], and
    state = whole state + sum over j of after[j] k[j] v[j]^T.
    """
    precision = "tf32" if v.dtype == tk.f16 else "ieee"
    weights = operand(tk.mma_ABt(q, k) * within, v)
    late = operand(tk.cast(k, tk.f32) * after, v)
    q, v = operand(q, v), operand(v, v)
    y = tk.mm_AB(q, operand(state, v), precision=precision) * before
    y = tk.mma_AB(weights, v, y, precision=precision)
    return y, tk.mma_AtB(late, v, state * whole, precision=precision)

"""Words of the templates ``tk.lcf`` and ``tk.lcsf``: tasks, the run of the hooks, rings, roles."""

from __future__ import annotations

from codegen.ops.base import IRError
from tkpy.builder import current
from tkpy.template.knobs import MOST_STAGES, Ring, Role
from tkpy.vocabulary.index import grid
from tkpy.vocabulary.verb import verb

__all__ = ["ring", "role", "run", "tasks"]


@verb
def tasks(*counts):
    """This task's position along one to three counts of tasks: ThunderKittens' ``common_setup``.

    ``i, j = tk.tasks(tk.cdiv("M", rows), tk.cdiv("N", cols))``. On a CPU every task is a program.
    On a GPU a persistent template has as many programs as the device holds, and each walks over
    tasks, ``super_m`` rows of the last two counts together.
    """
    b = current()
    out = grid.lower(*counts)
    b.fn.tasked = True
    return out


@verb
def run(count, setup, load, compute, *rest, store=None, finish=None):
    """Runs a template's hooks, nested functions of the kernel, over ``count`` iterations.

    ``tk.run(count, setup, load, compute, finish)`` in ``tk.lcf``, and
    ``tk.run(count, setup, load, compute, store, finish)`` in ``tk.lcsf``:

        state = setup()                       or None, for no state
        inputs = load(k)                      or several hooks, each with a ring of its own
        state, outputs = compute(k, *state, *inputs)       or several, one a ``tk.role``
        store(k, *outputs)                    lcsf only
        finish(*state)                        or None in lcsf

    Within a loop of the kernel, as over the columns of a product each of which is one run,
    ``finish`` is left out: ``tk.run`` then gives the state after the last iteration.

    ``count`` is a number of iterations or a ``tk.range``. A hook returns one value or a tuple.
    Run in this order the hooks define the answer; how many stages lie between them never changes
    a bit. Hooks are pure: ``load`` only reads inputs, and ``store`` and ``finish`` alone write.

    Raises CompileError, naming the hook and its line, for one that is missing, takes or returns
    another number of values, writes where it may not, or reads what the run writes.
    """
    return current().walker.pipeline(count, setup, load, compute, rest, store, finish)


@verb
def ring(*, stages: int | None = None, every: int = 1):
    """Decorator of a load hook: a ring of its own depth, filled once for ``every`` iterations.

    ``load(k)`` then counts its own fills: ``k`` is the iteration divided by ``every``.
    """
    for name, value in (("stages", stages), ("every", every)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
            raise IRError(f"{name} is {value!r}, not a number")
    if stages is not None and not 1 <= stages <= MOST_STAGES:
        raise IRError(f"a ring has 1 to {MOST_STAGES} stages, not {stages}")
    if every < 1:
        raise IRError(f"every is {every}; a load serves 1 or more iterations")
    return Ring(stages, every)


@verb
def role(*, reads, setup=None, warps: int | None = None, stages: int = 1):
    """Decorator of a compute hook, for more roles than one: each runs in warps of its own.

    ``reads`` are the hooks whose values it takes, in order, after the iteration and its own state,
    which ``setup`` starts. What it returns beyond its state goes to the roles that read it,
    through a ring of ``stages``. ``finish`` takes the states of all roles, in their order.
    """
    reads = reads if isinstance(reads, tuple) else (reads,)
    if not isinstance(stages, int) or not 1 <= stages <= MOST_STAGES:
        raise IRError(f"a ring has 1 to {MOST_STAGES} stages, not {stages!r}")
    return Role(reads, setup, warps, stages)

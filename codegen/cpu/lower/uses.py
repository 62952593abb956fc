"""Who uses a value, where it ends up, and whether memory may change in between."""

from __future__ import annotations

from collections import defaultdict

from codegen.cpu.ttir import Block, Func, Op

# Ops that may write memory, or let another thread's writes be seen.
WRITES = ("tt.store", "tt.atomic_rmw", "tt.atomic_cas", "tt.call", "tt.descriptor_store",
          "tt.descriptor_reduce", "tt.descriptor_scatter", "ttg.barrier", "gpu.barrier",
          "tt.assert", "tt.print", "tt.elementwise_inline_asm")  # fmt: skip
LAZY_SHAPES = ("tt.expand_dims", "tt.reshape", "tt.trans", "tt.split", "tt.join", "tt.cat")


class Uses:
    """Def-use chains of one function, whose values are first made unique by name.

    Printed names may repeat in sibling regions; a repeated one gets a suffix.
    """

    def __init__(self, func: Func) -> None:
        self.uses: dict[str, list[Op]] = defaultdict(list)
        self.defs: dict[str, Op | Block] = {}
        self.taken: dict[str, int] = {}
        scope: dict[str, str] = {}
        for block in func.body.blocks:
            block.args = [self._fresh(a, scope, block) for a in block.args]
        for block in func.body.blocks:
            self._walk(block, scope)

    def _fresh(self, name: str, scope: dict[str, str], owner) -> str:
        new = name
        while new in self.taken:  # a name with a suffix may have been given already
            self.taken[name] += 1
            new = f"{name}@{self.taken[name]}"
        self.taken[new] = 0
        scope[name] = new
        self.defs[new] = owner
        return new

    def _walk(self, block: Block, scope: dict[str, str]) -> None:
        for op in block.ops:
            op.operands = [scope[v] for v in op.operands]
            op.successors = [(label, [scope[v] for v in vs]) for label, vs in op.successors]
            for v in {*op.operands, *(v for _, vs in op.successors for v in vs)}:
                self.uses[v].append(op)
            inner = dict(scope)
            op.binds = [self._fresh(v, inner, op) for v in op.binds]
            for region in op.regions:
                local = dict(inner)
                for b in region.blocks:
                    b.args = [self._fresh(a, local, b) for a in b.args]
                for b in region.blocks:
                    self._walk(b, local)
            op.results = [self._fresh(v, scope, op) for v in op.results]

    def of(self, name: str) -> list[Op]:
        return self.uses.get(name, [])

    def terminal(self, name: str, block: Block, is_lazy) -> Op | None:
        """The op at which a lazily passed value is finally evaluated, if it is one op here."""
        users = self.of(name)
        if len(users) != 1 or users[0].block is not block:
            return None
        op = users[0]
        if not is_lazy(op) or len(op.results) != 1 or len(self.of(op.results[0])) != 1:
            return op
        return self.terminal(op.results[0], block, is_lazy) or op

    def clear_between(self, block: Block, start: int, stop: int) -> bool:
        """No op strictly between two positions of a block writes memory."""
        return not any(writes(op) for op in block.ops[start + 1 : stop])

    def root(self, name: str) -> str | None:
        """The function argument that a pointer was computed from."""
        for _ in range(1000):
            owner = self.defs.get(name)
            if isinstance(owner, Block):
                return name if owner.parent is None else None
            if owner is None:
                return None
            if name in owner.binds:
                if owner.name != "scf.for":
                    return None
                k = owner.binds.index(name)
                if k == 0:
                    return None
                name = owner.operands[2 + k]
            elif owner.name == "scf.for":
                name = owner.operands[3 + owner.results.index(name)]
            elif owner.name in ("tt.addptr", "tt.splat", "tt.broadcast", "tt.expand_dims",
                                "tt.reshape", "tt.bitcast"):  # fmt: skip
                name = owner.operands[0]
            else:
                return None
        return None


def writes(op: Op) -> bool:
    """Does an op, or anything in its regions, write memory?"""
    if op.name in WRITES:
        return True
    return any(writes(o) for r in op.regions for b in r.blocks for o in b.ops)

"""The operations of tile IR, one row each; see ``codegen.ops.base`` for what a row holds."""

from __future__ import annotations

from codegen.ops import (
    adjoint,
    associative,
    control,
    convert,
    create,
    elementwise,
    integer,
    mask,
    memory,
    mma,
    order,
    pairs,
    random,
    reduce,
    structure,
)
from codegen.ops.base import IRError, Need, OpDef

TABLE: dict[str, OpDef] = {
    definition.kind: definition
    for definition in (
        create.CONST,
        create.FULL,
        create.SPLAT,
        create.IOTA,
        create.ARGUMENT,
        create.INDEX,
        create.COND,
        *elementwise.ROWS,
        *integer.ROWS,
        convert.CAST,
        memory.LOAD,
        memory.STORE,
        memory.STORE_ADD,
        memory.STORE_MIN,
        memory.STORE_MAX,
        memory.GATHER,
        memory.SCATTER,
        memory.SCATTER_ADD,
        mma.MMA,
        random.RANDOM,
        *order.ROWS,
        reduce.REDUCE,
        reduce.ARGREDUCE,
        reduce.SCAN,
        associative.ASSOCIATIVE_SCAN,
        structure.TRANSPOSE,
        structure.SUBTILE,
        structure.CONCAT,
        structure.BROADCAST,
        structure.ROW_OUTER,
        structure.RETYPE,
        structure.FILL_DEAD,
        *adjoint.ROWS,
        *pairs.ROWS,
        mask.KEEP,
        control.FOR,
        control.IF,
        control.YIELD,
    )
}

__all__ = ["TABLE", "IRError", "Need", "OpDef"]

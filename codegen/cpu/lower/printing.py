"""tt.print: a line per element on the process's standard output, written by the C library.

``pid (x, y, z) idx (i, j) prefix: value``, with the number of the operand where there are several.
Lines of one program keep their order and are never torn; programs on other threads write theirs in
between.
"""

from __future__ import annotations

from codegen.cpu import floats
from codegen.cpu.emit import INT_BITS, LLVM, Emit, Val
from codegen.cpu.lower.tensor import Tensor, loops, nest
from codegen.cpu.ttir import BYTES, Op


def _text(e: Emit, text: str) -> str:
    """A constant C string; gives its name."""
    data = text.encode() + b"\0"
    name = f"@text{len(e.globals)}"
    body = ", ".join(f"i8 {b}" for b in data)
    e.globals[name] = f"{name} = private constant [{len(data)} x i8] [{body}]"
    return name


def _literal(op: Op) -> str:
    """The prefix, with MLIR's escapes undone."""
    word = next((w for w in op.words if w.startswith('"')), '""')[1:-1]
    out, k = "", 0
    while k < len(word):
        if word[k] == "\\" and word[k + 1] in '\\"':
            out, k = out + word[k + 1], k + 2
        elif word[k] == "\\":
            out, k = out + chr(int(word[k + 1 : k + 3], 16)), k + 3
        else:
            out, k = out + word[k], k + 1
    return out


def _value(e: Emit, v: Val, base16: bool, signed: bool) -> tuple[str, str]:
    """(conversion of printf, LLVM argument) of a scalar."""
    if v.ty == "ptr":
        return "%p", f"ptr {e.operand(v)}"
    if v.ty in INT_BITS:
        wide = e.extend(v, "i64", signed and v.ty != "i1" and not base16)
        kind = f"0x%0{2 * BYTES[v.ty]}llx" if base16 else "%lld" if signed else "%llu"
        return kind, f"i64 {e.operand(wide)}"
    if base16:
        raw = {1: "i8", 2: "i16", 4: "i32", 8: "i64"}[BYTES[v.ty]]
        bits = v if LLVM[v.ty] == raw else e.cast("bitcast", v, raw)
        wide = e.extend(Val(raw, bits.kind, bits.x), "i64", signed=False)
        return f"0x%0{2 * BYTES[v.ty]}llx", f"i64 {e.operand(wide)}"
    return "%g", f"double {e.operand(floats.convert(e, v, 'f64'))}"


def print_(low, op: Op) -> None:
    """tt.print of any number of scalars and tensors."""
    e = low.e
    e.declared["printf"] = "declare i32 @printf(ptr, ...)"
    e.declared["fflush"] = "declare i32 @fflush(ptr)"
    prefix = _literal(op).replace("%", "%%")
    base16 = op.attr_bool("hex")
    signs = op.attr_ints("isSigned") if ":" in op.attrs.get("isSigned", "") else []
    pids = ", ".join(f"i32 %pid.{axis}" for axis in "xyz")

    def line(rest: str, args: list[str]) -> None:
        name = _text(e, f"pid (%d, %d, %d){rest}\n")
        e.line(
            f"{e.name()} = call i32 (ptr, ...) @printf({', '.join([f'ptr {name}', pids, *args])})"
        )

    if not op.operands:
        line(prefix, [])
    for k, operand in enumerate(op.operands):
        which = f"(operand {k}) " if len(op.operands) > 1 else ""
        signed = not signs or bool(signs[k])
        value = low.env[operand]
        if not isinstance(value, Tensor):
            kind, arg = _value(e, value, base16, signed)
            line(f" idx (){prefix}{which}{kind}", [arg])
            continue
        with nest(e) as g:

            def body(idx, value=value, which=which, signed=signed) -> None:
                kind, arg = _value(e, g.at(value, idx), base16, signed)
                at = [f"i32 {e.operand(i)}" for i in idx]
                line(f" idx ({', '.join(['%d'] * len(at))}){prefix}{which}{kind}", [*at, arg])

            loops(g, value.shape, None, 1, body)
    e.line(f"{e.name()} = call i32 @fflush(ptr null)")


OPS = {"tt.print": print_}

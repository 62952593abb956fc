"""Code lines of the zoo's kernels, forward only, beside flash-linear-attention's Triton.

A line counts if it holds code: no comments, docstrings or blanks; the source is formatted by ruff
at 100 columns; decorator and signature count. A helper or constant of the kernel's module counts
with the kernel, unless two kernels use it: those are in a column of their own.
"""

from __future__ import annotations

import ast
import inspect
import io
import sys
import tokenize
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

import zoo

_NO_CODE = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
    tokenize.ENDMARKER, tokenize.ENCODING,
}  # fmt: skip

#: What is compared: kernels, the most lines they may have together, and FLA's Triton (its host
#: code comes on top of that).
ROWS: dict[str, tuple[tuple[str, ...], int | None, int | None]] = {
    "attention": (("attention",), 60, 190),
    "BASED, chunked": (("based",), 50, 68),
    "BASED, one token": (("based_decode",), None, None),
    "BASED, no state": (("taylor_quadratic", "taylor_block"), None, None),
    "attention, one token": (("attention_decode",), None, None),
    "linear attention": (("linear_attention",), None, None),
    "Mamba-2": (("mamba2",), None, None),
    "Hedgehog": (("hedgehog",), None, None),
    "linear cross entropy": (("linear_cross_entropy",), None, None),
    "Flux": (("flux_gelu", "flux_gate"), None, None),
    "layernorm and rmsnorm": (("layernorm", "rmsnorm"), 35, 112),
    "rotary": (("rotary",), 20, 77),
    "short convolution": (("short_conv",), 36, 131),
    "SwiGLU": (("swiglu",), None, None),
    "FFT convolution": (("fftconv",), None, None),
    "gemm": (("gemm",), None, None),
    "softmax": (("softmax",), None, None),
    "cross entropy": (("cross_entropy",), None, None),
    "vector quantisation": (
        ("nearest_code", "vector_quantize", "vector_quantize_gradient"), None, None,
    ),
    "codebooks": (("code_sums", "ema_codebook"), None, None),
}  # fmt: skip


@dataclass(frozen=True)
class Count:
    """Lines of some kernels with their own helpers, and of helpers that other kernels use too."""

    own: int
    shared: int


def count(names: tuple[str, ...]) -> Count:
    """The lines of the zoo's kernels ``names``, all of one module."""
    kernels = zoo.kernels()
    module = sys.modules[kernels[names[0]].fn.__module__]
    text = inspect.getsource(module)
    definitions = _definitions(ast.parse(text))
    users: dict[str, set[str]] = {}
    for kernel in (n for n, k in kernels.items() if k.fn.__module__ == module.__name__):
        for used in _needs(kernel, definitions):
            users.setdefault(used, set()).add(kernel)
    code = _lines_with_code(text)
    sizes = {n: len(code & _span(node)) for n, node in definitions.items()}
    mine = {used for used, by in users.items() if by & set(names)}
    own = {used for used in mine if len(users[used]) == 1}
    return Count(sum(sizes[n] for n in own), sum(sizes[n] for n in mine - own))


def _definitions(tree: ast.Module) -> dict[str, ast.stmt]:
    """Top-level functions and constants by name."""
    found: dict[str, ast.stmt] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                found |= {n.id: node for n in ast.walk(target) if isinstance(n, ast.Name)}
    return found


def _needs(name: str, definitions: dict[str, ast.stmt]) -> set[str]:
    """``name`` and the definitions that its code reads, at any remove; an assignment once."""
    found, open_ = set(), [name]
    while open_:
        current = open_.pop()
        if any(definitions[current] is definitions[other] for other in found):
            continue
        found.add(current)
        for node in ast.walk(definitions[current]):
            if isinstance(node, ast.Name) and node.id in definitions:
                open_.append(node.id)
    return found


def _span(node: ast.stmt) -> set[int]:
    """The lines of a definition, its decorators included and its docstring not."""
    first = min([node.lineno, *(d.lineno for d in getattr(node, "decorator_list", ()))])
    lines = set(range(first, (node.end_lineno or first) + 1))
    if isinstance(node, ast.FunctionDef) and ast.get_docstring(node) is not None:
        text = node.body[0]
        lines -= set(range(text.lineno, (text.end_lineno or text.lineno) + 1))
    return lines


def _lines_with_code(text: str) -> set[int]:
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _NO_CODE:
            lines |= set(range(token.start[0], token.end[0] + 1))
    return lines


def main() -> None:
    """Prints the table."""
    table = Table(title="code lines, forward only")
    for column in ("kernel", "lines", "at most", "FLA, Triton only", "shared helpers"):
        table.add_column(column, justify="left" if column == "kernel" else "right")
    for title, (names, limit, fla) in ROWS.items():
        lines = count(names)
        cells = (str(lines.own), *("" if n is None else str(n) for n in (limit, fla)))
        table.add_row(title, *cells, str(lines.shared) if lines.shared else "")
    Console().print(table)


if __name__ == "__main__":
    main()

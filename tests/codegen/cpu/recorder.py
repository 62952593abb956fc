"""A pytest plugin that notes which ops of TTIR each test had compiled: ``-p recorder``.

Written as JSON, test -> ops, to the file that ``TKPY_OPS_FILE`` names. Kernels that come out of
Triton's cache are not compiled and not seen, so give it an empty ``TRITON_CACHE_DIR``.
"""

import json
import os

import pytest

seen: dict[str, set[str]] = {}


def _walk(block, found: set[str]) -> None:
    for op in block.ops:
        found.add(op.name)
        for region in op.regions:
            for inner in region.blocks:
                _walk(inner, found)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    from codegen.cpu import parser

    found = seen.setdefault(f"{item.path.stem}.{item.originalname}", set())
    plain = parser.parse

    def parse(text):
        module = plain(text)
        for func in module.funcs.values():
            for block in func.body.blocks:
                _walk(block, found)
        return module

    parser.parse = parse
    try:
        return (yield)
    finally:
        parser.parse = plain


def pytest_sessionfinish(session):
    with open(os.environ["TKPY_OPS_FILE"], "w") as out:
        json.dump({test: sorted(ops) for test, ops in seen.items()}, out)

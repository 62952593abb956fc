"""docs/thunderkittens.md names what exists, and says what to write in every row."""

import re
from pathlib import Path

import tkpy as tk

ROOT = Path(__file__).parents[2]
TABLE = (ROOT / "docs" / "thunderkittens.md").read_text()


def test_every_name_on_the_page_exists():
    names = set(re.findall(r"\btk\.(\w+)", TABLE))
    assert len(names) > 120
    assert [n for n in sorted(names) if not hasattr(tk, n)] == []


def test_every_file_on_the_page_exists():
    for path in re.findall(r"`(zoo/[\w/.]+)`", TABLE):
        assert (ROOT / path).exists(), path


def test_no_cell_is_empty_that_says_what_to_write():
    rows = [line for line in TABLE.splitlines() if line.startswith("| ")]
    for line in rows:
        cells = re.split(r"(?<!\\)\|", line.strip("|"))
        assert all(c.strip() for c in cells[:2]), line

"""docs/thunderkittens.md names what exists, and leaves no verb of the language out."""

import re
from pathlib import Path

import tkpy as tk
from tkpy.vocabulary import VERBS

ROOT = Path(__file__).parents[2]
TABLE = (ROOT / "docs" / "thunderkittens.md").read_text()
#: Verbs that the page has no word for: places and sizes, which ThunderKittens writes as C++.
PLACES = {"grid", "range", "cdiv", "dim", "static", "offsets"}


def test_every_name_on_the_page_exists():
    names = set(re.findall(r"\btk\.(\w+)", TABLE))
    assert len(names) > 120
    assert [n for n in sorted(names) if not hasattr(tk, n)] == []


def test_every_verb_is_on_the_page():
    names = set(re.findall(r"\btk\.(\w+)", TABLE))
    aliases = {n for n, v in VERBS.items() if getattr(tk, n, None) is not v}
    assert sorted(set(VERBS) - names - PLACES - aliases) == []


def test_every_file_on_the_page_exists():
    for path in re.findall(r"`(zoo/[\w/.]+)`", TABLE):
        assert (ROOT / path).exists(), path


def test_no_cell_is_empty_that_says_what_to_write():
    rows = [line for line in TABLE.splitlines() if line.startswith("| ")]
    for line in rows:
        cells = re.split(r"(?<!\\)\|", line.strip("|"))
        assert all(c.strip() for c in cells[:2]), line

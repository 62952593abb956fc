"""The table of systems: every kernel has its verbs, every verb is one of the language's."""

import re
from pathlib import Path

import pytest

from tkpy.vocabulary import VERBS

ROOT = Path(__file__).parent.parent
LINES = (ROOT / "docs" / "systems.md").read_text().splitlines()
HEAD, _, *ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")] for line in LINES if line.startswith("|")
]
SYSTEMS = {
    "Aioli", "BASED", "Cookbook", "JRT", "Large Language Monkeys", "LoLCATs", "M2-BERT", "MAD",
    "Precision scaling laws", "Progress counts", "Prospectors", "RTF", "RedPajama",
    "Rotation-trick VQ-VAE", "Smoothie", "ThunderKittens",
}  # fmt: skip


def test_every_system_is_there_and_no_kernel_twice():
    assert {row[0] for row in ROWS} == SYSTEMS
    names = [tuple(row[:2]) for row in ROWS]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]}: {row[1]}")
def test_no_cell_is_empty_and_every_verb_exists(row):
    assert len(row) == len(HEAD) and all(row)
    verbs = re.findall(r"`([^`]+)`", row[2])
    assert verbs and not set(verbs) - set(VERBS)
    assert not re.sub(r"`[^`]+`", "", row[2]).strip(), "verbs only"
    for path in re.findall(r"`((?:zoo|examples)/[^`]+)`", row[3]):
        assert (ROOT / path).exists(), path

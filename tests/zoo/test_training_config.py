"""Presets to JSON and back, from the command line, and what is refused with which words."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_system import system

from zoo.training import ConfigError, Preset, Train, from_json, override, to_json


@dataclass(frozen=True)
class Inner:
    side: int = 2


@dataclass(frozen=True)
class Sizes:
    count: int
    share: float = 0.5
    on: bool = False
    word: str = "a"
    kind: Literal["conv", "linear"] = "conv"
    layers: tuple[str, ...] = ()
    pair: tuple[int, float] = (1, 2.0)
    limit: int | None = None
    inner: Inner = Inner()
    table: dict[str, int] | None = None


finite = st.floats(allow_nan=False, allow_infinity=False)
sizes = st.builds(
    Sizes,
    count=st.integers(),
    share=finite,
    on=st.booleans(),
    word=st.text(),
    kind=st.sampled_from(["conv", "linear"]),
    layers=st.lists(st.text(), max_size=3).map(tuple),
    pair=st.tuples(st.integers(), finite),
    limit=st.none() | st.integers(),
    inner=st.builds(Inner, st.integers()),
    table=st.none() | st.dictionaries(st.text(), st.integers(), max_size=2),
)


@settings(max_examples=30, deadline=None)
@given(sizes)
def test_there_and_back(config):
    assert from_json(Sizes, json.loads(json.dumps(to_json(config)))) == config


@settings(max_examples=30, deadline=None)
@given(sizes)
def test_each_field_from_the_command_line(config):
    preset = Preset(Sizes(0), Inner())
    for name, value in to_json(config).items():
        if name != "inner":
            preset = override(preset, [f"model.{name}={json.dumps(value)}"])
    preset = override(preset, [f"model.inner.side={config.inner.side}"])
    assert preset.model == config


@pytest.mark.parametrize(
    ("text", "path", "value"),
    [
        ("train.lr=3e-3", "lr", 3e-3),
        ("train.lr=1", "lr", 1.0),
        (" train.steps = 7 ", "steps", 7),
        ("train.clip=none", "clip", None),
        ("train.decay_all=True", "decay_all", True),
        ("train.schedule=linear", "schedule", "linear"),
        ("train.betas=0.8,0.9", "betas", (0.8, 0.9)),
        ("train.autocast=bfloat16", "autocast", "bfloat16"),
    ],
)
def test_short_forms(text, path, value):
    made = getattr(override(Preset(Inner(), Inner()), [text]).train, path)
    assert made == value and type(made) is type(value)


def test_lists_with_commas_alone():
    preset = Preset(Sizes(1), Inner())
    assert override(preset, ["model.layers=conv,linear"]).model.layers == ("conv", "linear")
    assert override(preset, ["model.layers=conv"]).model.layers == ("conv",)
    assert override(preset, ["model.word=3,4"]).model.word == "3,4"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train.lrr=3", "there is no train.lrr; did you mean train.lr?"),
        ("modle.count=3", "there is no modle; did you mean model?"),
        ("model.zzz=3", "there is no model.zzz: there is model.count, model.share"),
        ("model.count=3.5", "model.count is 3.5, not an integer"),
        ("model.count=true", "model.count is True, not an integer"),
        ("model.on=1", "model.on is 1, not true or false"),
        ("model.limit=x", "model.limit is 'x', not an integer or none"),
        ("model.kind=cnv", "one of conv, linear; did you mean conv?"),
        ("model.pair=1,2,3", "has 3 values, not 2"),
        ("model.inner=3", "is set by its parts: model.inner.side"),
        ("model.count.x=3", "model.count has no parts"),
        ("model.count", "not NAME=VALUE"),
        ("train.batch=0", "train.batch is 0, not >= 1"),
        ("train.lr=-1", "train.lr is -1.0, not >= 0"),
        ("train.floor=2", "a fraction of lr"),
        ("train.clip=0", "> 0 or none"),
        ("train.accumulate=3", "train.batch 32 does not divide"),
    ],
)
def test_what_cannot_be(text, words):
    with pytest.raises(ConfigError) as e:
        override(Preset(Sizes(1), Inner()), [text])
    assert words in str(e.value)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"count": 1, "cuont": 2}, "there is no cuont; did you mean count?"),
        ({}, "count is missing"),
        ({"count": "1"}, "count is '1', not an integer"),
        ({"count": 1, "inner": {"sid": 1}}, "there is no inner.sid; did you mean inner.side?"),
        ({"count": 1, "layers": "ab"}, "layers is 'ab', not a list"),
        ({"count": 1, "table": {"a": "b"}}, "table is {'a': 'b'}"),
        ([1], "is [1], not an object"),
    ],
)
def test_json_that_does_not_fit(value, words):
    with pytest.raises(ConfigError) as e:
        from_json(Sizes, value)
    assert words in str(e.value)


def test_what_has_no_json():
    with pytest.raises(ConfigError, match="cannot hold"):
        to_json(Preset(Inner(), {1, 2}))


def test_presets_of_a_system():
    preset = system.preset("tiny")
    assert system.preset_from_json(json.loads(json.dumps(to_json(preset)))) == preset
    with pytest.raises(ConfigError, match="no preset 'tinny' of toy; did you mean tiny"):
        system.preset("tinny")
    broken = to_json(preset)
    broken["model"]["heads"] = 3
    with pytest.raises(ConfigError, match=r"there is no model\.heads"):
        system.preset_from_json(broken)


def test_the_schedule_is_part_of_the_preset():
    """A preset that is saved says all that training reads: no field is left out."""
    assert set(to_json(Train())) == set(Train.__dataclass_fields__)

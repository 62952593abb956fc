"""Multi-query associative recall: the generator's promises, and solvers that need no training."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zoo.based.data import BasedData, Recall
from zoo.based.mqar import Segment, accuracy, mqar, recalled


def made(length, pairs, rows=50, vocabulary=512, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    return mqar(Segment(length, pairs, rows), vocabulary, generator, **options)


@st.composite
def settings_of_mqar(draw):
    pairs = draw(st.integers(1, 16))
    length = 2 * draw(st.integers(2 * pairs, 2 * pairs + 30))
    vocabulary = 2 * draw(st.integers(length // 2 + 1, 300))
    return length, pairs, vocabulary, draw(st.integers(0, 1000)), draw(st.booleans())


@settings(max_examples=60, deadline=None)
@given(settings_of_mqar())
def test_what_a_row_is_made_of(drawn):
    """B20: labels are the values paired with the keys at their places; and the rest of it."""
    length, n, vocabulary, seed, filled = drawn
    tokens, labels = made(length, n, 7, vocabulary, seed, random_filler=filled)
    keys, values = tokens[:, : 2 * n : 2], tokens[:, 1 : 2 * n : 2]
    half = vocabulary // 2
    assert ((keys >= 1) & (keys < half) & (values >= half) & (values < vocabulary)).all()
    assert (labels[:, : 2 * n] == -100).all()
    for t, y, k, v in zip(tokens, labels, keys, values, strict=True):
        assert len(set(k.tolist())) == len(set(v.tolist())) == n
        at = (y != -100).nonzero()[:, 0]
        pairs = dict(zip(k.tolist(), v.tolist(), strict=True))
        assert sorted(t[at].tolist()) == sorted(pairs)
        assert [pairs[x] for x in t[at].tolist()] == y[at].tolist()
        assert (at % 2 == 0).all()
        rest = torch.ones(length, dtype=torch.bool)
        rest[: 2 * n], rest[at] = False, False
        assert filled or (t[rest] == 0).all()
    assert (tokens >= 0).all() and (tokens < vocabulary).all()


def test_filler_is_anything():
    tokens, labels = made(64, 4, 400, 66)
    rest = tokens[:, 8:][labels[:, 8:] == -100]
    counts = rest.bincount(minlength=66)
    # 22,400 draws of which a 66th is expected everywhere: 6 standard deviations.
    assert ((counts - len(rest) / 66).abs() < 6 * (len(rest) / 66) ** 0.5).all()


def test_places_follow_the_power_law():
    """The one place of a single pair is drawn with p(s) ~ s^(power - 1); the mean is far below
    that of even chances."""
    slots = 31
    _, labels = made(64, 1, 20_000)
    counts = ((labels != -100).nonzero()[:, 1] // 2 - 1).bincount(minlength=slots).double()
    p = torch.arange(1, slots + 1).double() ** -0.99
    expected = 20_000 * p / p.sum()
    assert ((counts - expected).abs() < 5 * expected.sqrt()).all()
    _, labels = made(512, 8, 200, 8192)
    mean = ((labels != -100).nonzero()[:, 1].double() / 2 - 8).mean()
    assert mean < 0.6 * 124, mean


def test_places_are_drawn_one_by_one():
    """The second place follows the law of what the first one left."""
    tokens, labels = made(16, 2, 30_000)
    first = (tokens == tokens[:, :1]) & (labels != -100)
    second = (tokens == tokens[:, 2:3]) & (labels != -100)
    pair = (first.int().argmax(1) // 2 - 2) * 6 + second.int().argmax(1) // 2 - 2
    counts = pair.bincount(minlength=36).double().view(6, 6)
    p = torch.arange(1, 7).double() ** -0.99
    p = p / p.sum()
    expected = 30_000 * p[:, None] * p / (1 - p[:, None])
    off = ~torch.eye(6, dtype=torch.bool)
    assert (counts[~off] == 0).all()
    assert ((counts - expected).abs()[off] < 5 * expected[off].sqrt()).all()


@pytest.mark.parametrize("length, pairs", [(64, 4), (64, 16), (128, 32)])
def test_a_dictionary_solves_it(length, pairs):
    """B21, and that a window knows at most what it has seen."""
    tokens, labels = made(length, pairs, 100)
    asked = labels != -100
    assert (recalled(tokens, labels)[asked] == labels[asked]).all()
    assert (recalled(tokens, labels, length)[asked] == labels[asked]).all()
    known = [
        (recalled(tokens, labels, w)[asked] == labels[asked]).float().mean()
        for w in range(1, length, 7)
    ]
    assert known == sorted(known) and known[0] == 0 and known[-1] > 0.5
    values = tokens[:, None, 1 : 2 * pairs : 2] == labels[..., None]
    back = torch.arange(length)[:, None] - torch.arange(1, 2 * pairs, 2)
    reach = ((values & (back < 8)).any(-1) & asked)[asked].float().mean()
    assert known[1] == reach


class Dictionary(torch.nn.Module):
    """A model that answers by looking up, and guesses the last value for one pair in four."""

    def forward(self, tokens):
        half, n = 256, 4
        logits = torch.zeros(*tokens.shape, 512)
        found = tokens[:, None, : 2 * n : 2] == tokens[:, :, None]
        found[..., 0] = False
        answer = (found * tokens[:, None, 1 : 2 * n : 2]).amax(-1)
        return logits.scatter_(2, answer[..., None], 1.0) + (torch.arange(512) == half) * 0.5


def test_accuracy_counts_labelled_places():
    tokens, labels = made(64, 4, 230)
    got = accuracy(Dictionary(), tokens, labels, batch=100)
    assert 0.745 < got < 0.76  # three of four, and now and then the guess


def test_a_seed_gives_the_same_rows_and_another_others():
    a, b, c = made(64, 4, seed=3), made(64, 4, seed=3), made(64, 4, seed=4)
    assert torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) and not torch.equal(a[0], c[0])


@pytest.mark.parametrize(
    "length, pairs, vocabulary, words",
    [(63, 4, 512, "even length"), (64, 17, 512, "do not fit"), (64, 0, 512, "a pair"),
     (64, 4, 64, "not above"), (64, 4, 513, "odd")],
)  # fmt: skip
def test_what_cannot_be_made(length, pairs, vocabulary, words):
    with pytest.raises(ValueError, match=words):
        made(length, pairs, 1, vocabulary)


@pytest.mark.parametrize("lengths", [(16, 16), (16, 32)])
def test_rows_by_index(lengths):
    parts = tuple((n, 2, rows) for n, rows in zip(lengths, (5, 7), strict=True))
    data = Recall(BasedData(train=parts), 64, seed=1)
    again = Recall(BasedData(train=parts), 64, seed=1)
    other = Recall(BasedData(train=parts), 64, seed=2)
    assert len(data) == 12
    for k in (0, 4, 5, 11):
        tokens, labels = data[k]
        assert len(tokens) == lengths[k >= 5]
        assert torch.equal(tokens, again[k][0]) and torch.equal(labels, again[k][1])
        assert not torch.equal(tokens, other[k][0])
    index = torch.tensor([11, 5, 6])
    tokens, labels = data.batch(index)
    assert torch.equal(tokens, torch.stack([data[int(k)][0] for k in index]))
    assert torch.equal(labels, torch.stack([data[int(k)][1] for k in index]))

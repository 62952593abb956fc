"""A state that stands for all that was read: hand-overs, ragged prompts, sampling, its size."""

import dataclasses

import pytest
import torch
from based_helpers import RECALL, SLIDING, SMALL, made, one_by_one, tokens

from zoo.based import model as M
from zoo.based.config import SIZES, BasedConfig
from zoo.based.generate import generate, left_packed, pick
from zoo.based.model import Based

W = SMALL.window


@pytest.fixture(autouse=True, scope="module")
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def model():
    return made(SMALL)


@pytest.fixture(scope="module")
def whole(model):
    return model(tokens())


def near(got, want):
    """Oracle B16's tolerance is 1e-3; of these models far less is to be expected."""
    torch.testing.assert_close(got, want, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("split", [1, 2, 3, W - 1, W, W + 1, 66])
def test_b16_hand_over(model, whole, split):
    """At once, then one by one, then at once again: every split gives the same logits."""
    ids, state = tokens(), model.start(2)
    parts = [
        model(ids[:, :split], state=state),
        one_by_one(model, ids[:, split : split + 3], state),
    ]
    parts += [model(ids[:, split + 3 :], state=state)] if split + 3 < 70 else []
    near(torch.cat(parts, 1), whole)
    assert state.lengths.tolist() == [70, 70] and state.longest == 70


@pytest.mark.slow
@pytest.mark.parametrize("config", [RECALL, SLIDING], ids=["linear", "window"])
def test_b16_zoologys_form(config):
    model, ids = made(config), tokens(length=20)
    state = model.start(2)
    near(
        torch.cat([model(ids[:, :7], state=state), one_by_one(model, ids[:, 7:], state)], 1),
        model(ids),
    )


@pytest.mark.parametrize("prompt", [W + 1, pytest.param(1, marks=pytest.mark.slow)])
def test_b16_the_same_64_tokens_greedily(model, prompt):
    ids = tokens(1, prompt, seed=5)
    got = generate(model, ids, max_new_tokens=64)
    want = ids
    for _ in range(64):
        want = torch.cat([want, model(want)[:, -1:].argmax(-1)], 1)
    assert torch.equal(got, want)


def test_prompts_of_different_lengths(model):
    """Each row of a batch is what it is alone, whatever fills it up."""
    lengths = [1, 2, W, W + 4, 12]
    n, ids = max(lengths), tokens(5, 12, seed=2)
    mask = torch.arange(n) >= n - torch.tensor(lengths)[:, None]
    got = generate(model, ids, mask, max_new_tokens=9)
    other = generate(model, torch.where(mask, ids, 39 - ids), mask, max_new_tokens=9)
    assert torch.equal(got[:, n:], other[:, n:])
    for row, length in enumerate(lengths):
        alone = generate(model, ids[row : row + 1, n - length :], max_new_tokens=9)
        assert torch.equal(got[row, n - length :], alone[0])


def test_ragged_states_are_those_of_the_rows(model):
    """What a shorter row keeps has nothing of its filling in it."""
    ids, counts = tokens(3, 12), torch.tensor([12, 3, 7])
    state = model.start(3)
    got = model.last(ids, state, counts)
    for row, n in enumerate(counts.tolist()):
        alone = model.start(1)
        near(got[row], model.last(ids[row : row + 1, :n], alone)[0])
        for mine, its in zip(state.layers[:3], alone.layers[:3], strict=True):  # the fixed ones
            for a, b in zip(mine, its, strict=True):
                near(a[row], b[0])
    assert state.lengths.tolist() == [12, 3, 7]


def test_rows_apart_read_several_tokens_at_once(model):
    """Rows that stand at different positions, on, with counts of their own: each as if alone."""
    ids, reads = tokens(3, 26), ((12, (9, 2, 12)), (8, (8, 7, 1)), (6, None))
    state, alone = model.start(3), [model.start(1) for _ in range(3)]
    for n, counts in reads:
        own = (n,) * 3 if counts is None else counts
        got = model.last(ids[:, :n], state, None if counts is None else torch.tensor(own))
        for row, m in enumerate(own):
            near(got[row], model.last(ids[row : row + 1, :m], alone[row])[0])
        ids = ids[:, n:]
    assert state.lengths.tolist() == [23, 15, 19] and state.longest == 23
    after = model.last(torch.full((3, 1), 4), state)
    for row in range(3):
        near(after[row], model.last(torch.full((1, 1), 4), alone[row])[0])
        for mine, its in zip(state.layers[:3], alone[row].layers[:3], strict=True):
            for a, b in zip(mine, its, strict=True):
                near(a[row], b[0])


def test_rows_apart_taken_for_rows_at_one_place_are_found(model, monkeypatch):
    """That comparison can fail."""
    state, alone = model.start(2), model.start(1)
    model(tokens(2, 9), state=state, counts=torch.tensor([2, 9]))
    model(tokens(2, 9)[:1, :2], state=alone)
    place = M.place
    monkeypatch.setattr(M, "place", lambda *a: dataclasses.replace(place(*a), apart=False))
    got, want = (model.last(tokens(n, 3), s) for n, s in ((2, state), (1, alone)))
    assert (got[0] - want[0]).abs().max() > 1e-3


def test_a_filled_state_is_found(model, monkeypatch):
    """That comparison can fail: dead keys count if they are not taken off again."""
    monkeypatch.setattr(M.Place, "dead", property(lambda self: None))
    state, alone = model.start(1), model.start(1)
    ids = tokens(2, 12)
    state = model.start(2)
    got, want = model.last(ids, state, torch.tensor([12, 3])), model.last(ids[1:, :3], alone)
    near(got[1], want[0])  # the prompt's own logits do not see what comes later
    after = [model.last(torch.tensor([[4]] * k), s) for k, s in ((2, state), (1, alone))]
    assert (after[0][1] - after[1][0]).abs().max() > 1e-3


def test_b17_the_state_is_as_large_as_stated():
    """The sums, the ring and the convolution's inputs, in fp32; nothing grows."""
    c = dataclasses.replace(SMALL, layers=("conv", "linear", "window"))
    model, ids = made(c), tokens(2, 30)
    sums = c.heads * (1 + c.features + c.features**2) * (c.head + 1)
    elements = (c.taps - 1) * 2 * c.width + sums + 2 * c.width * c.window
    state = model.start(2)
    assert state.bytes == 2 * 4 * elements
    for n in (1, 20, 9):
        model(ids[:, :n], state=state)
        assert state.bytes == 2 * 4 * elements


@pytest.mark.parametrize(
    "name, linear, ring", [("360m", 283_920, 262_144), ("1.3b", 493_584, 458_752)]
)
def test_b17_published_states(name, linear, ring):
    """A layer's sums and window; the original's ring has 128 keys, ours the query's own too."""
    c = SIZES[name]
    with torch.device("meta"):
        model = Based(dataclasses.replace(c, layers=("conv", "linear", "window")))
        conv, sums, keys = model.start(1).layers
    elements = lambda layer: sum(t.numel() for t in layer)  # noqa: E731
    assert elements(sums) == linear
    assert elements(keys) == ring // 128 * 129
    assert elements(conv) == 2 * 2 * c.width


def test_b18_a_count_in_16_bits_stops_at_256():
    """Why the sums are fp32 whatever the model's type is."""
    count = torch.zeros((), dtype=torch.bfloat16)
    for _ in range(300):
        count += 1
    assert count == 256


@pytest.mark.slow
def test_the_count_is_fp32_in_a_16_bit_model():
    model = made(dataclasses.replace(SMALL, layers=("linear",))).bfloat16()
    state = model.start(1)
    model(tokens(1, 300), state=state)
    model(tokens(1, 1), state=state)
    assert (
        all(t.dtype == torch.float32 for t in state.layers[0]) and (state.layers[0][0] == 301).all()
    )


@pytest.mark.slow
def test_bf16_hand_over():
    """With the original's tolerance for bf16."""
    model, ids = made(SMALL).bfloat16(), tokens()
    state = model.start(2)
    got = torch.cat([model(ids[:, :60], state=state), one_by_one(model, ids[:, 60:], state)], 1)
    torch.testing.assert_close(got, model(ids), atol=5e-2, rtol=1e-2)


def test_samples_share_the_prompt(model, monkeypatch):
    """Many samples read their prompt once, and are what as many prompts would have been."""
    ids, read = tokens(2, 9), []
    stream = Based._stream
    monkeypatch.setattr(
        Based, "_stream", lambda self, t, *rest: read.append(t.shape) or stream(self, t, *rest)
    )
    options = {"max_new_tokens": 6, "do_sample": True}
    many = generate(model, ids, num_return_sequences=3, generator=seeded(4), **options)
    assert read[0] == (2, 9) and set(read[1:]) == {(6, 1)}
    again = generate(model, ids.repeat_interleave(3, 0), generator=seeded(4), **options)
    assert torch.equal(many, again) and not torch.equal(many[0], many[1])


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_a_copy_of_a_state_goes_its_own_way(model):
    ids, state = tokens(), model.start(2)
    model(ids[:, :9], state=state)
    copy = state.clone()
    one = model(ids[:, 9:10], state=state)
    assert copy.lengths.tolist() == [9, 9]
    assert torch.equal(one, model(ids[:, 9:10], state=copy))


def test_the_end(model):
    ids = tokens(3, 6)
    free = generate(model, ids, max_new_tokens=20)
    end = int(free[0, 9])
    got = generate(model, ids, max_new_tokens=20, eos_token_id=end, pad_token_id=39)
    for row, full in zip(got, free, strict=True):
        at = (full[6:] == end).nonzero()
        stop = int(at[0]) + 7 if len(at) else len(full)
        assert torch.equal(row[:stop], full[:stop][: len(row)])
        assert (row[stop:] == 39).all()


def test_picking():
    p = torch.tensor([[0.5, 0.1, 0.3, 0.1]])
    logits = p.log().expand(4000, -1)
    counts = lambda **o: pick(logits, True, generator=seeded(0), **o).bincount(minlength=4) / 4000  # noqa: E731
    near = lambda got, *want: torch.testing.assert_close(got, torch.tensor(want), atol=0.04, rtol=0)  # noqa: E731
    near(counts(), 0.5, 0.1, 0.3, 0.1)
    near(counts(top_k=2), 0.625, 0.0, 0.375, 0.0)
    near(counts(top_p=0.5), 1.0, 0.0, 0.0, 0.0)
    near(counts(top_p=0.51), 0.625, 0.0, 0.375, 0.0)
    near(counts(temperature=0.5), 25 / 36, 1 / 36, 9 / 36, 1 / 36)
    near(counts(temperature=1e-4), 1.0, 0.0, 0.0, 0.0)
    near(counts(top_k=100, top_p=1.0), 0.5, 0.1, 0.3, 0.1)
    assert (pick(logits) == 0).all()


@pytest.mark.parametrize(
    "options, words",
    [({"temperature": 0.0}, "do_sample=False"), ({"top_k": 0}, "top_k is 0"),
     ({"top_p": 0.0}, "top_p"), ({"max_new_tokens": 0}, "max_new_tokens"),
     ({"num_return_sequences": 0}, "num_return"),
     ({"attention_mask": torch.tensor([[1, 1, 0]])}, "on the left"),
     ({"attention_mask": torch.tensor([[0, 0, 0]])}, "at least one"),
     ({"attention_mask": torch.tensor([[1, 1]])}, "input_ids are")],
)  # fmt: skip
def test_options_without_a_meaning(model, options, words):
    with pytest.raises(ValueError, match=words):
        generate(model, tokens(1, 3), **options)


def test_states_that_do_not_fit(model):
    with pytest.raises(ValueError, match="2 rows of tokens for a state of 1"):
        model(tokens(2, 3), state=model.start(1))
    with pytest.raises(ValueError, match="no tokens"):
        model(tokens(1, 0), state=model.start(1))
    with pytest.raises(ValueError, match="one of 1 to 3"):
        model(tokens(2, 3), state=model.start(2), counts=torch.tensor([0, 3]))
    with pytest.raises(ValueError, match="prompts"):
        generate(model, tokens(1, 0))


def test_left_packing():
    ids, mask = torch.arange(6).view(2, 3), torch.tensor([[0, 1, 1], [1, 1, 1]])
    rows, counts = left_packed(ids, mask)
    assert rows[0, :2].tolist() == [1, 2] and rows[1].tolist() == [3, 4, 5]
    assert counts.tolist() == [2, 3]


def test_published_window_is_129_keys():
    assert SIZES["360m"].window == SIZES["1.3b"].window == 129
    assert BasedConfig().window == 128

"""Text from a BASED model: prompts are read at once, then tokens are written one by one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from zoo.based.model import Based, State


@torch.no_grad()
def generate(
    model: Based,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    *,
    max_new_tokens: int = 20,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    num_return_sequences: int = 1,
    eos_token_id: int | None = None,
    pad_token_id: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Prompts [B, N] and what the model makes of them, [B num_return_sequences, N + new].

    Arguments as of Hugging Face's ``generate``. ``attention_mask`` [B, N] is 0 where a shorter
    prompt is filled up on the left, the side on which they may be. Greedy unless ``do_sample``;
    then logits are divided by ``temperature``, the ``top_k`` largest kept, and of these the fewest
    with a probability of ``top_p`` together. Samples of one prompt share its reading: the prompt is
    read once and its state copied. A row that has written ``eos_token_id`` goes on with
    ``pad_token_id`` (that of the end unless given), and all stop when every row has.

    Raises: ValueError for prompts or options that have no meaning.
    """
    _sensible(input_ids, max_new_tokens, temperature, top_k, top_p, num_return_sequences)
    rows, counts = left_packed(input_ids, attention_mask)
    state = model.start(len(rows))
    logits = model.last(rows, state, counts)
    if num_return_sequences > 1:
        each = torch.arange(len(rows), device=rows.device).repeat_interleave(num_return_sequences)
        state, logits, input_ids = state.rows(each), logits[each], input_ids[each]
    written = [input_ids]
    done = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
    pad = eos_token_id if pad_token_id is None else pad_token_id
    for step in range(max_new_tokens):
        token = pick(logits, do_sample, temperature, top_k, top_p, generator)
        if eos_token_id is not None:
            token = token.masked_fill(done, pad)  # type: ignore[arg-type]
            done |= token == eos_token_id
        written.append(token[:, None])
        if step + 1 == max_new_tokens or (eos_token_id is not None and bool(done.all())):
            break
        logits = model.last(token[:, None], state)
    return torch.cat(written, 1)


@torch.no_grad()
def stream(model: Based, state: State, logits: Tensor, **options) -> Iterator[Tensor]:
    """Tokens [B] without end, from a state and the logits [B, V] after it; options of ``pick``."""
    while True:
        token = pick(logits, **options)
        yield token
        logits = model.last(token[:, None], state)


def pick(
    logits: Tensor,
    do_sample: bool = False,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The next token [B] from logits [B, V]; see ``generate``."""
    if not do_sample:
        return logits.argmax(-1)
    ordered, token = (logits.float() / temperature).sort(dim=-1, descending=True, stable=True)
    if top_k is not None:
        ordered, token = ordered[:, :top_k], token[:, :top_k]
    p = ordered.softmax(-1)
    if top_p is not None:
        # The first token whose company reaches top_p is kept; the sum before it has not.
        p = p.masked_fill(p.cumsum(-1) - p >= top_p, 0)
    return token.gather(1, torch.multinomial(p, 1, generator=generator))[:, 0]


def left_packed(input_ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Prompts moved to the left of their rows, and how many tokens each has.

    Raises ValueError for masks that are not zeros and then ones, at least one.
    """
    if attention_mask is None:
        return input_ids, None
    mask = attention_mask.bool()
    if mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask is {list(mask.shape)}, input_ids are {list(input_ids.shape)}"
        )
    if bool((mask[:, 1:] < mask[:, :-1]).any()) or not bool(mask[:, -1].all()):
        raise ValueError(
            "attention_mask: a row is zeros and then ones, at least one\n"
            "  fix: fill shorter prompts up on the left, tokenizer.padding_side = 'left'"
        )
    counts = mask.sum(1)
    n = input_ids.shape[1]
    index = (torch.arange(n, device=mask.device) + (n - counts)[:, None]).clamp(max=n - 1)
    return input_ids.gather(1, index), counts


def _sensible(input_ids, max_new_tokens, temperature, top_k, top_p, samples) -> None:
    if input_ids.dim() != 2 or not input_ids.numel():
        raise ValueError(f"input_ids are prompts [B, N], not {list(input_ids.shape)}")
    for name, value, least in (
        ("max_new_tokens", max_new_tokens, 1),
        ("top_k", 1 if top_k is None else top_k, 1),
        ("num_return_sequences", samples, 1),
    ):
        if value < least:
            raise ValueError(f"{name} is {value}, not at least {least}")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}, not above 0\n  fix: do_sample=False")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}, not in (0, 1]")

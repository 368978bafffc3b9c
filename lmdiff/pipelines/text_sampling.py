"""Sampling of masked text diffusion: which places are written when, and with which tokens.

A completion starts as masks. Each step looks at the whole sequence, later masks included (as LLaDA
samples and as its loss is trained; diffusers' LLaDA2Pipeline hides them), and writes some of the
masked places of the current block. Everything random of a row comes from that row's generator, so a
row gives the same text alone and in a batch.

Of diffusers' schedulers, BlockRefinementScheduler decides greedy steps by confidence. It does not
fit elsewhere: with a temperature it draws a batch from one generator and ranks by tempered
probabilities, which are all near 1 when the temperature is low; and it knows no other order.
EntropyBoundScheduler renoises with random tokens and has no mask; its bound on entropy is here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from diffusers import BlockRefinementScheduler
from torch import Tensor

from lmdiff.errors import UserError

Order = Literal["confidence", "entropy", "random", "left_to_right"]
Logits = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(ids [n, S], mask [n, S] bool, where [n, S] bool, rows [n]) -> logits [N, V] at the N places of
`where`; `rows` tells which of the B prompts these are."""


@dataclass(frozen=True)
class SamplingSettings:
    """How completions are sampled."""

    generation_length: int
    """Tokens of a completion, L."""
    num_inference_steps: int | None = None
    """Model calls at most, over all blocks; L (one token a step) by default."""
    block_length: int | None = None
    """Blocks are filled from left to right, the first at the completion's start; L by default."""
    order: Order = "confidence"
    """Which masked places come first: where the drawn token is most probable (LLaDA), where the
    distribution has the least entropy (Dream), any, or the leftmost."""
    temperature: float = 0.0
    """Of the tokens; 0 takes the most probable. Orders look at untempered probabilities."""
    threshold: float | None = None
    """Write more than the schedule asks for where the model is sure. Order `entropy`: nats by which
    the places written in one step may depend on each other (EB-sampler, arXiv:2505.24857). Other
    orders: the drawn token's probability must be above it (Fast-dLLM, arXiv:2505.22618)."""
    hide_later_blocks: bool = False
    """The model does not see the masks of later blocks, as in diffusers' LLaDA2Pipeline: shorter
    sequences, and another length than in training unless it was trained so."""

    def __post_init__(self):
        length, steps = self.generation_length, self.num_inference_steps
        if length < 1:
            raise UserError(f"generation_length = {length}: at least 1 is needed.")
        if self.block_length is not None and not 1 <= self.block_length <= length:
            raise UserError(f"block_length = {self.block_length}: choose 1 to {length}.")
        blocks = len(self.blocks())
        if steps is not None and not blocks <= steps <= length:
            raise UserError(
                f"num_inference_steps = {steps}: at least one step a block and at most one a "
                f"token are possible, {blocks} to {length}."
            )
        if self.order not in get_args(Order):
            raise UserError(f"order = {self.order!r}: choose one of {', '.join(get_args(Order))}.")
        if not 0 <= self.temperature < float("inf"):
            raise UserError(f"temperature = {self.temperature}: 0 or more is needed.")
        if self.threshold is not None and not self.threshold >= 0:
            raise UserError(f"threshold = {self.threshold}: 0 or more is needed.")

    @property
    def random(self) -> bool:
        """Whether chance decides anything."""
        return self.temperature > 0 or self.order == "random"

    def blocks(self) -> list[tuple[int, int]]:
        """(start, end) of each block within the completion; the last may be shorter."""
        length = self.generation_length
        size = self.block_length or length
        return [(start, min(start + size, length)) for start in range(0, length, size)]

    def steps_of(self, block: tuple[int, int]) -> int:
        """A block's share of the steps, in proportion to its length; at least 1."""
        length = self.generation_length
        total = self.num_inference_steps or length
        return total * block[1] // length - total * block[0] // length


@dataclass(frozen=True)
class Sampled:
    """Completions of B prompts."""

    ids: Tensor
    """[B, L] tokens; never the mask token."""
    step_map: Tensor
    """[B, L] the step, counted from 0, at which a token was written; -1 for places after the end
    that were never decided (the model saw masks there to the last) and filled afterwards."""
    lengths: Tensor
    """[B] tokens up to the end token, with it; L where a completion has none."""
    row_forwards: int
    """Model calls, counted by rows: the cost."""


@torch.no_grad()
def sample_tokens(
    logits: Logits,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    settings: SamplingSettings,
    *,
    mask_id: int,
    end_id: int | None = None,
    never: Sequence[int] = (),
    generators: Sequence[torch.Generator] | None = None,
    scheduler: BlockRefinementScheduler | None = None,
) -> Sampled:
    """Fill B completions.

    Args:
        logits: the model.
        prompt_ids: [B, P] prompts, padded on the left.
        prompt_mask: [B, P] bool; false for padding.
        settings: how.
        mask_id: the mask token. It is never written.
        end_id: a row ends when everything up to its first end token is written; its other places
            are filled with it and cost nothing. None: rows end when they are full.
        never: other tokens that are never written, such as padding.
        generators: one a row; needed with a temperature or the order `random`.
        scheduler: takes the greedy steps by confidence, if given; the same tokens come without.

    Raises:
        UserError: no generators where chance decides, or logits that are not numbers.
    """
    length, device = settings.generation_length, prompt_ids.device
    batch, start = prompt_ids.shape
    if settings.random and (generators is None or len(generators) != batch):
        raise UserError(f"{batch} generators are needed, one a row, since chance decides.")
    if settings.order != "confidence" or settings.temperature > 0:
        scheduler = None
    ids = torch.cat([prompt_ids, prompt_ids.new_full((batch, length), mask_id)], 1)
    mask = torch.cat([prompt_mask.bool(), prompt_mask.new_ones(batch, length).bool()], 1)
    step_map = torch.full((batch, length), -1, device=device)
    written = ids[:, start:]  # a view: what is written below stands in `ids`
    forwards = steps_before = 0
    for block in settings.blocks():
        first, last = block
        steps = settings.steps_of(block)
        quotas = _quotas(last - first, steps)
        if scheduler is not None:
            scheduler.set_timesteps(steps, device=device, block_length=last - first)
        for step, quota in enumerate(quotas):
            open_rows = (written[:, first:last] == mask_id).any(1) & ~_ended(
                written, mask_id, end_id
            )
            rows = open_rows.nonzero().flatten()
            if len(rows) == 0:
                break
            forwards += len(rows)
            # Rows that are done are left out of the batch: they cost nothing.
            end = start + (last if settings.hide_later_blocks else length)
            sample = written[rows, first:last]
            where = torch.zeros(len(rows), end, dtype=torch.bool, device=device)
            where[:, start + first : start + last] = sample == mask_id
            asked = logits(ids[rows, :end], mask[rows, :end], where, rows).float()
            barred = torch.zeros(asked.shape[-1], dtype=torch.bool, device=device)
            barred[[mask_id, *never]] = True
            asked = asked.masked_fill(barred, float("-inf"))
            if asked.isnan().any():
                raise UserError("The model's logits are not numbers (NaN). Is it trained?")
            found = asked.new_zeros(*sample.shape, asked.shape[-1])
            found[sample == mask_id] = asked
            noise = None
            if settings.random and generators is not None:
                noise = _noise([generators[i] for i in rows.tolist()], last - first, device)
            if scheduler is not None:
                tokens, chosen = _refine(
                    scheduler, found, sample, step, mask_id, settings.threshold
                )
            else:
                tokens, chosen = choose(found, sample == mask_id, quota, settings, noise)
            written[rows, first:last] = torch.where(chosen, tokens, sample)
            old_steps = step_map[rows, first:last]
            step_map[rows, first:last] = torch.where(chosen, steps_before + step, old_steps)
        steps_before += steps
    if end_id is not None:
        written[written == mask_id] = end_id
    return Sampled(written.clone(), step_map, _lengths(written, end_id), forwards)


def choose(
    logits: Tensor, masked: Tensor, quota: int, settings: SamplingSettings, noise: Tensor | None
) -> tuple[Tensor, Tensor]:
    """One step: a token for every place, and the places where it is written.

    Args:
        logits: [n, W, V] of a block.
        masked: [n, W] places that are not written yet.
        quota: places to write in each row, as far as there are.
        settings: how.
        noise: [n, 2, W] uniform in [0, 1): for tokens and for a random order.

    Returns:
        Tokens [n, W], and where to write them [n, W] bool, only masked places.
    """
    probabilities = logits.softmax(-1)
    if settings.temperature > 0:
        assert noise is not None
        tokens = draw_tokens(logits / settings.temperature, noise[:, 0])
    else:
        tokens = logits.argmax(-1)
    confidence = probabilities.gather(-1, tokens[..., None])[..., 0]
    entropy = None
    if settings.order == "confidence":
        score = confidence
    elif settings.order == "entropy":
        entropy = torch.special.entr(probabilities).sum(-1)
        score = -entropy
    elif settings.order == "random":
        assert noise is not None
        score = noise[:, 1]
    else:
        score = -torch.arange(masked.shape[1], device=masked.device).expand_as(masked).float()
    score = score.masked_fill(~masked, float("-inf"))
    # Stable: of equal places the leftmost comes first, on every machine.
    order = score.argsort(dim=-1, descending=True, stable=True)
    rank = order.argsort(dim=-1)
    chosen = rank < quota
    if settings.threshold is not None:
        if entropy is not None:
            # Tokens of total entropy H and largest entropy h depend on each other by at most H - h.
            ascending = entropy.masked_fill(~masked, float("inf")).gather(1, order)
            dependence = ascending.cumsum(-1) - ascending
            chosen = chosen | (dependence <= settings.threshold).gather(1, rank)
        else:
            chosen = chosen | (confidence > settings.threshold)
    return tokens, chosen & masked


def draw_tokens(logits: Tensor, uniform: Tensor) -> Tensor:
    """One token a place from softmax(logits) [n, W, V], by inverting its distribution at `uniform`.

    One number a place is drawn instead of one a token, so that a row's generator costs little and
    gives the same on every device. In float32 or better: peers draw Gumbel noise in bfloat16.
    """
    cumulative = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(-1).cumsum(-1)
    total = cumulative[..., -1:]
    # Below the total even after rounding, so that no token of probability 0 is drawn.
    at = torch.minimum(
        uniform.to(cumulative)[..., None] * total, torch.nextafter(total, total.new_zeros(()))
    )
    return torch.searchsorted(cumulative, at, right=True)[..., 0]


def row_generators(
    generator: torch.Generator | Sequence[torch.Generator] | None, batch: int
) -> list[torch.Generator]:
    """A generator for each row: those given, or B new ones seeded from a single one.

    Raises:
        UserError: a list of another length.
    """
    if generator is None or isinstance(generator, torch.Generator):
        device = "cpu" if generator is None else generator.device
        seeds = torch.randint(2**62, (batch,), generator=generator, device=device).tolist()
        return [torch.Generator().manual_seed(seed) for seed in seeds]
    if len(generator) != batch:
        raise UserError(f"{len(generator)} generators for {batch} prompts: give one each, or one.")
    return list(generator)


def _quotas(width: int, steps: int) -> list[int]:
    """`width` places over steps, the larger shares first (as BlockRefinementScheduler's)."""
    return [width // steps + (step < width % steps) for step in range(steps)]


def _noise(generators: list[torch.Generator], width: int, device: Any) -> Tensor:
    """[n, 2, width] uniform; the same numbers a row, whatever the other rows do."""
    drawn = [torch.rand(2, width, generator=g, device=g.device).to(device) for g in generators]
    return torch.stack(drawn)


def _refine(
    scheduler: BlockRefinementScheduler,
    logits: Tensor,
    sample: Tensor,
    step: int,
    mask_id: int,
    threshold: float | None,
) -> tuple[Tensor, Tensor]:
    """The adapter to diffusers: a greedy step by confidence. Its editing of tokens stays off."""
    result: Any = scheduler.step(
        logits,
        step,
        sample,  # type: ignore[arg-type]
        mask_token_id=mask_id,
        temperature=0.0,
        threshold=2.0 if threshold is None else threshold,  # above 2, no probability is
        editing_threshold=0.0,  # None would mean the scheduler's own setting
    )
    return result.sampled_tokens, result.transfer_index


def _ended(written: Tensor, mask_id: int, end_id: int | None) -> Tensor:
    """[B] whether an end token stands before the first mask."""
    if end_id is None:
        return torch.zeros(len(written), dtype=torch.bool, device=written.device)
    return _first(written == end_id) < _first(written == mask_id)


def _first(where: Tensor) -> Tensor:
    """[B] index of the first true value of each row; its width where there is none."""
    return torch.where(where.any(1), where.int().argmax(1), where.shape[1])


def _lengths(written: Tensor, end_id: int | None) -> Tensor:
    length = written.shape[1]
    if end_id is None:
        return torch.full((len(written),), length, device=written.device)
    return (_first(written == end_id) + 1).clamp_max(length)

"""Random draws of text noise. Pure functions of a generator, on the device of `completion`.

Times are stratified over the copies of a row (or, if there is one copy, over the batch): each is
still uniform by itself, and their mean varies less.
"""

import torch
from torch import Tensor

from lmdiff.denoisers.text_noise import (
    TextDraw,
    bernoulli,
    blocks,
    complementary,
    coupled,
    exact_k,
    gauss_legendre,
    mean_field,
    trace,
)
from lmdiff.errors import UserError


def _uniform(completion: Tensor, samples: int, generator: torch.Generator) -> Tensor:
    shape = (samples, *completion.shape)
    return torch.rand(shape, generator=generator, device=completion.device)


def random_ranks(completion: Tensor, samples: int, generator: torch.Generator) -> Tensor:
    """[S, B, L] a uniformly random order of each row's completion tokens, which come first."""
    keys = _uniform(completion, samples, generator).masked_fill(~completion, 2.0)
    return keys.argsort(-1).argsort(-1)


def _times(completion: Tensor, samples: int, generator: torch.Generator) -> Tensor:
    """[S, B], each uniform on [0, 1).

    Over a row's copies they are stratified, and over the rows of a copy they are spread evenly: no
    copy masks much more than another, so none needs more memory.
    """
    batch, device = len(completion), completion.device
    jitter = torch.rand(samples, batch, generator=generator, device=device)
    if samples == 1:
        strata = torch.randperm(batch, generator=generator, device=device)[None]
        return ((strata + jitter) / max(batch, 1)).clamp_max(1 - 2**-24)
    rows = torch.randperm(batch, generator=generator, device=device) * samples // max(batch, 1)
    copies = torch.randperm(samples, generator=generator, device=device)[:, None]
    strata = (rows + copies) % samples
    return ((strata + jitter) / samples).clamp_max(1 - 2**-24)


def _counts(times: Tensor, n: Tensor) -> Tensor:
    """Times in [0, 1) to whole numbers, uniform on 1..n."""
    return ((times * n).floor().long() + 1).minimum(n.clamp_min(1))


def exact_k_draw(completion: Tensor, samples: int, generator: torch.Generator) -> TextDraw:
    """`exact_k` with k uniform on 1..n and a random order; `completion` is [B, L] bool."""
    k = _counts(_times(completion, samples, generator), completion.sum(-1))
    return exact_k(random_ranks(completion, samples, generator), k, completion)


def antithetic_draw(completion: Tensor, samples: int, generator: torch.Generator) -> TextDraw:
    """Pairs of `exact_k` copies that differ as much as they can.

    The second copy of a pair masks n + 1 - k tokens, from the other end of the same order: its k
    is uniform too, and the two share one token.

    Raises:
        UserError: `samples` is odd.
    """
    if samples % 2:
        raise UserError(f"Antithetic masks come in pairs; {samples} samples are odd.")
    n = completion.sum(-1)
    k = _counts(_times(completion, samples // 2, generator), n)
    ranks = random_ranks(completion, samples // 2, generator)
    both_ranks = torch.cat([ranks, n[:, None] - 1 - ranks])
    return exact_k(both_ranks, torch.cat([k, n + 1 - k]), completion)


def bernoulli_draw(completion: Tensor, samples: int, generator: torch.Generator) -> TextDraw:
    """`bernoulli` with t uniform on (0, 1]."""
    times = 1 - _times(completion, samples, generator)
    return bernoulli(_uniform(completion, samples, generator), times, completion)


def complementary_draw(completion: Tensor, samples: int, generator: torch.Generator) -> TextDraw:
    """`complementary` with k uniform on 0..n: two copies for each of `samples`."""
    k = _counts(_times(completion, samples, generator), completion.sum(-1) + 1) - 1
    return complementary(random_ranks(completion, samples, generator), k, completion)


def coupled_draw(
    completion: Tensor,
    samples: int,
    generator: torch.Generator,
    low: float = 0.2,
    high: float = 0.8,
) -> TextDraw:
    """`coupled` with t uniform on [low, high): three copies for each of `samples`."""
    times = low + (high - low) * _times(completion, samples, generator)
    return coupled(_uniform(completion, samples, generator), times, completion)


def gauss_legendre_draw(
    completion: Tensor, nodes: int, generator: torch.Generator, repeats: int = 1
) -> TextDraw:
    """`gauss_legendre` with random orders: nodes * repeats copies."""
    ranks = random_ranks(completion, nodes * repeats, generator)
    return gauss_legendre(ranks, nodes, completion)


def mean_field_draw(
    completion: Tensor,
    prompt: Tensor,
    generator: torch.Generator,
    prompt_rate: float = 0.15,
    samples: int = 1,
) -> TextDraw:
    """`mean_field` with each token of `prompt` [B, L] hidden at `prompt_rate` (0.15 in d1)."""
    hidden = (_uniform(completion, samples, generator) < prompt_rate) & prompt & ~completion
    return mean_field(hidden, completion)


def block_draw(
    completion: Tensor, samples: int, generator: torch.Generator, block_length: int
) -> TextDraw:
    """`blocks` of `block_length` tokens, counted from the first token of the completion."""
    place = (completion.long().cumsum(-1) - 1).clamp_min(0)
    block = place // block_length
    count = torch.where(completion, block + 1, 0).amax(-1)
    which = _counts(_times(completion, samples, generator), count) - 1
    here = (block == which[..., None]) & completion
    keys = _uniform(completion, samples, generator).masked_fill(~here, 2.0)
    jitter = torch.rand(which.shape, generator=generator, device=completion.device)
    k = _counts(jitter, here.sum(-1))
    return blocks(keys.argsort(-1).argsort(-1), k, which, block, completion)


def segments_of(step_map: Tensor, completion: Tensor, segments: int) -> Tensor:
    """[B, L] each row's steps merged into at most `segments` runs of equal length (d2-StepMerge).

    Args:
        step_map: [B, L] the step at which each completion token was written, from 0.
        completion: [B, L] bool.
        segments: 1 or more; as many as there are steps, or more, leaves every step by itself.
    """
    steps = torch.where(completion, step_map + 1, 0).amax(-1, keepdim=True).clamp_min(1)
    merged = step_map * segments // steps
    return torch.where(completion, torch.where(steps <= segments, step_map, merged), 0)


def trace_draw(
    completion: Tensor,
    step_map: Tensor,
    segments: int,
    generator: torch.Generator,
    kept: int | None = None,
) -> TextDraw:
    """`trace` over the merged steps of a roll-out; of which `kept`, if given, are drawn.

    TraceRL merges runs of 8 steps, d2 uses 16 segments for Sudoku; MAPG (arXiv:2607.15200) looks
    at 12 of 32.
    """
    segment = segments_of(step_map, completion, segments)
    count = int(torch.where(completion, segment + 1, 0).max())
    if kept is None or kept >= count:
        return trace(segment, completion)
    order = torch.randperm(count, generator=generator, device=completion.device)
    return trace(segment, completion, order[:kept].sort().values)

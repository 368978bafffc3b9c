"""Likelihood estimators: ways to say how likely a text is under a masked-diffusion model.

An estimator is a way to draw masks and weights (lmdiff/denoisers/text_noise.py) and what its
numbers are good for. The model's part is a table [S, B, L] of log-probabilities, one row of it for
each masked copy; the reductions here turn a table and its draw into estimates.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lmdiff.denoisers.masked_text import TextBatch
from lmdiff.denoisers.text_draws import (
    antithetic_draw,
    bernoulli_draw,
    block_draw,
    complementary_draw,
    coupled_draw,
    exact_k_draw,
    gauss_legendre_draw,
    mean_field_draw,
    trace_draw,
)
from lmdiff.denoisers.text_noise import TextDraw
from lmdiff.errors import UserError


@dataclass(frozen=True)
class DrawOptions:
    """What a draw may need beyond the batch."""

    samples: int = 1
    """Monte Carlo samples; quadrature nodes of `gauss-legendre`, pairs of `elbo-complementary`,
    triples of `coupled`."""
    prompt_mask_rate: float = 0.15
    """Share of prompt tokens that `mean-field` hides."""
    block_length: int = 32
    """Of `elbo-blocks`; as in the roll-out."""
    segments: int = 16
    """Of `trace`: a row's steps are merged into at most so many."""
    kept_segments: int | None = None
    """Of `trace`: how many are drawn; all, if None."""
    step_map: Tensor | None = None
    """[B, L] of `trace`: the step at which each completion token was written."""


@dataclass(frozen=True)
class Estimator:
    """A way to estimate, and what its numbers mean."""

    draw: Callable[[TextBatch, DrawOptions, torch.Generator], TextDraw]
    is_bound: bool
    """Its mean over draws is at most the log-likelihood (an ELBO)."""
    per_token: bool
    """Every token is estimated alike, so a ratio of single tokens means something."""
    source: str


def _completion(x: TextBatch) -> Tensor:
    return x.completion_mask.bool()


def _mean_field(x: TextBatch, options: DrawOptions, generator: torch.Generator) -> TextDraw:
    prompt = x.attention_mask.bool() & ~_completion(x)
    return mean_field_draw(
        _completion(x), prompt, generator, options.prompt_mask_rate, options.samples
    )


def _trace(x: TextBatch, options: DrawOptions, generator: torch.Generator) -> TextDraw:
    if options.step_map is None:
        raise UserError(
            "The trace estimator needs the roll-out's step map (which token came at which step): "
            "sample with a pipeline that returns one, or choose another estimator."
        )
    return trace_draw(
        _completion(x), options.step_map, options.segments, generator, options.kept_segments
    )


ESTIMATORS: dict[str, Estimator] = {
    "mean-field": Estimator(_mean_field, False, True, "d1, arXiv:2504.12216"),
    "coupled": Estimator(
        lambda x, o, g: coupled_draw(_completion(x), o.samples, g),
        False,
        True,
        "DiffuCoder, arXiv:2506.20639",
    ),
    "elbo": Estimator(
        lambda x, o, g: exact_k_draw(_completion(x), o.samples, g),
        True,
        False,
        "LLaDA, arXiv:2502.09992",
    ),
    "elbo-bernoulli": Estimator(
        lambda x, o, g: bernoulli_draw(_completion(x), o.samples, g),
        True,
        False,
        "MDLM, arXiv:2406.07524",
    ),
    "elbo-antithetic": Estimator(
        lambda x, o, g: antithetic_draw(_completion(x), o.samples, g), True, False, "lmdiff"
    ),
    "elbo-complementary": Estimator(
        lambda x, o, g: complementary_draw(_completion(x), o.samples, g),
        True,
        False,
        "ESPO, ICLR 2026",
    ),
    "elbo-blocks": Estimator(
        lambda x, o, g: block_draw(_completion(x), o.samples, g, o.block_length),
        True,
        False,
        "SPG, arXiv:2510.09541",
    ),
    "gauss-legendre": Estimator(
        lambda x, o, g: gauss_legendre_draw(_completion(x), o.samples, g),
        True,  # up to the quadrature's error
        False,
        "GDPO, arXiv:2510.08554",
    ),
    "trace": Estimator(_trace, False, True, "TraceRL, arXiv:2509.06949; d2, arXiv:2509.21474"),
}


def find_estimator(name: str) -> Estimator:
    """An estimator by name.

    Raises:
        UserError: there is none.
    """
    if name not in ESTIMATORS:
        raise UserError(f"No likelihood estimator {name!r}. Known: {', '.join(ESTIMATORS)}.")
    return ESTIMATORS[name]


def token_estimates(table: Tensor, draw: TextDraw) -> Tensor:
    """[B, L] each token's part of the estimate; `table` [S, B, L] of log-probabilities."""
    return (draw.weights * table).sum(0)


def sequence_estimates(table: Tensor, draw: TextDraw) -> Tensor:
    """[B] estimates of log p(completion | prompt), in nats."""
    return (draw.weights * table).sum((0, 2))


def sample_estimates(table: Tensor, draw: TextDraw) -> Tensor:
    """[S, B] one estimate a copy, whose mean by `draw.shares` is `sequence_estimates`.

    Raises:
        UserError: the copies of this draw are parts of one estimate.
    """
    if draw.shares is None:
        raise UserError(
            "The copies of this draw are parts of one estimate, so there is none for each copy: "
            "use an elbo estimator."
        )
    return (draw.weights * table).sum(2) / draw.shares[:, None]


def evidence_upper(table: Tensor, draw: TextDraw, lengths: Tensor, beta: float = 1.5) -> Tensor:
    """[B] what SPG calls the EUBO: `1/beta sum over i of log E[w p_i^beta]` (arXiv:2510.09541).

    Taken over all masks it is at least the ELBO (Jensen), but it is a surrogate and no bound of the
    log-likelihood: the paper's theorem adds a constant for beta < length, which does not depend on
    the model and is dropped in training. Without it the value can be below log p, and is for
    models that tests/algos/test_text_bounds.py finds; from beta = length on it is a bound.

    Tokens that no copy masks are estimated by the mean of the others.

    Args:
        table: [S, B, L] log-probabilities.
        draw: masks and weights, of an ELBO estimator.
        lengths: [B] tokens of each completion.
        beta: 1 or more.
    """
    counted = draw.weights > 0
    powers = torch.where(counted, draw.weights.log() + beta * table, -torch.inf)
    covered = counted.any(0)
    # Where all are -inf the gradient of logsumexp is NaN, whatever it is multiplied with.
    logs = torch.where(covered, powers, 0.0).logsumexp(0) / beta
    total = torch.where(covered, logs, 0.0).sum(-1)
    return total * lengths / covered.sum(-1).clamp_min(1)

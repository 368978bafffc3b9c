"""Reinforcement learning of text: one estimator of likelihood x one policy objective.

The pieces are in likelihood.py, policy_objectives.py and kl.py; here they are put together, and
pairs that make no sense are refused. The loss is a function of a table [S, B, L] of the policy's
log-probabilities, as two_pass.py wants it.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from lmdiff.algos.kl import kl_estimate
from lmdiff.algos.likelihood import (
    ESTIMATORS,
    Estimator,
    evidence_upper,
    find_estimator,
    sample_estimates,
    sequence_estimates,
    token_estimates,
)
from lmdiff.algos.policy_objectives import (
    clipped_ratio,
    linear_bound,
    over_tokens,
    preference,
    sandwiched,
    weighted_likelihood,
)
from lmdiff.denoisers.text_noise import TextDraw
from lmdiff.errors import UserError

ObjectiveName = Literal["token-ratio", "sequence-ratio", "bgpo", "spg", "wd1", "preference"]
OBJECTIVES: tuple[ObjectiveName, ...] = get_args(ObjectiveName)


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """An estimator, an objective and their settings."""

    estimator: str = "elbo"
    """A name in ESTIMATORS (likelihood.py)."""
    samples: int = 4
    """Monte Carlo samples of the estimator; memory does not grow with them."""
    objective: ObjectiveName = "bgpo"
    """`token-ratio` (diffu-GRPO), `sequence-ratio` (ESPO, GDPO), `bgpo`, `spg`, `wd1`, or
    `preference` (VRPO on the best and the worst of each group)."""
    group_size: int = 8
    """Samples of one prompt, which follow each other."""
    epsilon: float = 0.2
    """Clipping of the ratio objectives."""
    epsilon_high: float | None = None
    delta: float | None = None
    """Two-sided clipping, if given."""
    divide_by_length: bool | None = None
    """Whether sequence estimates are divided by the completion's length. If None, as the papers
    do: sequence-ratio and spg divide; the others do not."""
    token_mean: Literal["sequence", "token", "constant"] = "token"
    """How `token-ratio` averages (see policy_objectives.over_tokens)."""
    beta: float = 0.0
    """Weight of the KL to the reference."""
    kl: Literal["k1", "k2", "k3"] = "k2"
    """Its estimator (kl.py); k2 is the one whose gradient is right on-policy."""
    spg_mixture: float = 0.5
    spg_beta: float = 1.5
    wd1_psi: float = 1.0
    preference_beta: float = 0.1


class PolicyLoss(NamedTuple):
    """The loss of each row and what is logged; all [B]. The mean over rows is the loss."""

    loss: Tensor
    kl: Tensor
    """Estimates of the KL to the reference, in nats a token; 0 without one."""
    ratio: Tensor
    """Mean over the row; 1 for objectives without a ratio."""
    clipped_low: Tensor
    """Share of the row's ratios that are clipped from below."""
    clipped_high: Tensor


def check_policy(config: PolicyConfig) -> Estimator:
    """The estimator of a config, if its objective can use it.

    Raises:
        UserError: says in one sentence why not.
    """
    estimator = find_estimator(config.estimator)
    name = config.estimator
    bounds = ", ".join(key for key, value in ESTIMATORS.items() if value.is_bound)
    if config.objective not in OBJECTIVES:
        raise UserError(
            f"No policy objective {config.objective!r}. Known: {', '.join(OBJECTIVES)}."
        )
    if config.objective == "token-ratio" and not estimator.per_token:
        raise UserError(
            f"token-ratio cannot use {name}, which estimates whole sequences and leaves most "
            "tokens of a copy out: choose sequence-ratio, or mean-field, coupled or trace."
        )
    if config.objective == "bgpo" and name in ("coupled", "trace"):
        raise UserError(
            f"bgpo bounds a mean of estimates, and the copies of {name} are parts of one estimate: "
            f"choose one of {bounds}."
        )
    if config.objective == "spg" and not estimator.is_bound:
        raise UserError(
            f"spg needs an ELBO on which to build its upper estimate, and {name} is none: choose "
            f"one of {bounds}."
        )
    if config.samples < 1:
        raise UserError(f"samples = {config.samples}: one is the least.")
    if name == "trace" and config.samples != 1:
        raise UserError(
            "trace looks at the roll-out's own states, so that more samples are the same ones: "
            "set samples = 1."
        )
    if name == "elbo-antithetic" and config.samples % 2:
        raise UserError(f"elbo-antithetic masks in pairs, and samples = {config.samples} is odd.")
    if not 0 <= config.epsilon < 1:
        raise UserError(f"epsilon = {config.epsilon}: it must be at least 0 and below 1.")
    return estimator


def needs_old(config: PolicyConfig) -> bool:
    """Whether the objective compares with the policy that sampled."""
    return config.objective in ("token-ratio", "sequence-ratio", "bgpo")


def needs_reference(config: PolicyConfig) -> bool:
    """Whether a reference model is compared with."""
    return config.beta != 0 or config.objective == "preference"


def is_sum_over_samples(config: PolicyConfig) -> bool:
    """Whether one pass is enough (two_pass.one_pass_backward)."""
    return config.objective == "bgpo" and config.beta == 0


def policy_loss(
    config: PolicyConfig,
    table: Tensor,
    draw: TextDraw,
    advantages: Tensor,
    completion: Tensor,
    old: Tensor | None = None,
    reference: Tensor | None = None,
) -> PolicyLoss:
    """The loss of a batch of completions.

    Args:
        config: checked by `check_policy`.
        table: [S, B, L] the policy's log-probabilities under `draw`, differentiable.
        draw: one draw for policy, old policy and reference alike.
        advantages: [B].
        completion: [B, L] bool.
        old: [S, B, L] of the policy that sampled; where it is None, it is `table` (on-policy).
        reference: [S, B, L] of the reference model, if `needs_reference`.

    Raises:
        UserError: it is needed and not given.
    """
    if needs_reference(config) and reference is None:
        raise UserError(
            f"{config.objective} with beta = {config.beta} compares with a reference model, and "
            "none was evaluated."
        )
    old = table.detach() if old is None else old
    lengths = completion.sum(-1).clamp_min(1).to(table.dtype)
    if config.objective == "token-ratio":
        result = _token_ratio(config, table, draw, advantages, completion, old)
    elif config.objective == "preference" and reference is not None:
        result = _preference(config, table, draw, advantages, lengths, reference)
    else:
        result = _sequence(config, table, draw, advantages, lengths, old)
    if reference is None:
        return result
    # A KL of tokens where tokens have estimates, else one of sequences.
    if config.objective == "token-ratio":
        tokens = token_estimates(table, draw), token_estimates(reference, draw)
        estimates = kl_estimate(config.kl, *tokens)
        penalty = over_tokens(estimates, completion, config.token_mean)
        shown = over_tokens(estimates.detach(), completion, "sequence")
    else:
        sequences = sequence_estimates(table, draw), sequence_estimates(reference, draw)
        penalty = kl_estimate(config.kl, *sequences) / lengths
        shown = penalty.detach()
    return result._replace(loss=result.loss + config.beta * penalty, kl=shown)


def _token_ratio(
    config: PolicyConfig,
    table: Tensor,
    draw: TextDraw,
    advantages: Tensor,
    completion: Tensor,
    old: Tensor,
) -> PolicyLoss:
    tokens = clipped_ratio(
        token_estimates(table, draw),
        token_estimates(old, draw),
        advantages,
        config.epsilon,
        config.epsilon_high,
        config.delta,
    )
    # Tokens that no copy asks for (segments that were not drawn) have a ratio of exactly 1 and
    # no gradient; they count in the mean alone.
    means = [
        over_tokens(part.to(table.dtype), completion, "sequence")
        for part in (tokens.ratio, tokens.clipped_low, tokens.clipped_high)
    ]
    loss = over_tokens(tokens.loss, completion, config.token_mean)
    return PolicyLoss(loss, torch.zeros_like(loss), *means)


def _scale(config: PolicyConfig, lengths: Tensor) -> Tensor:
    divides = config.divide_by_length
    if divides is None:
        divides = config.objective in ("sequence-ratio", "spg")
    return lengths if divides else torch.ones_like(lengths)


def _preference(
    config: PolicyConfig,
    table: Tensor,
    draw: TextDraw,
    advantages: Tensor,
    lengths: Tensor,
    reference: Tensor,
) -> PolicyLoss:
    """The best of each group against its worst; the loss is told on the best one's row."""
    scale = _scale(config, lengths)
    now, fixed = (
        sequence_estimates(table, draw) / scale,
        sequence_estimates(reference, draw) / scale,
    )
    groups = advantages.view(-1, config.group_size)
    first = torch.arange(0, len(advantages), config.group_size, device=advantages.device)
    best, worst = first + groups.argmax(-1), first + groups.argmin(-1)
    pairs = preference(now[best], fixed[best], now[worst], fixed[worst], config.preference_beta)
    # A group in which none is better has no pair.
    pairs = torch.where(advantages[best] > advantages[worst], pairs, 0.0) * config.group_size
    zeros = torch.zeros_like(advantages)
    loss = zeros.index_put((best,), pairs)
    return PolicyLoss(loss, zeros, torch.ones_like(zeros), zeros, zeros)


def _sequence(
    config: PolicyConfig,
    table: Tensor,
    draw: TextDraw,
    advantages: Tensor,
    lengths: Tensor,
    old: Tensor,
) -> PolicyLoss:
    scale = _scale(config, lengths)
    now, before = sequence_estimates(table, draw) / scale, sequence_estimates(old, draw) / scale
    zeros = torch.zeros_like(advantages)
    low, high, ratio = zeros, zeros, torch.ones_like(advantages)
    if config.objective == "sequence-ratio":
        loss, ratio, low, high = clipped_ratio(
            now, before, advantages, config.epsilon, config.epsilon_high, config.delta
        )
    elif config.objective == "bgpo":
        each, each_before = sample_estimates(table, draw), sample_estimates(old, draw)
        terms = linear_bound(each / scale, each_before / scale, advantages, draw.shares)
        loss, ratio = terms.sum(0), (now - before).detach().exp()
    elif config.objective == "spg":
        eubo = evidence_upper(table, draw, lengths, config.spg_beta) / scale
        loss = sandwiched(now, eubo, advantages, config.spg_mixture)
    else:
        loss = weighted_likelihood(now, advantages, config.group_size, config.wd1_psi)
    return PolicyLoss(loss, zeros, ratio, low.to(table.dtype), high.to(table.dtype))


def sample_term(
    config: PolicyConfig,
    log_probs: Tensor,
    sample: int,
    draw: TextDraw,
    advantages: Tensor,
    completion: Tensor,
    old: Tensor,
) -> Tensor:
    """[B] one Monte Carlo sample's part of the loss, where it is a sum of them (bgpo, beta 0).

    Args:
        config: of such an objective.
        log_probs: [B, L] of copy `sample`, differentiable.
        sample: its number.
        draw: the whole draw.
        advantages: [B].
        completion: [B, L] bool.
        old: [S, B, L] the old policy's table.
    """
    alone = slice(sample, sample + 1)
    shares = None if draw.shares is None else draw.shares[alone]
    part = TextDraw(draw.masks[alone], draw.weights[alone], shares)
    return policy_loss(config, log_probs[None], part, advantages, completion, old[alone]).loss

"""Noise for text: which tokens are masked, and how much each one's log-probability counts.

A draw is S masked copies of a batch. With `log p[s, b, l]` of a token in copy s, the estimate of
the log-likelihood of row b is `sum over s, l of weights[s, b, l] * log p[s, b, l]`. Every way to
estimate is then a choice of masks and weights; `text_draws.py` makes those choices at random, and
the functions here compute what follows from one. Only completion tokens are masked.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TextDraw:
    """One draw; use it twice to compare two models."""

    masks: Tensor
    """[S, B, L] bool: tokens that the model sees as masked."""
    weights: Tensor
    """[S, B, L] what each log-probability counts; 0 where none is asked."""
    shares: Tensor | None = None
    """[S], summing to 1, if each copy estimates the whole by itself: then copy s divided by
    shares[s] is such an estimate, and the draw is their mean. None if copies are parts."""

    def __len__(self) -> int:
        return len(self.masks)

    def rows(self, indices: Sequence[int] | slice | Tensor) -> "TextDraw":
        """The draw of some rows of the batch."""
        return TextDraw(self.masks[:, indices], self.weights[:, indices], self.shares)


def _equal_shares(weights: Tensor) -> Tensor:
    return weights.new_full((len(weights),), 1 / len(weights))


def _lengths(completion: Tensor) -> Tensor:
    return completion.sum(-1).to(torch.float32)


def exact_k(ranks: Tensor, k: Tensor, completion: Tensor) -> TextDraw:
    """Masks of exactly k tokens, weighted by n / k (Nie et al., LLaDA, arXiv:2502.09992, eq. 6).

    Unbiased for the ELBO where k is uniform on 1..n and the ranks are a uniform order.

    Args:
        ranks: [S, B, L] place of each completion token in an order (0, 1, ..., n - 1).
        k: [S, B] how many are masked.
        completion: [B, L] bool, n tokens a row.
    """
    masks = (ranks < k[..., None]) & completion
    weights = masks * (_lengths(completion) / k.clamp_min(1))[..., None]
    return TextDraw(masks, weights / len(masks), _equal_shares(weights))


def bernoulli(uniform: Tensor, times: Tensor, completion: Tensor) -> TextDraw:
    """Each token masked with probability t, weighted by 1 / t (LLaDA, eq. 3).

    Args:
        uniform: [S, B, L] in [0, 1); a token is masked where it is below t.
        times: [S, B] in (0, 1].
        completion: [B, L] bool.
    """
    masks = (uniform < times[..., None]) & completion
    weights = masks / times[..., None]
    return TextDraw(masks, weights / len(masks), _equal_shares(weights))


def complementary(ranks: Tensor, k: Tensor, completion: Tensor) -> TextDraw:
    """A mask of k tokens and its complement: 2 S copies (ESPO's estimator, ICLR 2026).

    With k uniform on 0..n, the weights (n + 1) / k and (n + 1) / (n - k) make each copy alone
    unbiased for the ELBO; together every token is masked exactly once.

    Args:
        ranks: [S, B, L] as for `exact_k`.
        k: [S, B] from 0 to n.
        completion: [B, L] bool.
    """
    n = _lengths(completion)
    first = (ranks < k[..., None]) & completion
    second = ~first & completion
    masks = torch.cat([first, second])
    weights = torch.cat(
        [
            first * ((n + 1) / k.clamp_min(1))[..., None],
            second * ((n + 1) / (n - k).clamp_min(1))[..., None],
        ]
    )
    return TextDraw(masks, weights / len(masks), _equal_shares(weights))


def coupled(uniform: Tensor, times: Tensor, completion: Tensor) -> TextDraw:
    """Everything masked; a Bernoulli-t mask; its complement: 3 S copies (arXiv:2506.20639).

    DiffuCoder's per-token estimate: half from the fully masked view (weight 1), half from the one
    of the two others in which the token is masked (weights 1 / t and 1 / (1 - t)). It is no bound,
    and as published a token counts 1.5 times on average: those weights have a mean of 2, not 1.

    Args:
        uniform: [S, B, L] in [0, 1).
        times: [S, B] in (0, 1).
        completion: [B, L] bool.
    """
    samples = len(times)
    first = (uniform < times[..., None]) & completion
    second = ~first & completion
    every = completion.expand_as(first)
    weights = [every.float(), first / times[..., None], second / (1 - times[..., None])]
    return TextDraw(torch.cat([every, first, second]), torch.cat(weights) / (2 * samples))


def gauss_legendre(ranks: Tensor, nodes: int, completion: Tensor) -> TextDraw:
    """Masks of round(t n) tokens at the Gauss-Legendre nodes t (GDPO, arXiv:2510.08554).

    No randomness in time, so less variance; biased by the quadrature. The paper weighs by 1 / t;
    n / k is the same up to the rounding of t n, and keeps each copy a mean over tokens.

    Args:
        ranks: [nodes * repeats, B, L] as for `exact_k`; copy s is at node s % nodes.
        nodes: of the quadrature.
        completion: [B, L] bool.
    """
    times, quadrature = _legendre(nodes)
    copies = torch.arange(len(ranks)) % nodes
    n = _lengths(completion)
    times = times[copies].to(n)
    # At least one token is masked, as a copy without any says nothing.
    k = (times[:, None] * n).round().clamp_min(1)
    shares = quadrature[copies].to(n) * nodes / len(ranks)
    draw = exact_k(ranks, k, completion)
    return TextDraw(draw.masks, draw.weights * len(ranks) * shares[:, None, None], shares)


def _legendre(nodes: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights on [0, 1] (Golub and Welsch, 1969): eigenvalues of a Jacobi matrix."""
    order = torch.arange(1, nodes, dtype=torch.float64)
    off_diagonal = order / (4 * order**2 - 1).sqrt()
    jacobi = torch.diag(off_diagonal, 1) + torch.diag(off_diagonal, -1)
    values, vectors = torch.linalg.eigh(jacobi)
    return (values + 1) / 2, vectors[0] ** 2


def mean_field(hidden_prompt: Tensor, completion: Tensor) -> TextDraw:
    """The whole completion masked, each token counted once (diffu-GRPO of d1, arXiv:2504.12216).

    One forward for all tokens; it treats them as independent. d1 also hides some of the prompt.

    Args:
        hidden_prompt: [S, B, L] bool prompt tokens to mask as well; never counted.
        completion: [B, L] bool.
    """
    masks = hidden_prompt | completion
    weights = completion.float().expand(masks.shape) / len(masks)
    return TextDraw(masks, weights, _equal_shares(weights))


def blocks(ranks: Tensor, k: Tensor, which: Tensor, block: Tensor, completion: Tensor) -> TextDraw:
    """One block of the completion at a time: those before it written, those after it masked.

    The ELBO of sampling block after block; SPG (arXiv:2510.09541) masks in this way, because a
    policy that samples by blocks never sees anything else. Only tokens of the block count.

    Args:
        ranks: [S, B, L] place of each completion token in an order of its own block.
        k: [S, B] how many of the block are masked, from 1 to its size.
        which: [S, B] the block, uniform over those of the row.
        block: [B, L] each token's block (0, 1, ...).
        completion: [B, L] bool.
    """
    here = (block == which[..., None]) & completion
    asked = here & (ranks < k[..., None])
    masks = asked | ((block > which[..., None]) & completion)
    count = torch.where(completion, block + 1, 0).amax(-1)
    weights = asked * (here.sum(-1) * count / k.clamp_min(1))[..., None]
    return TextDraw(masks, weights / len(masks), _equal_shares(weights))


def trace(segment: Tensor, completion: Tensor, kept: Tensor | None = None) -> TextDraw:
    """The states through which the text was written, each asked for what came next.

    Copy s masks the tokens of segments >= s and counts those of segment s: TraceRL
    (arXiv:2509.06949), d2-StepMerge (arXiv:2509.21474). One segment for every step is the exact
    log-probability of the trajectory's tokens; a single one is the mean-field view.

    Args:
        segment: [B, L] in which segment each completion token was written (0, 1, ...).
        completion: [B, L] bool.
        kept: [K] the segments to look at, out of all; the others' share is made up for.
    """
    count = max(1, int(torch.where(completion, segment + 1, 0).max()))
    if kept is None:
        kept = torch.arange(count, device=segment.device)
    masks = (segment >= kept[:, None, None]) & completion
    weights = (segment == kept[:, None, None]) & completion
    return TextDraw(masks, weights * (count / len(kept)))

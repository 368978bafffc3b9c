"""Memory that does not grow with the number of Monte Carlo samples, for any objective, exactly.

Let `F(l_1, ..., l_S)` be a loss of S evaluations of one model. Its gradient is
`sum over j of dF/dl_j * grad l_j`. The first pass computes the values without a graph, then F and
its derivatives by the values (which are small); the second evaluates one sample at a time again
and backpropagates `(dF/dl_j * l_j)`, so that one graph is alive at a time. S extra forwards are the
price; there is none where the values are known, as those of the old policy are on-policy.

The model must say the same twice: no dropout, and the same draw.

On a CPU, glibc's allocator keeps some of what was freed, and the process looks as if it grew (582
to 646 MiB from 1 to 16 samples of a 3.7M BERT); with MALLOC_MMAP_THRESHOLD_=262144 in its
environment it does not (555 to 565).
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Evaluate = Callable[[int], Tensor]


def _backward(loss: Tensor) -> None:
    loss.backward()


@torch.no_grad()
def values(evaluate: Evaluate, count: int) -> Tensor:
    """[S, ...] the first pass: all evaluations, without a graph."""
    return torch.stack([evaluate(sample) for sample in range(count)])


def two_pass_backward(
    evaluate: Evaluate,
    count: int,
    objective: Callable[[Tensor], Tensor],
    *,
    known: Tensor | None = None,
    backward: Callable[[Tensor], None] = _backward,
    hold: Callable[[], AbstractContextManager] = nullcontext,
) -> Tensor:
    """Add the gradient of `objective(stack of evaluations)` to the parameters.

    Args:
        evaluate: sample -> any tensor, differentiable (log-probabilities [B, L], losses [B]).
        count: S.
        objective: [S, ...] -> scalar loss.
        known: [S, ...] the evaluations, where they are known (detached); saves the first pass.
        backward: an Accelerator's, for example.
        hold: entered around every backward but the last: `accelerator.no_sync(model)`.

    Returns:
        The loss, detached.
    """
    table = values(evaluate, count) if known is None else known.detach().clone()
    table.requires_grad_()
    with torch.enable_grad():
        loss = objective(table)
    (slopes,) = torch.autograd.grad(loss, table)
    # No sample is skipped, whatever its slopes: ranks that share a model must meet at each forward.
    for sample in range(count):
        with nullcontext() if sample == count - 1 else hold():
            backward((slopes[sample] * evaluate(sample)).sum())
    return loss.detach()


def one_pass_backward(
    evaluate: Evaluate,
    count: int,
    term: Callable[[Tensor, int], Tensor],
    *,
    backward: Callable[[Tensor], None] = _backward,
    hold: Callable[[], AbstractContextManager] = nullcontext,
) -> Tensor:
    """The same for a loss that is a sum over samples, such as BGPO's bound: one pass is enough.

    Args:
        evaluate: as for `two_pass_backward`.
        count: S.
        term: (evaluation, sample) -> scalar, that sample's part of the loss.
        backward: an Accelerator's, for example.
        hold: entered around every backward but the last.

    Returns:
        The loss, detached.
    """
    total = torch.zeros(())
    for sample in range(count):
        with nullcontext() if sample == count - 1 else hold():
            part = term(evaluate(sample), sample)
            backward(part)
        total = total.to(part.device) + part.detach()
    return total


def recomputed(evaluate: Evaluate, count: int) -> Tensor:
    """[S, ...] all evaluations, differentiable, as a graph that keeps one sample's activations.

    Backpropagation through it evaluates one sample after the other again: the two passes as plain
    autograd, for a training loop that calls backward itself. Dropout is repeated as it was. The
    last sample, with which backpropagation begins, is kept instead: S - 1 extra forwards, and none
    for a single sample.
    """
    early = [checkpoint(evaluate, sample, use_reentrant=False) for sample in range(count - 1)]
    return torch.stack([*early, evaluate(count - 1)])

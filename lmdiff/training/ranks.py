"""What ranks share: who computes which part of a step, and what all of them must agree on.

A training is a sequence of *shards*, micro-batches with their noise. Step `t` of R ranks that
accumulate over A micro-batches consists of the shards t * R * A to (t + 1) * R * A - 1, whoever
computes them. Two ranks are therefore one rank that accumulates two: up to rounding, the same run.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor

from lmdiff.errors import UserError


def shard_of(accelerator: Accelerator, number: int) -> int:
    """Index over all ranks of this rank's micro-batch `number` (the argument of `batches`)."""
    return number * accelerator.num_processes + accelerator.process_index


def gather_numbers(accelerator: Accelerator, mine: Sequence[float]) -> Tensor:
    """[ranks, n] float64: the n numbers of each rank; all ranks must call it."""
    if accelerator.num_processes == 1:
        return torch.tensor([mine], dtype=torch.float64)
    row = torch.tensor([mine], dtype=torch.float64, device=accelerator.device)
    return cast(Tensor, accelerator.gather(row)).cpu()


@contextmanager
def raising_together(accelerator: Accelerator) -> Iterator[None]:
    """A block that ends on all ranks at once; where one raises a UserError, all do.

    Without it, the others would wait for that rank for ever.

    Raises:
        UserError: this rank's own, or one that names the rank that has one.
    """
    error = None
    try:
        yield
    except UserError as raised:
        error = raised
    failed = gather_numbers(accelerator, [error is not None])[:, 0].nonzero()[:, 0].tolist()
    if error is not None:
        raise error
    if failed:
        raise UserError(f"Stopped with rank {failed[0]}, which had to stop and says why.")

"""Episodes are shared among ranks: each runs some of them, and all know the results of all.

Nobody waits while another works alone. In one process, which knows no ranks, everything is its own.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.distributed as distributed

from lmdiff.errors import UserError


def rank_and_size() -> tuple[int, int]:
    """This rank, and how many there are: (0, 1) in a process that was started alone."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def noise_seed(seed: int) -> int:
    """Seed of what this rank draws: `seed` itself on the first, mixed with the rank on others."""
    rank, _ = rank_and_size()
    if rank == 0:
        return seed
    return int(np.random.SeedSequence((seed, rank)).generate_state(1)[0])


def over_ranks(count: int, run: Callable[[list[int]], Sequence[Sequence[float]]]) -> np.ndarray:
    """[count, n] results of `count` episodes, the same on all ranks, which must all call it.

    Args:
        count: how many there are.
        run: given the indices of this rank's share, n numbers for each of them, in their order.

    Raises:
        UserError: `run` failed on another rank. (Where it failed, its own error is raised: nobody
            waits for ever.)
    """
    rank, size = rank_and_size()
    mine = list(range(rank, count, size))
    results, error = np.zeros((0, 0)), None
    try:
        results = np.array(run(mine), np.float64).reshape(len(mine), -1) if mine else results
    except Exception as raised:
        error = raised
    if size > 1:
        results = _gathered(count, mine, results, failed=error is not None)
    if error is not None:
        raise error
    if results is None:
        raise UserError("The evaluation failed on another process, which says why.")
    return results


def _gathered(count: int, mine: list[int], results: np.ndarray, failed: bool) -> np.ndarray | None:
    """The rows of all ranks; None on all of them if one has failed."""
    device = torch.device("cpu")
    if distributed.get_backend() != "gloo":
        device = torch.accelerator.current_accelerator() or device
    # A rank without an episode does not know n.
    width = torch.tensor([results.shape[1], failed], device=device)
    distributed.all_reduce(width, distributed.ReduceOp.MAX)
    if width[1]:
        return None
    rows = torch.zeros(count, int(width[0]), dtype=torch.float64, device=device)
    if mine:
        rows[mine] = torch.from_numpy(results).to(device)
    # Each row is zero on all ranks but one: the sum has them all, none twice.
    distributed.all_reduce(rows)
    return rows.cpu().numpy()

"""Random numbers as pure functions of seed and shard (ranks.py): a resumed run draws the same ones.

`accelerate.utils.set_seed` is equal on all ranks, which is right for the initial weights and wrong
for noise: every rank would corrupt its batch alike. Nothing drawn here has a state to save.
"""

import numpy as np
import torch

from lmdiff.errors import UserError

# Two streams for one step: what the module draws from the generator that it is given, and what
# hidden layers (dropout) draw from torch's global generator.
# An evaluation has a stream of its own, so that one more or less changes nothing.
NOISE, GLOBAL, EVALUATION = 0, 1, 2
# Of reinforcement learning: completions, masks, and the order of prompts.
ROLLOUT, MASKS, SHUFFLE = 3, 4, 5
# Of fine-tuning: which examples a batch holds.
EXAMPLES = 6


def derived_seed(seed: int, index: int, rank: int = 0, stream: int = NOISE) -> int:
    """A 64-bit seed, well mixed.

    Args:
        seed: the run's.
        index: a shard, which has the same noise whichever rank computes it; or a step.
        rank: where `index` is a step and every rank shall draw something else.
        stream: what for.

    Raises:
        UserError: a negative seed.
    """
    if seed < 0:
        raise UserError(f"The seed must not be negative, and is {seed}. Set --training.seed 0.")
    return int(np.random.SeedSequence((seed, index, rank, stream)).generate_state(1, np.uint64)[0])


def noise_generator(
    seed: int, index: int, rank: int = 0, device: torch.device | str = "cpu"
) -> torch.Generator:
    """The generator of a shard's noise; the same arguments (of `derived_seed`), the same noise."""
    return torch.Generator(device).manual_seed(derived_seed(seed, index, rank))


def seed_global(seed: int, index: int, rank: int = 0, stream: int = GLOBAL) -> None:
    """Seed torch's global generators for a shard: dropout has no generator argument."""
    torch.manual_seed(derived_seed(seed, index, rank, stream))

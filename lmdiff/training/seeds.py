"""Random numbers as pure functions of (seed, step, rank): a resumed run draws the same ones.

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


def derived_seed(seed: int, step: int, rank: int, stream: int = NOISE) -> int:
    """A 64-bit seed, well mixed, for one step on one rank.

    Raises:
        UserError: a negative seed.
    """
    if seed < 0:
        raise UserError(f"The seed must not be negative, and is {seed}. Set --training.seed 0.")
    return int(np.random.SeedSequence((seed, step, rank, stream)).generate_state(1, np.uint64)[0])


def noise_generator(
    seed: int, step: int, rank: int, device: torch.device | str = "cpu"
) -> torch.Generator:
    """The generator of the noise of one step on one rank; the same arguments, the same noise."""
    return torch.Generator(device).manual_seed(derived_seed(seed, step, rank))


def seed_global(seed: int, step: int, rank: int, stream: int = GLOBAL) -> None:
    """Seed torch's global generators for one step: dropout has no generator argument."""
    torch.manual_seed(derived_seed(seed, step, rank, stream))

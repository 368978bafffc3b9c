"""What learning from recorded or own experience sees of it: chunks of actions and what followed."""

from typing import NamedTuple

from torch import Tensor

from lmdiff.denoisers.situation import Situation


class Transitions(NamedTuple):
    """B transitions over a chunk of h actions (h = 1: the usual ones)."""

    now: Situation
    action: Tensor
    """[B, h, action] in [-1, 1]"""
    counted: Tensor
    """[B, h] bool: actions that were recorded; a chunk may outlast its episode."""
    reward: Tensor
    """[B] discounted sum of the rewards over the chunk (Q-chunking, arXiv:2507.07969, eq. 5)."""
    discount: Tensor
    """[B] discount of what comes after the chunk: gamma^h; 0 where the goal was achieved in it."""
    next: Situation
    """After the chunk, under the same goals."""

"""Best of N: sample candidates from an actor, keep the one that a critic values most.

The policy of IDQL (arXiv:2304.10573) and of Q-chunking (arXiv:2507.07969): no gradient goes from
the critic into the actor, so a candidate is never outside of what the data does.
"""

from typing import Any

import torch
from torch import Tensor

from lmdiff.algos.critics import Critic, Target
from lmdiff.denoisers.actors import Actor
from lmdiff.denoisers.situation import Situation


@torch.no_grad()
def best_of(
    actor: Actor,
    critic: Critic | Target | None,
    situation: Situation,
    candidates: int,
    **sampling: Any,
) -> Tensor:
    """The chunk of each situation with the highest mean value: [B, horizon, action].

    Args:
        actor: gives candidates.
        critic: [count, B] values; may be None where there is no choice.
        situation: B situations.
        candidates: a situation; 1: no choice, and the critic is not asked.
        sampling: further arguments of `actor.sample`.
    """
    candidates = 1 if critic is None else candidates
    chunks = actor.sample(situation.repeated(candidates), **sampling)
    if candidates == 1 or critic is None:
        return chunks
    values = critic(situation.repeated(candidates), chunks).mean(0).view(-1, candidates)
    best = values.argmax(1)
    return chunks.unflatten(0, (-1, candidates))[torch.arange(len(best)), best]

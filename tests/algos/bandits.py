"""A bandit whose behaviour has two modes of which one pays, and other small batches."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lmdiff.algos.config import AlgorithmConfig, CriticConfig, NetworkConfig
from lmdiff.algos.policies import Algorithm, Sizes
from lmdiff.algos.selection import best_of
from lmdiff.algos.transitions import Transitions
from lmdiff.denoisers.situation import Situation, with_nothing
from lmdiff.goals.encoder import GoalTokens

SIZES = Sizes(observation=3, action=2, horizon=2, words=8)
MODES = -0.5, 0.5  # of each action; the second one pays


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def situation(batch: int, goal: int = 0) -> Situation:
    """Situations that are all the same, under the goal 0 or none (1)."""
    states = torch.randn(1, 4, 8, generator=seeded(9))
    words = with_nothing(GoalTokens(states, torch.ones(1, 4, dtype=torch.bool)))
    return Situation(torch.zeros(batch, 3), words, torch.full((batch,), goal))


def bandit(generator: torch.Generator, batch: int = 128) -> Transitions:
    """One step: a chunk near either mode; reward -1, or 0 near the second one. It ends."""
    good = torch.rand(batch, generator=generator) < 0.5
    mode = torch.where(good, MODES[1], MODES[0])[:, None, None]
    action = mode + 0.05 * torch.randn(batch, 2, 2, generator=generator)
    counted = torch.ones(batch, 2, dtype=torch.bool)
    now = situation(batch)
    return Transitions(now, action, counted, good.float() - 1, torch.zeros(batch), now)


def config(name: str, **more: object) -> AlgorithmConfig:
    """Small networks."""
    small = {
        "network": NetworkConfig(width=64, layers=3, prediction="sample"),
        "critic": CriticConfig(width=32, layers=2, target_rate=0.05),
    }
    return AlgorithmConfig(name=name, **small | more)  # pyright: ignore


def train(
    algorithm: Algorithm,
    steps: int = 200,
    batches: Callable[[torch.Generator], Transitions] = bandit,
    rate: float = 3e-3,
) -> dict[str, Tensor]:
    """On batches, by default of the bandit; the last metrics."""
    optimizer = torch.optim.Adam(algorithm.parameters(), rate)
    generator, metrics = seeded(), {}
    for _ in range(steps):
        metrics = algorithm(batches(generator), generator)
        optimizer.zero_grad()
        metrics["loss"].backward()
        nn.utils.clip_grad_norm_(algorithm.parameters(), 1.0)
        optimizer.step()
        algorithm.after_step()
    return metrics


@torch.no_grad()
def acts(algorithm: Algorithm, count: int = 200, **sampling: object) -> Tensor:
    """[count, horizon, action] chunks as the algorithm acts."""
    return best_of(
        algorithm.actor,
        algorithm.critic,  # pyright: ignore
        situation(count),
        algorithm.candidates,
        generator=seeded(1),
        **sampling,
    )


def share_near(chunks: Tensor, mode: float) -> float:
    """Share of the chunks all of whose actions are within 0.3 of the mode."""
    return float(((chunks - mode).abs() < 0.3).flatten(1).all(1).float().mean())

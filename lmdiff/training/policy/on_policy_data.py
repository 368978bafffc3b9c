"""A round of own episodes as decisions with advantages, for the on-policy algorithms."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from lmdiff.algos.on_policy import OnPolicy, gae
from lmdiff.errors import UserError
from lmdiff.policy_config import PolicyAgentConfig
from lmdiff.training.policy.online import DecisionBatch, OnlineModule
from lmdiff.training.policy.rollouts import OwnEpisode
from lmdiff.training.seeds import MASKS, derived_seed

_AT_ONCE = 512  # decisions that are looked at together when a round is taken in
_LEAST_STD = 1e-6  # of advantages


class OnPolicyData:
    """The last round, and batches of it.

    Args:
        config: the agent.
        module: its policy and value function.
    """

    def __init__(self, config: PolicyAgentConfig, module: OnlineModule):
        if config.online.noise > 0:
            raise UserError(
                f"online.noise = {config.online.noise:g}: {config.algorithm.name} compares its own "
                "chunks, and explores by sampling them. Set online.noise to 0."
            )
        if config.online.learn_from != "all":
            raise UserError(
                f"online.learn_from = {config.online.learn_from!r}: {config.algorithm.name} learns "
                'from failures too. Set it to "all", or choose another algorithm '
                "(--algorithm.name bc)."
            )
        self.config, self.module = config, module
        self.round: DecisionBatch | None = None
        self.number = -1

    def begin(self, number: int) -> None:
        """Nothing is kept of earlier rounds."""

    @torch.no_grad()
    def take(self, number: int, episodes: Sequence[OwnEpisode]) -> None:
        """Take in round `number`: values, advantages, and what the algorithm has to remember."""
        config, device, algorithm = (
            self.config,
            self.module.environment_steps.device,
            self._algorithm(),
        )
        phrases = list(dict.fromkeys(episode.words for episode in episodes))
        asked = [phrases.index(episode.words) for episode in episodes]
        seen = [_seen(episode, config.chunks.history) for episode in episodes]
        goals = torch.tensor([g for g, o in zip(asked, seen, strict=True) for _ in o])
        outcomes = [_outcomes(episode, config.algorithm.critic.discount) for episode in episodes]
        if not algorithm.return_unit:
            algorithm.return_unit.copy_(_size(outcomes))
        values = self._values(torch.from_numpy(np.concatenate(seen)), phrases, goals)
        advantages, returns = [], []
        pieces = values.split([len(observations) for observations in seen])
        for (rewards, discounts), value in zip(outcomes, pieces, strict=True):
            advantages.append(gae(rewards, discounts, value, config.algorithm.on_policy.trace))
            returns.append(advantages[-1] + value[:-1])
        advantage = torch.cat(advantages)
        advantage = (advantage - advantage.mean()) / advantage.std().clamp_min(_LEAST_STD)
        counted = torch.from_numpy(np.concatenate([self._counted(e) for e in episodes]))
        decisions = len(advantage)
        teaches = float(number >= config.algorithm.on_policy.value_rounds)
        batch = DecisionBatch(
            observation=torch.from_numpy(np.concatenate([o[:-1] for o in seen])),
            phrases=phrases,
            goal=torch.tensor([g for g, o in zip(asked, seen, strict=True) for _ in o[:-1]]),
            chain=torch.from_numpy(np.concatenate([episode.chains for episode in episodes])),
            counted=counted,
            memory=(),
            advantage=advantage,
            returns=torch.cat(returns),
            teaches_actor=torch.full((decisions,), teaches),
        )
        generator = torch.Generator(device)
        generator.manual_seed(derived_seed(config.training.seed, number, 0, MASKS))
        self.number, self.round = number, batch._replace(memory=self._memory(batch, generator))

    def batch(self, first: int, size: int) -> DecisionBatch:
        """Decisions number `first` to `first + size` of an endless sequence of shuffled epochs."""
        assert self.round is not None
        count = len(self.round.advantage)
        at = range(first, first + size)
        orders = {epoch: self._order(epoch, count) for epoch in {i // count for i in at}}
        return _rows(self.round, torch.tensor([orders[i // count][i % count] for i in at]))

    def _order(self, epoch: int, count: int) -> np.ndarray:
        rng = np.random.default_rng([self.config.training.seed, self.number, epoch])
        return rng.permutation(count)

    def _values(self, observation: Tensor, phrases: list[str], goal: Tensor) -> Tensor:
        found, device = [], self.module.environment_steps.device
        for rows in torch.arange(len(goal)).split(_AT_ONCE):
            now = self.module.situation(
                observation[rows].to(device), phrases, goal[rows].to(device)
            )
            found.append(self._algorithm().worth(now).cpu())
        return torch.cat(found)

    def _memory(self, batch: DecisionBatch, generator: torch.Generator) -> tuple[Tensor, ...]:
        parts, device = [], generator.device
        for rows in torch.arange(len(batch.advantage)).split(_AT_ONCE):
            part = _rows(batch, rows)
            now = self.module.situation(
                part.observation.to(device), part.phrases, part.goal.to(device)
            )
            chain, counted = part.chain.to(device), part.counted.to(device)
            parts.append(self._algorithm().remember(now, chain, counted, generator))
        return tuple(torch.cat(pieces).cpu() for pieces in zip(*parts, strict=True))

    def _algorithm(self) -> OnPolicy:
        algorithm = self.module.algorithm
        assert isinstance(algorithm, OnPolicy)
        return algorithm

    def _counted(self, episode: OwnEpisode) -> np.ndarray:
        """[D, horizon] which actions of each chunk were done."""
        done = np.diff(np.append(episode.begins, len(episode.demonstration.actions)))
        return np.arange(self.config.chunks.horizon) < done[:, None]


def _rows(batch: DecisionBatch, rows: Tensor) -> DecisionBatch:
    return DecisionBatch(
        observation=batch.observation[rows],
        phrases=batch.phrases,
        goal=batch.goal[rows],
        chain=batch.chain[rows],
        counted=batch.counted[rows],
        memory=tuple(part[rows] for part in batch.memory),
        advantage=batch.advantage[rows],
        returns=batch.returns[rows],
        teaches_actor=batch.teaches_actor[rows],
    )


def _seen(episode: OwnEpisode, history: int) -> np.ndarray:
    """[D + 1, history, observation] at each decision and at the end."""
    observations = episode.demonstration.observations
    at = np.append(episode.begins, len(observations) - 1)
    return observations[np.maximum(at[:, None] - np.arange(history - 1, -1, -1), 0)]


def _size(outcomes: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Root mean square of what was gained from each decision on; 1 if that was nothing."""
    zeros = (torch.zeros(len(rewards) + 1) for rewards, _ in outcomes)
    gained = torch.cat([gae(*pair, zero, 1.0) for pair, zero in zip(outcomes, zeros, strict=True)])
    size = gained.square().mean().sqrt()
    return torch.where(size > 0, size, 1.0)


def _outcomes(episode: OwnEpisode, discount: float) -> tuple[Tensor, Tensor]:
    """[D] discounted rewards until the next decision, and [D] discounts of what comes then."""
    rewards, begins = episode.demonstration.rewards, episode.begins
    assert rewards is not None
    ends = np.append(begins[1:], len(rewards))
    gained = [
        float((rewards[start:end] * discount ** np.arange(end - start)).sum())
        for start, end in zip(begins, ends, strict=True)
    ]
    following = discount ** (ends - begins).astype(float)
    if episode.demonstration.success[-1]:
        following[-1] = 0.0  # nothing comes after success; a time limit ends nothing
    return torch.tensor(gained), torch.from_numpy(following).float()

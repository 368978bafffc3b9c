"""A policy that acts while it learns: what Accelerate prepares where there is own experience."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from lmdiff.algos.on_policy import Decisions, OnPolicy
from lmdiff.algos.selection import best_of
from lmdiff.data.chunks import ChunkBatch
from lmdiff.denoisers.situation import Situation, with_nothing
from lmdiff.pipelines.policy_pipeline import encode_observations
from lmdiff.training.policy.module import PolicyModule


class DecisionBatch(NamedTuple):
    """B decisions in the data's units; see `Decisions` for what is not told here."""

    observation: Tensor
    """[B, history, observation]"""
    phrases: list[str]
    """U goals in words."""
    goal: Tensor
    """[B] which of them was asked for."""
    chain: Tensor
    counted: Tensor
    memory: tuple[Tensor, ...]
    advantage: Tensor
    returns: Tensor
    teaches_actor: Tensor


class OnlineBatch(NamedTuple):
    """What one update learns from."""

    data: ChunkBatch | DecisionBatch
    figures: dict[str, float]
    """Of the last round; passed on to the log."""


class OnlineModule(PolicyModule):
    """A `PolicyModule` that plays rounds and learns from them; its arguments."""

    environment_steps: Tensor

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        # Steps lived through so far: it goes into checkpoints.
        self.register_buffer("environment_steps", torch.zeros((), dtype=torch.long))

    @property
    def links(self) -> int:
        """Of the chains that `act` gives."""
        return self.algorithm.links if isinstance(self.algorithm, OnPolicy) else 1

    def situation(self, observation: Tensor, phrases: Sequence[str], goal: Tensor) -> Situation:
        """Observations [B, history, observation] and goals as the networks see them."""
        words = with_nothing(self.goal_encoder(list(phrases)))
        return Situation(encode_observations(self.normalizer, observation), words, goal)

    @torch.no_grad()
    def act(
        self, observation: np.ndarray, words: Sequence[str], generator: torch.Generator, steps: int
    ) -> np.ndarray:
        """Chains for a roll-out (see `rollouts.Act`), with `steps` denoising steps."""
        device = self.environment_steps.device
        phrases = list(dict.fromkeys(words))
        goal = torch.tensor([phrases.index(text) for text in words], device=device)
        seen = torch.from_numpy(observation).float().to(device)
        now, algorithm = self.situation(seen, phrases, goal), self.algorithm
        if isinstance(algorithm, OnPolicy):
            return algorithm.explore(now, steps, generator).cpu().numpy()
        chunks = best_of(
            algorithm.actor,
            algorithm.critic,
            now,
            algorithm.candidates,
            num_inference_steps=steps,
            generator=generator,
        )
        return chunks[:, None].cpu().numpy()

    def forward(
        self, batch: ChunkBatch | OnlineBatch, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """The algorithm's loss of one batch, and the round's figures."""
        if isinstance(batch, ChunkBatch):
            return super().forward(batch, generator)
        data, algorithm = batch.data, self.algorithm
        if isinstance(data, DecisionBatch):
            assert isinstance(algorithm, OnPolicy)
            out = algorithm(self.decisions(data), generator)
        else:
            out = super().forward(data, generator)
        return out | {name: out["loss"].new_tensor(v) for name, v in batch.figures.items()}

    def decisions(self, batch: DecisionBatch) -> Decisions:
        """The batch as on-policy algorithms see it."""
        return Decisions(
            now=self.situation(batch.observation, batch.phrases, batch.goal),
            chain=batch.chain,
            counted=batch.counted,
            memory=batch.memory,
            advantage=batch.advantage,
            returns=batch.returns,
            teaches_actor=batch.teaches_actor,
        )

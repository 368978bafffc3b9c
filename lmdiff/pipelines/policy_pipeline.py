"""PolicyPipeline: a goal in words and what is seen go in, a chunk of actions comes out.

A diffusers pipeline: `from_pretrained`, `save_pretrained`, swappable schedulers.

    pipe = PolicyPipeline.from_pretrained("runs/metaworld-mt10/agent")
    actions = pipe("open the door", observation=observation).actions
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput
from numpy.typing import ArrayLike
from torch import Tensor

from lmdiff.algos.critics import Critic
from lmdiff.algos.selection import best_of
from lmdiff.data.normalizer import Normalizer
from lmdiff.denoisers.actors import make_actor
from lmdiff.denoisers.policy_networks import PolicyNetwork
from lmdiff.denoisers.situation import Situation, with_nothing
from lmdiff.errors import UserError
from lmdiff.goals.encoder import GoalEncoder, GoalTokens
from lmdiff.goals.refusal import KnownGoals

_LARGEST = 10.0  # of a normalised observation: what hardly ever changed must not blow up


@dataclass
class PolicyPipelineOutput(BaseOutput):
    """Actions of B situations."""

    actions: np.ndarray
    """[B, horizon, action] in [-1, 1]"""


class PolicyPipeline(DiffusionPipeline):
    """Acts towards goals.

    Args:
        network: of the actor (see denoisers/actors.py).
        normalizer: of observations.
        goal_encoder: words to token states.
        scheduler: a diffusers scheduler of the network's process; None for a one-step policy.
        critic: ranks candidates; None: there is one candidate.
        known_goals: refuses what was not taught; None understands everything.
        history: observations that the policy sees.
        execute: actions of a chunk that are done before it is asked again.
        candidates: chunks that the critic chooses from.
        world: name of the world it was trained in.
        agent: name of the agent.
        evaluation: how its config would have it sampled (see PolicyEvaluationConfig).
    """

    model_cpu_offload_seq = "goal_encoder->network->critic"
    _optional_components = ["scheduler", "critic", "known_goals"]  # noqa: RUF012

    def __init__(
        self,
        network: PolicyNetwork,
        normalizer: Normalizer,
        goal_encoder: GoalEncoder,
        scheduler: Any = None,
        critic: Critic | None = None,
        known_goals: KnownGoals | None = None,
        history: int = 1,
        execute: int = 1,
        candidates: int = 1,
        world: str = "",
        agent: str = "",
        evaluation: dict[str, Any] | None = None,
    ):
        super().__init__()
        self.register_modules(
            network=network,
            normalizer=normalizer,
            goal_encoder=goal_encoder,
            scheduler=scheduler,
            critic=critic,
            known_goals=known_goals,
        )
        self.register_to_config(
            history=history,
            execute=execute,
            candidates=candidates,
            world=world,
            agent=agent,
            evaluation=evaluation,
        )
        self.actor = make_actor(network)
        if known_goals is not None:
            known_goals.attach(goal_encoder)

    def understand(self, goal: str) -> None:
        """Refuse a goal that was not taught.

        Raises:
            GoalNotUnderstood: with the nearest goals that were.
        """
        if self.known_goals is not None:
            self.known_goals.check(goal)

    @torch.no_grad()
    def encode_goal(self, goals: Sequence[str]) -> Situation:
        """B goals, encoded once for many calls; an empty string is no goal.

        What the networks make of the words is kept with them: encode anew where weights changed.
        """
        texts = list(dict.fromkeys(goal for goal in goals if goal))
        words = self.goal_encoder(texts) if texts else GoalTokens(*self.goal_encoder.null(1))
        index = {text: number for number, text in enumerate(texts)}
        nothing = len(words.mask)
        which = torch.tensor([index.get(goal, nothing) for goal in goals], device=self.device)
        nobody = torch.zeros(len(goals), 0, device=self.device)
        return Situation(nobody, with_nothing(words), which, readings={})

    @torch.inference_mode()
    def __call__(
        self,
        goal: str | Sequence[str] | Situation,
        *,
        observation: ArrayLike,
        num_inference_steps: int = 10,
        guidance_scale: float = 1.0,
        candidates: int | None = None,
        generator: torch.Generator | None = None,
    ) -> PolicyPipelineOutput:
        """Act on observations [B, history, observation] (or one of them) towards B goals (or one).

        Args:
            goal: in words, or from `encode_goal`. Words are checked first.
            observation: what is seen; with a history of 1, [B, observation] will do.
            num_inference_steps: denoising steps; a one-step policy takes one.
            guidance_scale: weight of the goal (classifier-free guidance); 1 is none.
            candidates: chunks that the critic chooses from; default: the agent's.
            generator: for reproducible actions.

        Raises:
            GoalNotUnderstood: the words were not taught.
            UserError: sizes that do not fit.
        """
        if num_inference_steps < 1:
            raise UserError(f"num_inference_steps = {num_inference_steps}: at least 1 is needed.")
        seen = self._seen(observation)
        if not isinstance(goal, Situation):
            goals = [goal] if isinstance(goal, str) else list(goal)
            for text in goals:
                self.understand(text)
            goal = self.encode_goal(goals)
        if len(goal.goal) not in (1, len(seen)):
            raise UserError(
                f"{len(goal.goal)} goals for {len(seen)} observations: give as many goals as "
                "observations, or one."
            )
        situation = goal._replace(observation=seen, goal=goal.goal.expand(len(seen)))
        count = candidates or self.config["candidates"]
        actions = best_of(
            self.actor,
            self.critic,
            situation,
            1 if self.critic is None else count,
            num_inference_steps=num_inference_steps,
            scheduler=self.scheduler,
            guidance_scale=guidance_scale,
            generator=generator,
        )
        return PolicyPipelineOutput(actions=actions.cpu().numpy())

    def _seen(self, observation: ArrayLike) -> Tensor:
        values = np.asarray(observation, np.float32)
        history, size = self.config["history"], len(self.normalizer.offset)
        if values.ndim < 3 and history == 1:
            values = values.reshape(-1, 1, values.shape[-1] if values.ndim else 1)
        elif values.ndim == 2:
            values = values[None]
        if values.ndim != 3 or values.shape[1:] != (history, size):
            raise UserError(
                f"Observations must be [B, {history}, {size}] for {self.config['world']}, "
                f"not {list(np.shape(observation))}."
            )
        if not np.isfinite(values).all():
            raise UserError("An observation is not finite.")
        # Not `self.device`: that asks every module, at each action.
        device = self.normalizer.offset.device
        return encode_observations(self.normalizer, torch.from_numpy(values).to(device))


def encode_observations(normalizer: Normalizer, observation: Tensor) -> Tensor:
    """Observations [B, history, observation] as a policy sees them: [B, history * observation]."""
    return normalizer.encode(observation).clamp(-_LARGEST, _LARGEST).flatten(1)

"""GoalPipeline: a goal in words (or as a state) and an observation go in, a plan comes out.

A diffusers pipeline: `from_pretrained`, `save_pretrained`, swappable schedulers.

    pipe = GoalPipeline.from_pretrained("runs/pointmaze-medium/agent")
    plan = pipe("go to the top left corner", observation=observation, num_inference_steps=8)
    action = pipe.act(observation, plan.observations[0])
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

from lmdiff.data.normalizer import Normalizer
from lmdiff.denoisers.contract import Condition
from lmdiff.denoisers.goal_prior import GoalPrior
from lmdiff.denoisers.network import TrajectoryTransformer
from lmdiff.denoisers.recorded_hops import RecordedHops
from lmdiff.denoisers.trajectory import TrajectoryDenoiser
from lmdiff.errors import UserError
from lmdiff.goals.encoder import GoalEncoder, GoalTokens
from lmdiff.goals.refusal import KnownGoals


@dataclass
class GoalPipelineOutput(BaseOutput):
    """Plans of B goals, in the task's units."""

    observations: np.ndarray
    """[B, horizon, observation]: where to be, every `stride` environment steps."""
    remaining: np.ndarray
    """[B, horizon]: environment steps to the goal, as the model foresees them."""
    arrival: np.ndarray
    """[B] index of the first step at the goal; `horizon` where the plan ends before it."""
    goal_states: np.ndarray | None = None
    """[B, observation]: the goals as states, given or imagined; NaN where there is none."""
    gap: np.ndarray | None = None
    """[B]: normalised distance of the plan's strangest hop to the nearest recorded one, if some are
    kept. A plan that cuts through a wall has a large one."""


class GoalPipeline(DiffusionPipeline):
    """Plans and acts towards goals.

    Args:
        network: the trajectory transformer.
        normalizer: of its windows.
        goal_encoder: words to token states.
        scheduler: a diffusers scheduler of the network's noise process.
        goal_prior: imagines a goal state for words; None: the planner hears words alone.
        known_goals: refuses what was not taught; None understands everything.
        recorded_hops: what plans are moved to; None leaves them as they were denoised.
        stride: environment steps between two steps of a plan.
        hop_length: usual distance between two steps of a plan, in observation units.
        task: name of the task it was trained for.
        agent: name of the agent.
        evaluation: how its config would have it sampled (see EvaluationConfig).
    """

    model_cpu_offload_seq = "goal_encoder->goal_prior->network"
    _optional_components = ["goal_prior", "known_goals", "recorded_hops"]  # noqa: RUF012

    def __init__(
        self,
        network: TrajectoryTransformer,
        normalizer: Normalizer,
        goal_encoder: GoalEncoder,
        scheduler: Any,
        goal_prior: GoalPrior | None = None,
        known_goals: KnownGoals | None = None,
        recorded_hops: RecordedHops | None = None,
        stride: int = 1,
        hop_length: float = 1.0,
        task: str = "",
        agent: str = "",
        evaluation: dict[str, Any] | None = None,
    ):
        super().__init__()
        self.register_modules(
            network=network,
            normalizer=normalizer,
            goal_encoder=goal_encoder,
            scheduler=scheduler,
            goal_prior=goal_prior,
            known_goals=known_goals,
            recorded_hops=recorded_hops,
        )
        self.register_to_config(
            stride=stride, hop_length=hop_length, task=task, agent=agent, evaluation=evaluation
        )
        self.denoiser = TrajectoryDenoiser(network)
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
    def encode_goal(
        self,
        goal: str | Sequence[str] | None = None,
        *,
        goal_state: ArrayLike | None = None,
        generator: torch.Generator | None = None,
    ) -> Condition:
        """The condition of B goals: in words, as states [B, observation], or neither (None).

        It can be computed once and given to many calls. An empty string is no goal. For words
        without a state, the goal prior imagines one, drawn with `generator`.
        """
        words = state = given = None
        if goal is not None:
            words = encode_words(self.goal_encoder, [goal] if isinstance(goal, str) else list(goal))
        if goal_state is not None:
            state = self._encode_observation(self._observations(goal_state))
        elif words is not None and self.goal_prior is not None:
            condition = Condition(words=words)
            state = self.goal_prior.sample(condition, len(words.mask), generator=generator)
            given = words.mask.any(1)
        return Condition(words=words, state=state, state_given=given)

    @torch.no_grad()
    def __call__(
        self,
        goal: str | Sequence[str] | Condition | None = None,
        *,
        observation: ArrayLike,
        goal_state: ArrayLike | None = None,
        num_inference_steps: int = 5,
        guidance_scale: float = 1.0,
        projection_steps: int = 8,
        generator: torch.Generator | None = None,
    ) -> GoalPipelineOutput:
        """Plan from observations [B, observation] (or one) towards B goals (or one).

        Args:
            goal: in words, or a condition from `encode_goal`. Words are checked first.
            observation: where the agent is.
            goal_state: the goal as a state, instead of words or besides.
            num_inference_steps: denoising steps; more are slower and more precise.
            guidance_scale: weight of the goal (classifier-free guidance); 1 is none.
            projection_steps: times that plans are moved to the nearest recorded hops.
            generator: for reproducible plans.

        Raises:
            GoalNotUnderstood: the words were not taught.
            UserError: sizes or a scheduler that do not fit.
        """
        if num_inference_steps < 1:
            raise UserError(f"num_inference_steps = {num_inference_steps}: at least 1 is needed.")
        if not self.denoiser.process.accepts(self.scheduler):
            raise UserError(
                f"{type(self.scheduler).__name__} does not sample this agent's noise process "
                f"({self.network.config['process']}). Build it from the agent's own settings: "
                "SchedulerClass.from_config(pipe.scheduler.config)"
            )
        now = self._observations(observation)
        if isinstance(goal, Condition):
            condition = goal
        else:
            for text in [goal] if isinstance(goal, str) else goal or []:
                self.understand(text)
            condition = self.encode_goal(goal, goal_state=goal_state, generator=generator)
        condition, now = _paired(condition, now)
        given = self._blank(len(now), self.network.config["horizon"])
        given[:, 0, : now.shape[1]] = self._encode_observation(now)
        sample = self.denoiser.sample(
            condition,
            given,
            "planner",
            self.scheduler,
            num_inference_steps,
            guidance_scale,
            generator,
        )
        values = self.normalizer.decode(sample)
        remaining = -values[..., -1]
        there = remaining < self.config["stride"] / 2
        # One step more than the first that is there: its neighbours are sharper than its edge.
        first = (there.int().argmax(1) + 1).clamp_max(there.shape[1] - 1)
        arrival = torch.where(there.any(1), first, there.shape[1])
        observations, goals, gap = values[..., : now.shape[1]], None, None
        steps = torch.arange(there.shape[1], device=values.device)
        after = steps >= arrival[:, None]
        if condition.state is not None:
            goals = self.normalizer.decode_part(condition.state)
            if condition.state_given is not None:
                goals = torch.where(condition.state_given[:, None], goals, torch.nan)
            # A plan that arrives, arrives at the very goal that it was given.
            ends = after[..., None] & goals.isfinite().all(-1)[:, None, None]
            observations = torch.where(ends, goals[:, None], observations)
        if self.recorded_hops is not None:
            fixed = after | (steps == 0)
            plan = self._encode_observation(observations)
            plan = self.recorded_hops.attract(plan, fixed, projection_steps)
            observations = torch.where(
                fixed[..., None], observations, self.normalizer.decode_part(plan)
            )
            gap = self.recorded_hops.gaps(plan).masked_fill(after[:, :-1], 0.0).amax(1)
        return GoalPipelineOutput(
            observations=observations.cpu().numpy(),
            remaining=remaining.cpu().numpy(),
            arrival=arrival.cpu().numpy(),
            goal_states=None if goals is None else goals.cpu().numpy(),
            gap=None if gap is None else gap.cpu().numpy(),
        )

    @torch.no_grad()
    def act(self, observation: ArrayLike, waypoints: ArrayLike) -> np.ndarray:
        """Actions that lead along a plan: the controller role, the mean in one denoising step.

        Args:
            observation: [B, observation] where the agents are.
            waypoints: [B, n, observation] where they should be next, one and more strides on.

        Returns:
            [B, stride, action] in [-1, 1].
        """
        now = self._observations(observation)
        ahead = torch.from_numpy(np.array(waypoints, np.float32)).to(self.device)
        ahead = ahead[:, : self.network.config["horizon"] - 1]
        path = torch.cat([now[:, None], ahead], 1)
        given = self._blank(len(now), path.shape[1])
        given[..., : now.shape[1]] = self._encode_observation(path)
        return self._first_action(given, "controller", Condition())

    @torch.no_grad()
    def act_towards(self, observation: ArrayLike, condition: Condition) -> np.ndarray:
        """Actions towards a goal without a plan: the policy role. Returns [B, stride, action]."""
        now = self._observations(observation)
        given = self._blank(len(now), self.network.config["horizon"])
        given[:, 0, : now.shape[1]] = self._encode_observation(now)
        return self._first_action(given, "policy", condition)

    def _first_action(self, given: Tensor, role: str, condition: Condition) -> np.ndarray:
        # One step from pure noise gives the mean of the actions that the data has here: their
        # noise is the data's exploration, not worth repeating.
        scheduler = self.denoiser.process.scheduler()
        # The same noise each time: a roll-out then depends on its own seed alone.
        generator = torch.Generator().manual_seed(0)
        sample = self.denoiser.sample(condition, given, role, scheduler, 1, generator=generator)
        observation_size, action_size, _ = self.network.group_sizes
        chunk = self.normalizer.decode(sample)[:, 0, observation_size:][:, :action_size]
        return chunk.unflatten(1, (self.config["stride"], -1)).clamp(-1, 1).cpu().numpy()

    def _blank(self, batch: int, horizon: int) -> Tensor:
        return torch.zeros(batch, horizon, sum(self.network.group_sizes), device=self.device)

    def _observations(self, observation: ArrayLike) -> Tensor:
        values = torch.from_numpy(np.atleast_2d(np.asarray(observation, np.float32)))
        size = self.network.group_sizes[0]
        if values.ndim != 2 or values.shape[1] != size:
            raise UserError(
                f"Observations must be [B, {size}] for {self.config['task']}, "
                f"not {list(values.shape)}."
            )
        if not torch.isfinite(values).all():
            raise UserError("An observation is not finite.")
        return values.to(self.device)

    def _encode_observation(self, observation: Tensor) -> Tensor:
        return self.normalizer.encode_part(observation)


def _paired(condition: Condition, now: Tensor) -> tuple[Condition, Tensor]:
    """One goal for all observations, or one observation for all goals, is repeated."""
    words, state = condition.words, condition.state
    counts = {len(part) for part in (words.mask if words else None, state) if part is not None}
    if not counts:
        return condition, now
    goals = counts.pop()
    if counts or (goals != len(now) and 1 not in (goals, len(now))) or goals == 0:
        raise UserError(
            f"{goals} goals for {len(now)} observations: give as many goals (words and states "
            "alike) as observations, or one."
        )
    if goals < len(now):
        condition = condition.rows([0] * len(now))
    return condition, now.expand(max(goals, len(now)), -1)


def encode_words(encoder: GoalEncoder, phrases: Sequence[str | None]) -> GoalTokens:
    """Token states of B phrases; None and empty phrases have none."""
    said = [index for index, phrase in enumerate(phrases) if phrase]
    if not said:
        return encoder.null(len(phrases))
    tokens = encoder([str(phrases[index]) for index in said])
    if len(said) == len(phrases):
        return tokens
    rows = torch.tensor(said, device=tokens.states.device)
    states = tokens.states.new_zeros(len(phrases), *tokens.states.shape[1:])
    mask = tokens.mask.new_zeros(len(phrases), tokens.mask.shape[1])
    return GoalTokens(
        states.index_copy(0, rows, tokens.states), mask.index_copy(0, rows, tokens.mask)
    )

"""Everything that imitation trains, behind one forward: what Accelerate prepares."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from lmdiff.algos.imitation import imitation_loss
from lmdiff.config import AgentConfig, to_dict
from lmdiff.data.goal_states import GoalStates
from lmdiff.data.normalizer import Normalizer
from lmdiff.data.windows import Batch
from lmdiff.denoisers.contract import Condition
from lmdiff.denoisers.goal_prior import GoalPrior
from lmdiff.denoisers.network import TrajectoryTransformer
from lmdiff.denoisers.recorded_hops import RecordedHops
from lmdiff.denoisers.trajectory import TrajectoryDenoiser
from lmdiff.goals.encoder import GoalEncoder
from lmdiff.pipelines.goal_pipeline import encode_words
from lmdiff.tasks.pointmaze import PointMaze


class ImitationBatch(NamedTuple):
    """One step's data."""

    windows: Batch
    goal_states: GoalStates | None
    """For the goal prior, if there is one."""


class ImitationModule(nn.Module):
    """The language model, the goal prior and the trajectory denoiser of an agent.

    Args:
        config: the agent.
        normalizer: of its windows.
        hop_length: usual distance between two steps of a plan, in observation units.
        recorded_hops: not trained; saved with the agent.
    """

    def __init__(
        self,
        config: AgentConfig,
        normalizer: Normalizer,
        hop_length: float = 1.0,
        recorded_hops: RecordedHops | None = None,
    ):
        super().__init__()
        task, denoiser = PointMaze(config.task.name), config.denoiser
        self.condition_dropout = config.imitation.condition_dropout
        self.normalizer = normalizer
        self.hop_length = hop_length
        self.recorded_hops = recorded_hops
        self.goal_encoder = GoalEncoder(**to_dict(config.goal))
        network = TrajectoryTransformer(
            observation_size=task.observation_size,
            action_size=denoiser.stride * task.action_size,
            signal_size=1,
            goal_size=task.observation_size,
            words_width=self.goal_encoder.width,
            horizon=denoiser.horizon,
            width=denoiser.width,
            layers=denoiser.layers,
            heads=denoiser.heads,
            process=denoiser.process,
            prediction=denoiser.prediction,
        )
        self.denoiser = TrajectoryDenoiser(network, config.imitation.roles)
        self.goal_prior = None
        if config.prior.enabled and denoiser.words:
            self.goal_prior = GoalPrior(
                goal_size=task.observation_size,
                words_width=self.goal_encoder.width,
                known_states=config.prior.known_states,
            )

    def remember(self, states: Tensor) -> None:
        """Keep recorded states [known_states, observation], in the data's units, for the prior."""
        assert self.goal_prior is not None
        self.goal_prior.known.copy_(self.normalizer.encode_part(states))

    def forward(self, batch: ImitationBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """The loss of one batch: the planner's and the goal prior's, side by side.

        They share no weights but those of a language model that is trained.
        """
        windows, goal_states = batch
        condition = Condition(
            words=encode_words(self.goal_encoder, windows.phrases),
            state=self.normalizer.encode_part(windows.goal_state),
            state_given=windows.state_given,
        )
        x = self.normalizer.encode(windows.window)
        out = imitation_loss(self.denoiser, x, condition, self.condition_dropout, generator)
        if self.goal_prior is None or goal_states is None:
            return out
        words = encode_words(self.goal_encoder, goal_states.phrases)
        prior = imitation_loss(
            self.goal_prior,
            self.normalizer.encode_part(goal_states.states),
            Condition(words=words),
            self.condition_dropout,
            generator,
        )["loss"]
        return {
            "loss": out["loss"] + prior,
            "plan_loss": out["loss"].detach(),
            "prior_loss": prior.detach(),
        }

"""Everything that a policy agent trains, behind one forward: what Accelerate prepares."""

import torch
from torch import Tensor, nn

from lmdiff.algos.on_policy import OnPolicy
from lmdiff.algos.policies import Sizes, make_algorithm
from lmdiff.algos.transitions import Transitions
from lmdiff.config import to_dict
from lmdiff.data.chunks import ChunkBatch
from lmdiff.data.normalizer import Normalizer
from lmdiff.denoisers.situation import Situation, with_nothing
from lmdiff.errors import UserError
from lmdiff.goals.encoder import GoalEncoder
from lmdiff.pipelines.policy_pipeline import encode_observations
from lmdiff.policy_config import PolicyAgentConfig


class PolicyModule(nn.Module):
    """The language model and the algorithm with its networks.

    Args:
        config: the agent.
        normalizer: of observations.
        action_size: of one action.
        cells: count and size of the like parts of an observation (see World).
    """

    def __init__(
        self,
        config: PolicyAgentConfig,
        normalizer: Normalizer,
        action_size: int,
        cells: tuple[int, int] = (0, 0),
    ):
        super().__init__()
        self.normalizer = normalizer
        self.word_dropout = config.chunks.word_dropout
        self.goal_encoder = GoalEncoder(**to_dict(config.goal))
        sizes = Sizes(
            observation=len(normalizer.offset),
            history=config.chunks.history,
            action=action_size,
            horizon=config.chunks.horizon,
            words=self.goal_encoder.width,
            cells=cells,
        )
        self.algorithm = make_algorithm(config.algorithm, sizes)

    def forward(self, batch: ChunkBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """The algorithm's loss of one batch.

        Raises:
            UserError: the algorithm does not learn from recordings.
        """
        if isinstance(self.algorithm, OnPolicy):
            raise UserError(
                "fpo and dppo learn from their own episodes, not from recordings: set "
                "--online.episodes-per-round 40, and start from a trained policy (--init DIR)."
            )
        return self.algorithm(self.transitions(batch, generator), generator)

    def transitions(
        self, batch: ChunkBatch, generator: torch.Generator | None = None
    ) -> Transitions:
        """The batch as algorithms see it: normalised, and its goals as token states.

        With a generator, some tokens are hidden (`chunks.word_dropout`).
        """
        words = self.goal_encoder(batch.phrases)
        if generator is not None and self.word_dropout > 0:
            drawn = torch.rand(words.mask.shape, generator=generator, device=words.mask.device)
            words = words._replace(mask=words.mask & (drawn >= self.word_dropout))
        words = with_nothing(words)
        now = Situation(encode_observations(self.normalizer, batch.observation), words, batch.goal)
        after = encode_observations(self.normalizer, batch.next_observation)
        return Transitions(
            now=now,
            action=batch.action,
            counted=batch.counted,
            reward=batch.reward,
            discount=batch.discount,
            next=now._replace(observation=after),
        )

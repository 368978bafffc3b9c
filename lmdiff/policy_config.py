"""The typed configuration of a policy agent: `kind = "policy"` in `agents/NAME.toml`.

Like lmdiff/config.py it imports nothing heavy, and every field can be overridden on the command
line (`--chunks.horizon 5`).
"""

from dataclasses import dataclass, field
from typing import Literal

from lmdiff.algos.config import AlgorithmConfig
from lmdiff.config import GoalConfig, TrainingConfig, check_heads
from lmdiff.errors import UserError
from lmdiff.ranges import Count, Fraction, Natural, NonNegative, Seed, Share, check_ranges

Dataset = Literal["expert", "mixed", "play"]


@dataclass(frozen=True, kw_only=True)
class WorldConfig:
    """The simulated world, and the fixed data set that experts record in it."""

    name: str = "metaworld-mt10"
    """World: see lmdiff/tasks/worlds.py."""
    dataset: Dataset = "expert"
    """`expert`: disturbed on the way, with what the expert would do as the action (DART, Laskey et
    al., arXiv:1703.09327). `mixed`: experts from good to bad, failures kept, with what was done.
    `play`: goal after goal in one episode, with what was done."""
    episodes: Count = 1000
    """Episodes to record."""
    noise: NonNegative = 0.5
    """Largest disturbance: standard deviation of what is added to actions; of discrete actions the
    share that is drawn at random. Each episode has its own, from 0 to this."""
    data_seed: Seed = 0
    """Seed of the recording."""


@dataclass(frozen=True, kw_only=True)
class ChunkConfig:
    """What is seen and done at once, and which goals are learned from."""

    history: Count = 1
    """Observations that the policy sees."""
    horizon: Count = 8
    """Actions that it gives at once."""
    execute: Count = 4
    """How many of them are done before it is asked again."""
    hindsight: Share = 0.0
    """Share of the transitions whose goal is one that was achieved later, not what was asked."""
    random_goals: Share = 0.0
    """Share whose goal is any of the world's; critics learn from it what does not lead there."""
    word_dropout: Fraction = 0.0
    """Share of a sentence's tokens that a training step does not read, drawn anew each time: few
    sentences are taught, and each single word must not decide."""
    hindsight_steps: Count = 200
    """A goal that is achieved later than this is no hindsight of a step."""


@dataclass(frozen=True, kw_only=True)
class OnlineConfig:
    """Learning from own experience, in rounds: whole episodes by the present policy, then updates.

    A training has `training.max_steps / updates_per_round` rounds.
    """

    episodes_per_round: Natural = 0
    """Episodes of a round, over all processes; 0: no own experience (offline)."""
    updates_per_round: Count = 200
    """Training steps after each round's episodes."""
    worlds: Count = 20
    """Episodes side by side, in each process."""
    noise: NonNegative = 0.0
    """Exploration: standard deviation of what is added to actions; of discrete actions the share
    that is drawn at random."""
    num_inference_steps: Count = 10
    """Denoising steps while exploring."""
    offline_share: Share = 0.5
    """Share of each batch that comes from the recorded data set (RLPD, arXiv:2302.02948). The
    on-policy algorithms learn from their last round alone."""
    learn_from: Literal["all", "successes"] = "all"
    """Own episodes that are learned from. `successes` alone can be imitated (bc): what was achieved
    is made more likely and nothing else, as in RL of text without a baseline (RAFT,
    arXiv:2304.06767). The on-policy algorithms learn from all."""
    reward: str = ""
    """A dense reward by its dotted name, `module:function`, called with the world after each step.
    Empty: success (on-policy 1 where the goal is achieved; else success - 1, as offline)."""


@dataclass(frozen=True, kw_only=True)
class PolicyEvaluationConfig:
    """How to act, and the size of an evaluation."""

    num_inference_steps: Count = 10
    guidance_scale: NonNegative = 1.0
    """Weight of the goal against none."""
    episodes: Count = 100
    """Episodes per kind of goal (true, held-out, ...)."""
    seed: Seed = 1000
    """Seed of the evaluation's starts, phrases and noise; never one that trained."""


@dataclass(frozen=True, kw_only=True)
class PolicyAgentConfig:
    """One policy agent, whole."""

    kind: Literal["policy"] = "policy"
    name: str = "metaworld-mt10"
    description: str = ""
    world: WorldConfig = field(default_factory=WorldConfig)
    goal: GoalConfig = field(default_factory=GoalConfig)
    chunks: ChunkConfig = field(default_factory=ChunkConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    online: OnlineConfig = field(default_factory=OnlineConfig)
    evaluation: PolicyEvaluationConfig = field(default_factory=PolicyEvaluationConfig)

    def __post_init__(self) -> None:
        check_ranges(self)
        network, chunks = self.algorithm.network, self.chunks
        check_heads("algorithm.network", network.width, network.heads)
        if chunks.execute > chunks.horizon:
            raise UserError(
                f"chunks.execute = {chunks.execute}: a chunk has only chunks.horizon = "
                f"{chunks.horizon} actions (--chunks.execute {chunks.horizon})."
            )
        if self.algorithm.name == "sdac" and self.online.episodes_per_round == 0:
            raise UserError(
                "sdac imitates nothing: from recordings alone its critic is asked about chunks "
                "that nobody did. Let it act (--online.episodes-per-round 10), or choose another "
                "--algorithm.name."
            )
        if chunks.hindsight + chunks.random_goals > 1:
            raise UserError(
                f"chunks.hindsight = {chunks.hindsight:g} and chunks.random_goals = "
                f"{chunks.random_goals:g} are shares of the same transitions: at most 1 together."
            )

"""Learning from own experience: rounds of episodes, and batches of what was lived and recorded.

Off-policy algorithms (all but fpo and dppo) learn from all rounds, mixed with the recorded data
set (RLPD, Ball et al., arXiv:2302.02948); on-policy ones from the last round. A round is a pure
function of the weights and of (seed, round), as in RL of text: a resumed run repeats it.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from lmdiff.algos.on_policy import OnPolicy
from lmdiff.data.chunks import ChunkBatch, ChunkSampler, mixed
from lmdiff.data.recordings import Demonstration, Recording, joined
from lmdiff.data.replay import Replay
from lmdiff.errors import UserError
from lmdiff.evaluation.policy_language import draw_told
from lmdiff.goals.sayings import Sayings
from lmdiff.policy_config import PolicyAgentConfig
from lmdiff.tasks.world import World
from lmdiff.training.policy.on_policy_data import OnPolicyData
from lmdiff.training.policy.online import OnlineBatch, OnlineModule
from lmdiff.training.policy.rollouts import OwnEpisode, load_reward, play_round
from lmdiff.training.ranks import raising_together, shard_of
from lmdiff.training.seeds import ROLLOUT, derived_seed

MakeSampler = Callable[[Recording], ChunkSampler]


class OffPolicyData:
    """All rounds, on disk, and batches of them mixed with the recorded data set.

    Args:
        config: the agent.
        recorded: batches of the data set.
        make_sampler: batches of a recording.
        replay: the rounds.
        writes: whether this process writes their files.
    """

    def __init__(
        self,
        config: PolicyAgentConfig,
        recorded: ChunkSampler,
        make_sampler: MakeSampler,
        replay: Replay,
        writes: bool,
    ):
        share, size = config.online.offline_share, config.training.batch_size
        if share > 0 and config.online.reward:
            raise UserError(
                "The recorded data set has no dense rewards to mix with: set online.offline_share "
                "to 0, or leave online.reward out."
            )
        self.own_rows = size - round(share * size)
        self.config, self.recorded, self.make_sampler = config, recorded, make_sampler
        self.replay, self.writes = replay, writes
        self.own: ChunkSampler | None = None

    def begin(self, number: int) -> None:
        """Be where `number` rounds were played; later ones are dropped."""
        if number != len(self.replay.recordings) or number == 0:
            self.replay.rewind(number, delete=self.writes)

    def take(self, number: int, episodes: Sequence[OwnEpisode]) -> None:
        """Take in round `number`."""
        del number  # `begin` has seen to it
        demonstrations = [episode.demonstration for episode in episodes]
        if not self.config.online.reward:
            demonstrations = [_without_rewards(part) for part in demonstrations]
        self.replay.add(joined(demonstrations), write=self.writes)
        own = self.replay.everything
        if self.config.online.learn_from == "successes":
            own = own.only(own.successes)
        self.own = self.make_sampler(own) if own.steps else None

    def batch(self, shard: int) -> ChunkBatch:
        """Batch number `shard`; until there is an episode to learn from, all of it is recorded."""
        seed, size = self.config.training.seed, self.config.training.batch_size
        own_rows = self.own_rows if self.own is not None else 0
        parts = []
        if self.own is not None and own_rows:
            parts.append(self.own.batch(seed, shard, own_rows))
        if size > own_rows:
            parts.append(self.recorded.batch(seed, shard, size - own_rows))
        return mixed(parts)


def _without_rewards(part: Demonstration) -> Demonstration:
    """Where success is the reward, samplers know it: success - 1, also of goals in hindsight."""
    return Demonstration(part.observations, part.actions, part.goals, part.success)


class Experience:
    """Batches for `train`; where a round begins, its episodes are played first.

    Args:
        config: the agent.
        module: acts and learns.
        world: the world, for drawing goals.
        sayings: sentences for goals.
        recorded: batches of the recorded data set.
        make_sampler: batches of a recording.
        run_dir: of the run.
        accelerator: of this process.

    Raises:
        UserError: settings that do not go together.
    """

    def __init__(
        self,
        config: PolicyAgentConfig,
        module: OnlineModule,
        world: World,
        sayings: Sayings,
        recorded: ChunkSampler,
        make_sampler: MakeSampler,
        run_dir: Path,
        accelerator: Accelerator,
    ):
        _check(config)
        self.config, self.module, self.world, self.sayings = config, module, world, sayings
        self.accelerator, self.reward = accelerator, load_reward(config.online.reward)
        self.data: OnPolicyData | OffPolicyData
        if isinstance(module.algorithm, OnPolicy):
            self.data = OnPolicyData(config, module)
        else:
            replay, writes = Replay(run_dir / "replay"), accelerator.is_main_process
            self.data = OffPolicyData(config, recorded, make_sampler, replay, writes)
        self.number = -1
        self.figures: dict[str, float] = {}

    def batch(self, number: int) -> OnlineBatch:
        """Batch `number` of this process; rounds must be asked for in order."""
        accelerator = self.accelerator
        length = self.config.online.updates_per_round * accelerator.gradient_accumulation_steps
        round_number, at = divmod(number, length)
        if round_number != self.number:
            with raising_together(accelerator):
                self._play(round_number)
        if isinstance(self.data, OffPolicyData):
            return OnlineBatch(self.data.batch(shard_of(accelerator, number)), self.figures)
        size = self.config.training.batch_size
        rows = self.data.batch(shard_of(accelerator, at) * size, size)
        return OnlineBatch(rows, self.figures)

    def _play(self, number: int) -> None:
        config = self.config
        self.data.begin(number)
        seed = derived_seed(config.training.seed, number, 0, ROLLOUT)
        noise = derived_seed(
            config.training.seed, number, self.accelerator.process_index + 1, ROLLOUT
        )
        told = draw_told(
            self.world,
            self.sayings,
            "train",
            config.online.episodes_per_round,
            seed,
            training=True,
        )
        act = partial(self.module.act, steps=config.online.num_inference_steps)
        episodes = play_round(config, told, act, self.module.links, self.reward, noise)
        self.data.take(number, episodes)
        self.number = number
        steps = [len(episode.demonstration.actions) for episode in episodes]
        self.module.environment_steps += sum(steps)
        success = [bool(episode.demonstration.success[-1]) for episode in episodes]
        self.figures = {
            "rollout/success": float(np.mean(success)),
            "rollout/steps": float(np.mean(steps)),
        }
        if self.reward is not None:
            gained = [e.demonstration.rewards for e in episodes]
            self.figures["rollout/reward"] = float(
                np.mean([r.sum() for r in gained if r is not None])
            )


def _check(config: PolicyAgentConfig) -> None:
    if config.algorithm.name == "bc" and config.online.learn_from == "all":
        raise UserError(
            "bc would imitate its own failures. To learn from own experience let it imitate its "
            "successes (--online.learn-from successes), or choose fpo, dppo, qc, fql, idql, awr or "
            "gtp (--algorithm.name fpo), or set online.episodes_per_round to 0."
        )

"""`lmdiff train`: the settings of an agent's kind as options, with the agent's own as defaults."""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro

from lmdiff.algos.config import AlgorithmConfig
from lmdiff.config import (
    AgentConfig,
    DataConfig,
    DenoiserConfig,
    EvaluationConfig,
    GoalConfig,
    ImitationConfig,
    PriorConfig,
    TaskConfig,
    TrainingConfig,
    agent_from_dict,
    load_agent,
)
from lmdiff.disk import telling_of_the_disk
from lmdiff.errors import UserError
from lmdiff.policy_config import (
    ChunkConfig,
    OnlineConfig,
    PolicyAgentConfig,
    PolicyEvaluationConfig,
    WorldConfig,
)
from lmdiff.resources import names
from lmdiff.saved_agents import find_agent
from lmdiff.text.config import (
    SamplingConfig,
    SFTConfig,
    TextAgentConfig,
    TextEvaluationConfig,
    TextModelConfig,
    TextTaskConfig,
)
from lmdiff.text.rl_config import TextRLSettings

A = TypeVar("A", AgentConfig, PolicyAgentConfig, TextAgentConfig)

_NAMES = ("kind", "name", "description")


@dataclass(frozen=True)
class Train:
    """Train an agent; any of its settings can be overridden (--training.max-steps 500).

    `lmdiff train AGENT --help` shows the settings of AGENT, and its own values of them.
    """

    agent: Annotated[str, tyro.conf.Positional] = ""
    """Name of an agent (see `lmdiff agents`), or a path to its .toml. Not needed with --resume."""
    output: Path | None = None
    """Run folder; default runs/AGENT."""
    resume: Path | None = None
    """Go on with the run in this folder, from its last whole checkpoint."""
    quiet: bool = False
    """No progress bar."""
    task: TaskConfig = field(default_factory=TaskConfig)
    goal: GoalConfig = field(default_factory=GoalConfig)
    prior: PriorConfig = field(default_factory=PriorConfig)
    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)
    data: DataConfig = field(default_factory=DataConfig)
    imitation: ImitationConfig = field(default_factory=ImitationConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def run(self) -> int:
        from lmdiff.training.agent import train_agent

        config = _overridden(self, AgentConfig)
        run_dir = self.resume or self.output or Path("runs") / config.name
        with telling_of_the_disk(run_dir):
            metrics = train_agent(config, run_dir, resume=self.resume is not None, quiet=self.quiet)
        _report(config.name, run_dir, metrics, "go to the bottom right corner")
        return 0


@dataclass(frozen=True)
class TrainPolicy:
    """Train a policy; any of its settings can be overridden (--chunks.horizon 5).

    `lmdiff train AGENT --help` shows the settings of AGENT, and its own values of them.
    """

    agent: Annotated[str, tyro.conf.Positional] = ""
    """Name of an agent (see `lmdiff agents`), or a path to its .toml. Not needed with --resume."""
    output: Path | None = None
    """Run folder; default runs/AGENT."""
    init: str | None = None
    """Start from the weights of this trained policy: a run folder, or the name of one in runs/."""
    resume: Path | None = None
    """Go on with the run in this folder, from its last whole checkpoint."""
    quiet: bool = False
    """No progress bar."""
    world: WorldConfig = field(default_factory=WorldConfig)
    goal: GoalConfig = field(default_factory=GoalConfig)
    chunks: ChunkConfig = field(default_factory=ChunkConfig)
    algorithm: AlgorithmConfig = field(default_factory=AlgorithmConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    online: OnlineConfig = field(default_factory=OnlineConfig)
    evaluation: PolicyEvaluationConfig = field(default_factory=PolicyEvaluationConfig)

    def run(self) -> int:
        from lmdiff.goals.sayings import load_sayings
        from lmdiff.tasks.worlds import make_world
        from lmdiff.training.policy.agent import train_policy_agent

        config = _overridden(self, PolicyAgentConfig)
        run_dir = self.resume or self.output or Path("runs") / config.name
        resume = self.resume is not None
        init = None if self.init is None else find_agent(self.init)
        with telling_of_the_disk(run_dir):
            metrics = train_policy_agent(
                config, run_dir, init=init, resume=resume, quiet=self.quiet
            )
        world = make_world(config.world.name)
        example = load_sayings(world.family).of(world.goals[0], "train")[0]
        _report(config.name, run_dir, metrics, example)
        return 0


@dataclass(frozen=True)
class TrainText:
    """Train an agent that writes; any of its settings can be overridden (--task.blanks 4 8)."""

    agent: Annotated[str, tyro.conf.Positional] = ""
    """Name of an agent (see `lmdiff agents`), or a path to its .toml. Not needed with --resume."""
    output: Path | None = None
    """Run folder; default runs/AGENT."""
    init: str | None = None
    """Start from the weights of this trained agent: a run folder, or the name of one in runs/."""
    resume: Path | None = None
    """Go on with the run in this folder, from its last whole checkpoint."""
    quiet: bool = False
    """No progress bar."""
    algorithm: Literal["sft", "pretrain", "rl"] = "sft"
    """`sft`: the loss covers completions. `pretrain`: it covers prompts too. `rl`: rewards."""
    task: TextTaskConfig = field(default_factory=TextTaskConfig)
    model: TextModelConfig = field(default_factory=TextModelConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    sft: SFTConfig = field(default_factory=SFTConfig)
    rl: TextRLSettings = field(default_factory=TextRLSettings)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: TextEvaluationConfig = field(default_factory=TextEvaluationConfig)

    def run(self) -> int:
        from lmdiff.training.text.agent import train_text_agent

        config = _overridden(self, TextAgentConfig)
        run_dir = self.resume or self.output or Path("runs") / config.name
        init = None if self.init is None else find_agent(self.init)
        with telling_of_the_disk(run_dir):
            metrics = train_text_agent(
                config, run_dir, init=init, resume=self.resume is not None, quiet=self.quiet
            )
        _report(config.name, run_dir, metrics, _EXAMPLES[config.task.name])
        return 0


_EXAMPLES = {"sudoku": "0034002013424210", "countdown": "3 7 25 -> 46", "file": "PROMPT"}


def _overridden(command: "Train | TrainPolicy | TrainText", kind: type[A]) -> A:
    """The agent's config with the command line's settings in place of its own."""
    base = _base_config(command.agent, command.resume)
    parts = {p.name: getattr(command, p.name) for p in fields(kind) if p.name not in _NAMES}
    return kind(name=base.name, description=base.description, **parts)


def _report(name: str, run_dir: Path, metrics: dict[str, Any], example: str) -> None:
    if int(os.environ.get("RANK", 0)) != 0:
        return
    # A run without one finite step since the last report has no loss.
    loss = "none" if metrics["loss"] is None else f"{metrics['loss']:.4f}"
    print(f"Trained {name}: step {metrics['step']}, loss {loss}.")
    print(f"Agent: {run_dir / 'agent'}")
    print(f'Try: lmdiff run {run_dir} "{example}"')


def train_command(words: Sequence[str]) -> Train | TrainPolicy | TrainText:
    """The command before overrides: settings of the agent named, or of the run to resume.

    Raises:
        UserError: no agent is named, or there is none of that name.
    """
    resume = None
    for index, word in enumerate(words):
        if word == "--resume" and index + 1 < len(words):
            resume = Path(words[index + 1])
        elif word.startswith("--resume="):
            resume = Path(word.partition("=")[2])
    # The agent comes first, or wherever a word is one and no option's value.
    known = {*names("agents")}
    candidates = [
        word
        for before, word in zip(["", *words], words, strict=False)
        if not word.startswith("-") and before not in ("--output", "--resume", "--init")
    ]
    agent = next((word for word in candidates if word in known or word.endswith(".toml")), "")
    agent = agent or next((word for word in words[:1] if not word.startswith("-")), "")
    if not agent and resume is None:
        if "-h" in words or "--help" in words:
            return Train()
        raise UserError(f"Name an agent to train: {', '.join(names('agents'))}; or --resume DIR.")
    base = _base_config(agent, resume)
    parts: dict[str, Any] = {
        p.name: getattr(base, p.name) for p in fields(base) if p.name not in _NAMES
    }
    forms = {"policy": TrainPolicy, "text": TrainText}
    kind = Train if isinstance(base, AgentConfig) else forms[base.kind]
    return kind(agent=agent, **parts)


def _base_config(
    agent: str, resume: Path | None
) -> AgentConfig | PolicyAgentConfig | TextAgentConfig:
    if resume is None:
        return load_agent(agent)
    try:
        run = json.loads((resume / "run.json").read_text(encoding="utf-8"))
        return agent_from_dict(run["manifest"]["agent"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"Nothing to resume in {resume}: {error}. Runs are folders such as "
            "runs/pointmaze-medium."
        ) from error

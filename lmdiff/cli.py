"""`lmdiff VERB ...`: train an agent, give it goals, measure it.

Exit codes: 0 achieved, 2 wrong use, 3 goal not understood, 4 not achieved, 130 interrupted, 1 else.
Heavy imports wait until a verb runs, so that `--help` answers at once.
"""

import contextlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

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
    from_dict,
    load_agent,
    load_control_agent,
)
from lmdiff.errors import GoalNotUnderstood, UserError
from lmdiff.resources import names

NOT_ACHIEVED = 4
INTERRUPTED = 130


@dataclass(frozen=True)
class Agents:
    """List what can be trained."""

    def run(self) -> int:
        for name in names("agents"):
            print(f"{name:28} {load_agent(name).description}")
        print("\nTrain one: lmdiff train NAME")
        return 0


@dataclass(frozen=True)
class Data:
    """Generate an agent's data set (training does it too, if it is missing)."""

    agent: Annotated[str, tyro.conf.Positional]
    """Name of an agent, or a path to its .toml."""
    quiet: bool = False

    def run(self) -> int:
        from lmdiff.data.episodes import data_folder, dataset_id, load_or_generate

        config = load_control_agent(self.agent).task
        episodes = load_or_generate(config, quiet=self.quiet)
        print(f"{episodes.steps:,} steps in {len(episodes.actions):,} episodes:")
        print(data_folder() / dataset_id(config))
        return 0


@dataclass(frozen=True)
class Train:
    """Train an agent; any of its settings can be overridden (--training.max-steps 500)."""

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

        agent = AgentConfig(
            **{
                part.name: getattr(self, part.name)
                for part in fields(AgentConfig)
                if part.name not in ("name", "description")
            }
        )
        base = _base_config(self.agent, self.resume)
        agent = replace(agent, name=base.name, description=base.description)
        run_dir = self.resume or self.output or Path("runs") / agent.name
        metrics = train_agent(agent, run_dir, resume=self.resume is not None, quiet=self.quiet)
        if int(os.environ.get("RANK", 0)) == 0:
            # A run without one finite step since the last report has no loss.
            loss = "none" if metrics["loss"] is None else f"{metrics['loss']:.4f}"
            print(f"Trained {agent.name}: step {metrics['step']}, loss {loss}.")
            print(f"Agent: {run_dir / 'agent'}")
            print(f'Try: lmdiff run {run_dir} "go to the bottom right corner"')
        return 0


@dataclass(frozen=True)
class Run:
    """Give an agent a goal; see a picture of its plan and a video of what it did."""

    agent: Annotated[str, tyro.conf.Positional]
    """A run folder (runs/NAME), a saved agent, or the name of one trained in runs/."""
    goal: Annotated[str | None, tyro.conf.Positional] = None
    """What to do, in words. May be left out with --phrases."""
    phrases: Path | None = None
    """Goals with the cells that they denote, a line each: phrase<TAB>row,column;row,column;..."""
    start: str | None = None
    """Cell to start from (row,column); default: drawn by the seed, outside the goal."""
    seed: int = 0
    """Seed of start and noise."""
    output: Path | None = None
    """Folder for picture and video; default RUN/rollouts."""
    video: bool = True
    """Write a video."""
    num_inference_steps: int | None = None
    """Denoising steps; default: the agent's."""
    guidance_scale: float | None = None
    """Weight of the goal; default: the agent's."""
    json: bool = False
    """Print one JSON object as the last line."""

    def run(self) -> int:
        from lmdiff.evaluation.commands import run_goal, run_phrases

        if self.goal is None and self.phrases is None:
            raise UserError('Say a goal: lmdiff run DIR "go to the top left corner"')
        command = run_phrases if self.goal is None else run_goal
        return command(self)


@dataclass(frozen=True)
class Chat:
    """Goal after goal in one episode; a new goal interrupts the old one."""

    agent: Annotated[str, tyro.conf.Positional]
    """A run folder, a saved agent, or the name of one trained in runs/."""
    seed: int = 0
    output: Path | None = None
    """Folder for the video of the whole episode; default RUN/rollouts."""
    speed: float = 60.0
    """Environment steps per second on a terminal."""

    def run(self) -> int:
        from lmdiff.evaluation.chat import chat

        return chat(self)


@dataclass(frozen=True)
class Eval:
    """Measure an agent: by words, and by the stock OGBench protocol."""

    agent: Annotated[str, tyro.conf.Positional]
    """A run folder, a saved agent, or the name of one trained in runs/."""
    episodes: int | None = None
    """Episodes for each kind of goal; default: the agent's."""
    ogbench_episodes: int = 50
    """Episodes for each of the five tasks of the stock protocol; 0 leaves it out."""
    seed: int | None = None
    phrases: Path | None = None
    """Score these phrases too: phrase<TAB>row,column;row,column;..., one a line."""
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    role: Literal["planner", "policy"] = "planner"
    """Plan and follow, or act without plans."""
    output: Path | None = None
    """Put the report into this result file too, as the agent's row (docs/results/NAME.json)."""
    json: bool = False
    """Print one JSON object as the last line."""

    def run(self) -> int:
        from lmdiff.evaluation.commands import evaluate

        return evaluate(self)


@dataclass(frozen=True)
class Bench:
    """Time a plan, an action, a training step; or text RL: its step, its memory, generation."""

    what: Annotated[
        Literal["plan", "action", "train", "text-memory", "text-step", "generate"],
        tyro.conf.Positional,
    ] = "plan"
    agent: str = ""
    """A trained agent, or (plan, action, train; by default pointmaze-medium) the name of one to
    build untrained: weights do not change the times. Of `generate`: a trained Sudoku agent, for
    its quality as well; by default fresh weights, for speed alone."""
    repeats: int | None = None
    """Default: 50; of the text benches 7."""
    output: Path | None = None
    """Write the figures here too, as a file for docs/results."""
    json: bool = False

    def run(self) -> int:
        from lmdiff.evaluation.bench import bench

        return bench(self)


VERBS: dict[str, type] = {
    "agents": Agents,
    "data": Data,
    "train": Train,
    "run": Run,
    "chat": Chat,
    "eval": Eval,
    "bench": Bench,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help") or words[0] not in VERBS:
        return _usage(words)
    verb = words[0]
    # A user's warning is for developers of libraries; their own come through `warnings` too.
    try:
        default = _train_default(words[1:]) if verb == "train" else None
        command: Any = tyro.cli(VERBS[verb], args=words[1:], default=default, prog=f"lmdiff {verb}")
        return command.run()
    except UserError as error:
        _report(error, words)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has gone (`lmdiff agents | head`): not an error, and nothing left to say.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _usage(words: Sequence[str]) -> int:
    known = not words or words[0] in ("-h", "--help")
    stream = sys.stdout if known else sys.stderr
    if not known:
        import difflib

        close = difflib.get_close_matches(words[0], VERBS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        print(f"lmdiff: no verb {words[0]!r}.{hint}\n", file=stream)
    print("usage: lmdiff VERB ...   (lmdiff VERB --help tells more)\n", file=stream)
    for name, verb in VERBS.items():
        print(f"  {name:8} {(verb.__doc__ or '').splitlines()[0]}", file=stream)
    return 0 if known and words else 2


def _report(error: UserError, words: Sequence[str]) -> None:
    print(f"lmdiff: {error}", file=sys.stderr)
    if "--json" in words and isinstance(error, GoalNotUnderstood):
        # Machines read the last line of stdout, whatever came of it.
        print(json.dumps({"understood": False, "nearest": error.nearest, "success": False}))


def _train_default(words: Sequence[str]) -> Train:
    """Settings before overrides: those of the agent named, or of the run to resume."""
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
        if not word.startswith("-") and before not in ("--output", "--resume")
    ]
    agent = next((word for word in candidates if word in known or word.endswith(".toml")), "")
    agent = agent or next((word for word in words[:1] if not word.startswith("-")), "")
    if not agent and resume is None:
        if "-h" in words or "--help" in words:
            return Train()
        raise UserError(f"Name an agent to train: {', '.join(names('agents'))}; or --resume DIR.")
    base = _base_config(agent, resume)
    settings: dict[str, Any] = {
        part.name: getattr(base, part.name)
        for part in fields(AgentConfig)
        if part.name not in ("name", "description")
    }
    return Train(agent=agent, **settings)


def _base_config(agent: str, resume: Path | None) -> AgentConfig:
    if resume is None:
        return load_control_agent(agent)
    try:
        run = json.loads((resume / "run.json").read_text(encoding="utf-8"))
        return from_dict(AgentConfig, run["manifest"]["agent"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"Nothing to resume in {resume}: {error}. Runs are folders such as "
            "runs/pointmaze-medium."
        ) from error


if __name__ == "__main__":
    sys.exit(main())

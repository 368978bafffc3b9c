"""The verbs that use agents, as typed command lines. What they do waits in other modules.

Heavy imports wait until a verb runs, so that `--help` answers at once.
"""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Literal

import tyro

from lmdiff.config import load_agent, load_control_agent
from lmdiff.errors import UserError
from lmdiff.resources import names
from lmdiff.saved_agents import find_agent, kind_of


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
class Writing:
    """How an agent that writes text samples; what is not given is as it was trained."""

    temperature: float | None = None
    """0 takes the most probable tokens; above it the seed decides."""
    threshold: float | None = None
    """Write more in a step where the model is sure (fewer steps)."""
    block_length: int | None = None
    """Blocks of so many tokens, from left to right."""
    order: Literal["confidence", "entropy", "random", "left_to_right"] | None = None
    """Which places are written first."""
    trust_remote_code: bool = False
    """Run the Python code that came with its model. Read it first."""


_WRITING = Annotated[Writing, tyro.conf.arg(name="")]


@dataclass(frozen=True)
class Run:
    """Give an agent a goal or a prompt; see what it did, or how its text appeared."""

    agent: Annotated[str, tyro.conf.Positional]
    """A run folder (runs/NAME), a saved agent, or the name of one trained in runs/."""
    goal: Annotated[str | None, tyro.conf.Positional] = None
    """What to do, in words (may be left out with --phrases); or the prompt."""
    phrases: Path | None = None
    """Goals with the cells that they denote, a line each: phrase<TAB>row,column;row,column;..."""
    start: str | None = None
    """Cell to start from (row,column); default: drawn by the seed, outside the goal."""
    seed: int = 0
    """Seed of start and noise."""
    output: Path | None = None
    """Folder for picture and video; default RUN/rollouts."""
    video: bool = True
    """Write a video (of text: a GIF of its denoising)."""
    num_inference_steps: int | None = None
    """Denoising steps; default: the agent's."""
    guidance_scale: float | None = None
    """Weight of the goal; default: the agent's."""
    json: bool = False
    """Print one JSON object as the last line."""
    writing: _WRITING = field(default_factory=Writing)

    def run(self) -> int:
        if self.goal is None and self.phrases is None:
            raise UserError('Say a goal: lmdiff run DIR "go to the top left corner"')
        kind = kind_of(find_agent(self.agent))
        if kind == "text":
            from lmdiff.evaluation.text_commands import run_prompt

            _refuse(self, "writes text", "phrases", "start", "guidance_scale")
            return run_prompt(self)
        if kind == "policy":
            from lmdiff.evaluation.policy_commands import run_policy_goal

            _refuse(self, "is a policy", "phrases", "start", "writing")
            return run_policy_goal(self)
        from lmdiff.evaluation.commands import run_goal, run_phrases

        _refuse(self, "acts", "writing")
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
        kind = kind_of(find_agent(self.agent))
        if kind != "control":
            what = {"text": "writes text", "policy": "is a policy"}[kind]
            raise UserError(
                f"{self.agent} {what}, and knows no conversation. Say one thing: lmdiff run "
                f'{self.agent} "..."'
            )
        from lmdiff.evaluation.chat import chat

        return chat(self)


@dataclass(frozen=True)
class Eval:
    """Measure an agent: by words and by the stock OGBench protocol; or by held-out prompts."""

    agent: Annotated[str, tyro.conf.Positional]
    """A run folder, a saved agent, or the name of one trained in runs/."""
    episodes: int | None = None
    """Episodes for each kind of goal, or prompts; default: the agent's."""
    ogbench_episodes: int = 50
    """Episodes for each of the five tasks of the stock protocol; 0 leaves it out."""
    seed: int | None = None
    phrases: Path | None = None
    """Score these phrases too: phrase<TAB>row,column;row,column;..., one a line."""
    num_inference_steps: int | None = None
    steps: str = ""
    """Of a policy: also success and time for these numbers of denoising steps (1,2,4,10)."""
    guidance_scale: float | None = None
    projection_steps: int | None = None
    """Times that plans are moved to recorded hops, 0: never; default: the agent's."""
    role: Literal["planner", "policy"] = "planner"
    """Plan and follow, or act without plans."""
    output: Path | None = None
    """Put the report into this result file too, as the agent's row (docs/results/NAME.json)."""
    json: bool = False
    """Print one JSON object as the last line."""
    reward: tuple[str, ...] = ()
    """Of text: score these rewards (names, or module:function); default: the agent's."""
    writing: _WRITING = field(default_factory=Writing)

    def run(self) -> int:
        kind = kind_of(find_agent(self.agent))
        if kind == "policy":
            from lmdiff.evaluation.policy_commands import evaluate_policy

            others = "phrases", "projection_steps", "role", "ogbench_episodes", "reward", "writing"
            _refuse(self, "is a policy", *others)
            return evaluate_policy(self)
        if self.steps:
            raise UserError(f"{self.agent} is no policy; --steps is not for it.")
        if kind == "text":
            from lmdiff.evaluation.text_commands import evaluate_text

            control = "phrases", "guidance_scale", "projection_steps", "role", "ogbench_episodes"
            _refuse(self, "writes text", *control)
            return evaluate_text(self)
        from lmdiff.evaluation.commands import evaluate

        _refuse(self, "acts", "reward", "writing")
        return evaluate(self)


@dataclass(frozen=True)
class Bench:
    """Time plans, actions, training steps, checkpoints, ranks; policies; text RL, generation."""

    what: Annotated[
        Literal[
            "plan",
            "action",
            "train",
            "policy-step",
            "policy-action",
            "text-memory",
            "text-step",
            "generate",
            "checkpoint",
            "ranks",
        ],
        tyro.conf.Positional,
    ] = "plan"
    agent: str = ""
    """A trained agent, or (plan, action, train; by default pointmaze-medium) the name of one to
    build untrained: weights do not change the times. Of `generate`: a trained Sudoku agent, for
    its quality as well; by default fresh weights, for speed alone. Of `ranks`: the one to train;
    by default all that a CPU trains."""
    repeats: int | None = None
    """Default: 50; of the text benches and policy-step 7, of checkpoint 10, of ranks 3."""
    output: Path | None = None
    """Write the figures here too, as a file for docs/results."""
    json: bool = False

    def run(self) -> int:
        from lmdiff.evaluation.bench import bench

        return bench(self)


def _refuse(command: Run | Eval, kind: str, *options: str) -> None:
    """Refuse options that mean nothing to an agent of this kind, rather than ignore them."""
    usual = type(command)(agent="")
    for name in options:
        given, default = getattr(command, name), getattr(usual, name)
        if given == default:
            continue
        if isinstance(given, Writing):
            name = next(f.name for f in fields(Writing) if getattr(given, f.name) != f.default)
        raise UserError(f"{command.agent} {kind}; --{name.replace('_', '-')} is not for it.")


@dataclass(frozen=True)
class Doctor:
    """Does training work on this machine? Tries ranks, a crash and speed; says what mends it."""

    json: bool = False
    """Print one JSON object as the last line."""

    def run(self) -> int:
        from lmdiff.doctor import doctor

        return doctor(self.json)

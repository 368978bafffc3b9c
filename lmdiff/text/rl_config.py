"""Settings of reinforcement learning of text. Names and meaning are TRL's where TRL has them.

The defaults are the careful recipe: one update a batch of roll-outs, one token a denoising step, a
low learning rate. Nothing heavy is imported here, so that `lmdiff --help` answers at once.
"""

from dataclasses import dataclass
from typing import Literal

from lmdiff.errors import UserError
from lmdiff.ranges import (
    Count,
    Finite,
    Fraction,
    Natural,
    NonNegative,
    Positive,
    Seed,
    Share,
    check_ranges,
)


@dataclass(frozen=True, kw_only=True)
class TextRLSettings:
    """What is particular to RL; an agent's recipe has it as [rl]."""

    reward_weights: tuple[Finite, ...] | None = None
    """One a function; 1 each by default."""
    reward_time_limit: Positive = 60.0
    """Seconds for one call of one function."""
    on_reward_error: Literal["stop", "drop"] = "stop"
    """When a reward raises, hangs or is NaN: stop with a clear error (the last checkpoint stays),
    or leave these samples out, count them, and go on."""

    num_generations: Count = 8
    """Completions of each prompt, which are compared with each other."""
    num_iterations: Count = 1
    """Updates on each batch of roll-outs (mu). More than one trains off-policy."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """Advantages are divided by the rewards' standard deviation over this."""
    baseline: Literal["mean", "leave-one-out", "none"] = "mean"
    """What is subtracted from a reward: its group's mean (GRPO), that of the others (RLOO), or
    nothing, so that texts are only ever made more likely (RAFT)."""
    temperature: NonNegative = 1.0
    """Of the tokens in roll-outs."""
    num_inference_steps: Count | None = None
    """Denoising steps of a roll-out; by default one token a step."""
    threshold: NonNegative | None = None
    """Roll-outs write all tokens in a step that are more probable than this (SamplingSettings):
    fewer model calls, the more the surer the model is. By default as the pipeline has it."""
    block_length: Count | None = None
    """Roll-outs fill blocks of so many tokens from left to right; by default the whole at once."""
    order: Literal["confidence", "entropy", "random", "left_to_right"] = "confidence"
    """Which places roll-outs write first."""

    estimator: str = "elbo"
    """Of likelihoods: mean-field, coupled, elbo, elbo-bernoulli, elbo-antithetic,
    elbo-complementary, elbo-blocks, gauss-legendre or trace (lmdiff/algos/likelihood.py)."""
    samples: Count = 4
    """Monte Carlo samples of it (masks); they cost time, but no memory."""
    objective: str = "bgpo"
    """token-ratio, sequence-ratio, bgpo, spg, wd1 or preference (lmdiff/algos/policy_loss.py)."""
    epsilon: Fraction = 0.2
    """Clipping of ratios."""
    epsilon_high: NonNegative | None = None
    """Clipping from above, if it is another."""
    delta: Positive | None = None
    """Two-sided clipping (above 1 + epsilon_high), if given."""
    token_mean: Literal["sequence", "token", "constant"] = "token"
    """How token-ratio averages: over each sequence (TRL's `grpo`), over all tokens (`dapo`), or
    with a constant (`dr_grpo`)."""
    divide_by_length: bool | None = None
    """Whether estimates of sequences are divided by their length; by default as the papers do."""
    beta: NonNegative = 0.0
    """Weight of the KL to the reference model (the initial one; with LoRA, the one without it)."""
    kl: Literal["k1", "k2", "k3"] = "k2"
    """Its estimator."""
    spg_mixture: Share = 0.5
    spg_beta: Positive = 1.5
    wd1_psi: Positive = 1.0
    preference_beta: Positive = 0.1
    prompt_mask_rate: Share = 0.15
    """Share of prompt tokens that mean-field hides (d1)."""
    segments: Count = 16
    """Runs of steps into which trace merges a roll-out."""
    kept_segments: Count | None = None
    """How many of them trace evaluates, drawn at random; all by default."""
    recompute: bool = True
    """Memory that does not grow with `samples`, for one more forward each. False is faster, and
    keeps the activations of all samples."""

    shuffle_dataset: bool = True
    log_completions: bool = False
    """Print a table of completions whenever metrics are logged."""
    num_completions_to_print: Count | None = None
    """How many of them, in the table and in completions.jsonl; one group by default."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.num_generations < 2:
            raise UserError(
                f"num_generations = {self.num_generations}: completions of one prompt are compared "
                "with each other, so that two are the least."
            )
        if self.temperature == 0:
            raise UserError(
                f"temperature = {self.temperature}: without chance all completions of a prompt are "
                "the same, and nothing can be learnt from comparing them."
            )
        high = 1 + (self.epsilon if self.epsilon_high is None else self.epsilon_high)
        if self.delta is not None and self.delta <= high:
            raise UserError(
                f"delta = {self.delta}: it must be above 1 + epsilon_high = {high:g}, where the "
                "usual clipping begins."
            )
        if self.num_iterations > 1 and self.objective == "preference":
            raise UserError(
                "preference takes no ratio to the policy that sampled, so more than one update on "
                "the same roll-outs only fits their noise: set num_iterations = 1."
            )
        if self.kept_segments is not None and not 1 <= self.kept_segments <= self.segments:
            raise UserError(
                f"kept_segments = {self.kept_segments}: choose from 1 to segments = "
                f"{self.segments}."
            )


@dataclass(frozen=True, kw_only=True)
class TextRLConfig(TextRLSettings):
    """All settings of a `TextRLTrainer`: RL's, and those of the training loop."""

    output_dir: str = "runs/text-rl"
    """Gets checkpoints, metrics.jsonl, completions.jsonl and run.json."""
    max_completion_length: Count = 256
    """Tokens of a completion."""
    max_steps: Count = 500
    """Updates of the weights."""
    learning_rate: Positive = 5e-5
    lr_scheduler_type: Literal["constant_with_warmup", "cosine", "linear"] = "constant_with_warmup"
    warmup_steps: Natural = 0
    weight_decay: NonNegative = 0.0
    max_grad_norm: NonNegative = 1.0
    per_device_train_batch_size: Count = 128
    """Completions (not prompts) a process and forward: whole groups of num_generations."""
    gradient_accumulation_steps: Count = 1
    """Batches an update, each with its own roll-outs."""
    ema_decay: Fraction = 0.0
    """Average of the weights that is evaluated and saved; 0: the present weights."""
    bf16: bool = False
    torch_compile: bool = False
    seed: Seed = 0
    logging_steps: Count = 10
    save_steps: Natural = 50
    save_total_limit: Count = 2
    eval_steps: Natural = 0
    """Steps between evaluations; 0: after the last one only."""
    report_to: Literal["none", "tensorboard", "trackio", "wandb"] = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        batch, group = self.per_device_train_batch_size, self.num_generations
        if batch % group:
            raise UserError(
                f"per_device_train_batch_size = {batch} completions are not whole groups of "
                f"num_generations = {group}: choose {max(batch // group, 1) * group}."
            )
        if self.max_steps % self.num_iterations:
            whole = max(self.max_steps // self.num_iterations, 1) * self.num_iterations
            raise UserError(
                f"max_steps = {self.max_steps} is not a whole number of batches of num_iterations "
                f"= {self.num_iterations} updates: choose {whole}."
            )

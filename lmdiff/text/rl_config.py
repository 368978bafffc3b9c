"""Settings of reinforcement learning of text. Names and meaning are TRL's where TRL has them.

The defaults are the careful recipe: one update a batch of roll-outs, one token a denoising step, a
low learning rate. Nothing heavy is imported here, so that `lmdiff --help` answers at once.
"""

from dataclasses import dataclass
from typing import Literal

from lmdiff.errors import UserError


@dataclass(frozen=True, kw_only=True)
class TextRLSettings:
    """What is particular to RL; an agent's recipe has it as [rl]."""

    reward_weights: tuple[float, ...] | None = None
    """One a function; 1 each by default."""
    reward_time_limit: float = 60.0
    """Seconds for one call of one function."""
    on_reward_error: Literal["stop", "drop"] = "stop"
    """When a reward raises, hangs or is NaN: stop with a clear error (the last checkpoint stays),
    or leave these samples out, count them, and go on."""

    num_generations: int = 8
    """Completions of each prompt, which are compared with each other."""
    num_iterations: int = 1
    """Updates on each batch of roll-outs (mu). More than one trains off-policy."""
    scale_rewards: Literal["group", "batch", "none"] = "group"
    """Advantages are divided by the rewards' standard deviation over this."""
    baseline: Literal["mean", "leave-one-out", "none"] = "mean"
    """What is subtracted from a reward: its group's mean (GRPO), that of the others (RLOO), or
    nothing, so that texts are only ever made more likely (RAFT)."""
    temperature: float = 1.0
    """Of the tokens in roll-outs."""
    num_inference_steps: int | None = None
    """Denoising steps of a roll-out; by default one token a step."""
    threshold: float | None = None
    """Roll-outs write all tokens in a step that are more probable than this (SamplingSettings):
    fewer model calls, the more the surer the model is. By default as the pipeline has it."""
    block_length: int | None = None
    """Roll-outs fill blocks of so many tokens from left to right; by default the whole at once."""
    order: Literal["confidence", "entropy", "random", "left_to_right"] = "confidence"
    """Which places roll-outs write first."""

    estimator: str = "elbo"
    """Of likelihoods: mean-field, coupled, elbo, elbo-bernoulli, elbo-antithetic,
    elbo-complementary, elbo-blocks, gauss-legendre or trace (lmdiff/algos/likelihood.py)."""
    samples: int = 4
    """Monte Carlo samples of it (masks); they cost time, but no memory."""
    objective: str = "bgpo"
    """token-ratio, sequence-ratio, bgpo, spg, wd1 or preference (lmdiff/algos/policy_loss.py)."""
    epsilon: float = 0.2
    """Clipping of ratios."""
    epsilon_high: float | None = None
    """Clipping from above, if it is another."""
    delta: float | None = None
    """Two-sided clipping (above 1 + epsilon_high), if given."""
    token_mean: Literal["sequence", "token", "constant"] = "token"
    """How token-ratio averages: over each sequence (TRL's `grpo`), over all tokens (`dapo`), or
    with a constant (`dr_grpo`)."""
    divide_by_length: bool | None = None
    """Whether estimates of sequences are divided by their length; by default as the papers do."""
    beta: float = 0.0
    """Weight of the KL to the reference model (the initial one; with LoRA, the one without it)."""
    kl: Literal["k1", "k2", "k3"] = "k2"
    """Its estimator."""
    spg_mixture: float = 0.5
    spg_beta: float = 1.5
    wd1_psi: float = 1.0
    preference_beta: float = 0.1
    prompt_mask_rate: float = 0.15
    """Share of prompt tokens that mean-field hides (d1)."""
    segments: int = 16
    """Runs of steps into which trace merges a roll-out."""
    kept_segments: int | None = None
    """How many of them trace evaluates, drawn at random; all by default."""
    recompute: bool = True
    """Memory that does not grow with `samples`, for one more forward each. False is faster, and
    keeps the activations of all samples."""

    shuffle_dataset: bool = True
    log_completions: bool = False
    """Print a table of completions whenever metrics are logged."""
    num_completions_to_print: int | None = None
    """How many of them, in the table and in completions.jsonl; one group by default."""

    def __post_init__(self) -> None:
        at_least_one = ("num_iterations", "samples", "segments")
        for name in at_least_one:
            if vars(self)[name] < 1:
                raise UserError(f"{name} = {vars(self)[name]}: one is the least.")
        if self.num_generations < 2:
            raise UserError(
                f"num_generations = {self.num_generations}: completions of one prompt are compared "
                "with each other, so that two are the least."
            )
        if self.temperature <= 0:
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
    max_completion_length: int = 256
    """Tokens of a completion."""
    max_steps: int = 500
    """Updates of the weights."""
    learning_rate: float = 5e-5
    lr_scheduler_type: Literal["constant_with_warmup", "cosine", "linear"] = "constant_with_warmup"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    per_device_train_batch_size: int = 128
    """Completions (not prompts) a process and forward: whole groups of num_generations."""
    gradient_accumulation_steps: int = 1
    """Batches an update, each with its own roll-outs."""
    ema_decay: float = 0.0
    """Average of the weights that is evaluated and saved; 0: the present weights."""
    bf16: bool = False
    torch_compile: bool = False
    seed: int = 0
    logging_steps: int = 10
    save_steps: int = 50
    save_total_limit: int = 2
    eval_steps: int = 0
    """Steps between evaluations; 0: after the last one only."""
    report_to: Literal["none", "tensorboard", "trackio", "wandb"] = "none"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("max_completion_length", "max_steps", "gradient_accumulation_steps"):
            if vars(self)[name] < 1:
                raise UserError(f"{name} = {vars(self)[name]}: one is the least.")
        batch, group = self.per_device_train_batch_size, self.num_generations
        if batch < 1 or batch % group:
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

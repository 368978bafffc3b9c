"""What RL of text trains, behind one forward: estimates of likelihood, an objective, one loss.

The loop calls backward once, and still one sample's graph is alive at a time (two_pass.recomputed).
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
from peft import PeftModel
from torch import Tensor, nn

from lmdiff.algos.likelihood import DrawOptions, Estimator, sequence_estimates
from lmdiff.algos.policy_loss import PolicyConfig, check_policy, needs_reference, policy_loss
from lmdiff.algos.two_pass import recomputed, values
from lmdiff.denoisers.masked_text import MaskedTextDenoiser, TextBatch
from lmdiff.denoisers.text_models import TextModelSpec
from lmdiff.denoisers.text_noise import TextDraw
from lmdiff.text.rl_config import TextRLConfig


class TextRLBatch(NamedTuple):
    """What one update learns from."""

    x: TextBatch
    draw: TextDraw
    """Masks, the same for the policy, the old policy and the reference."""
    advantages: Tensor
    """[B]"""
    known: Tensor
    """[B] 0 for a sample without a reward: it teaches nothing."""
    old: Tensor | None
    """[S, B, P + L] log-probabilities under the policy that sampled; None: the present one did."""
    figures: dict[str, float]
    """Of the roll-out; passed on to the log."""


def policy_config(args: TextRLConfig) -> PolicyConfig:
    """The settings that the loss needs."""
    return PolicyConfig(
        estimator=args.estimator,
        samples=args.samples,
        objective=args.objective,  # type: ignore[arg-type]  (check_policy knows the names)
        group_size=args.num_generations,
        epsilon=args.epsilon,
        epsilon_high=args.epsilon_high,
        delta=args.delta,
        divide_by_length=args.divide_by_length,
        token_mean=args.token_mean,
        beta=args.beta,
        kl=args.kl,
        spg_mixture=args.spg_mixture,
        spg_beta=args.spg_beta,
        wd1_psi=args.wd1_psi,
        preference_beta=args.preference_beta,
    )


class TextRLModule(nn.Module):
    """A policy with its loss.

    Args:
        model: the language model; it is put into eval mode, since dropout would make the policy
            that is trained another one than the policy that sampled.
        spec: its conventions.
        args: which loss.
        reference: what the KL is to; None, if it is not needed or if `model` is a PEFT model,
            whose reference is itself without adapters.
    """

    num_tokens: Tensor

    def __init__(
        self,
        model: nn.Module,
        spec: TextModelSpec,
        args: TextRLConfig,
        reference: nn.Module | None = None,
    ):
        super().__init__()
        self.config = policy_config(args)
        self.estimator: Estimator = check_policy(self.config)
        self.args = args
        self.policy = MaskedTextDenoiser(model, spec)
        self.reference = None if reference is None else MaskedTextDenoiser(reference, spec)
        # Tokens seen so far: it goes into checkpoints.
        self.register_buffer("num_tokens", torch.zeros((), dtype=torch.long))
        self.eval()

    def draw(self, x: TextBatch, step_map: Tensor, generator: torch.Generator) -> TextDraw:
        """Masks for an update; `generator` is on the device of `x`."""
        args = self.args
        options = DrawOptions(
            samples=args.samples,
            prompt_mask_rate=args.prompt_mask_rate,
            block_length=args.block_length or args.max_completion_length,
            segments=args.segments,
            kept_segments=args.kept_segments,
            step_map=step_map,
        )
        return self.estimator.draw(x, options, generator)

    @torch.no_grad()
    def table(self, x: TextBatch, draw: TextDraw) -> Tensor:
        """[S, B, P + L] log-probabilities under the present weights, without a graph."""
        return values(lambda sample: self.policy.log_probs(x, draw, sample), len(draw))

    def forward(self, batch: TextRLBatch, generator: torch.Generator) -> dict[str, Tensor]:
        """The loss of one batch and its figures, under TRL's names."""
        x, draw = batch.x, batch.draw

        def evaluate(sample: int) -> Tensor:
            return self.policy.log_probs(x, draw, sample)

        if self.args.recompute and torch.is_grad_enabled():
            table = recomputed(evaluate, len(draw))
        else:
            table = torch.stack([evaluate(sample) for sample in range(len(draw))])
        result = policy_loss(
            self.config,
            table,
            draw,
            batch.advantages,
            x.completion_mask,
            batch.old,
            self._reference_table(x, draw),
        )
        loss = (result.loss * batch.known).mean()
        clipped_low, clipped_high = result.clipped_low.mean(), result.clipped_high.mean()
        out = {
            "loss": loss,
            "ratio/mean": result.ratio.mean(),
            "ratio/max": result.ratio.max(),
            "clip_ratio/low_mean": clipped_low,
            "clip_ratio/high_mean": clipped_high,
            "clip_ratio/region_mean": clipped_low + clipped_high,
        }
        if needs_reference(self.config):
            out["kl"] = result.kl.mean()
        if self.estimator.is_bound:
            # Of the policy's own samples: an estimate, from above, of its entropy a token.
            nats = -sequence_estimates(table.detach(), draw).sum()
            out["entropy"] = nats / x.completion_mask.sum().clamp_min(1)
        for name, value in batch.figures.items():
            out[name] = loss.new_tensor(value)
        return out

    @torch.no_grad()
    def _reference_table(self, x: TextBatch, draw: TextDraw) -> Tensor | None:
        if not needs_reference(self.config):
            return None
        denoiser = self.policy if self.reference is None else self.reference
        with _without_adapters(denoiser.model):
            return values(lambda sample: denoiser.log_probs(x, draw, sample), len(draw))


@contextmanager
def _without_adapters(model: nn.Module) -> Iterator[None]:
    with model.disable_adapter() if isinstance(model, PeftModel) else nullcontext():
        yield

"""`lmdiff bench text-step`: seconds of loss and backward of text RL, beside the peers' formulas.

The reference computes what d1 and ESPO compute (mean field, arXiv:2504.12216; complementary masks,
ICLR 2026) as they do: the logits of every place, all copies in one graph. Both run in turn in one
process, on one thread, on the same masks; their losses are compared before they are timed. They
are timed as torch computes fp32 by itself, and as lmdiff trains: fp32 by oneDNN, or bf16 with
attention of single operations. The peers' way is timed so as well.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import BertForMaskedLM

from lmdiff.algos.likelihood import DrawOptions
from lmdiff.algos.policy_loss import PolicyConfig, check_policy, policy_loss
from lmdiff.algos.two_pass import recomputed
from lmdiff.denoisers.masked_text import MaskedTextDenoiser, TextBatch
from lmdiff.denoisers.text_models import bert_model, bert_spec
from lmdiff.denoisers.text_noise import TextDraw
from lmdiff.errors import UserError
from lmdiff.training.precision import fast_fp32

PAD, MASK = 0, 1
PRECISIONS = ("fp32", "fp32, our products", "bf16, plain attention")
_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Size:
    """A BERT with fresh weights, and a batch for it: 3.7M parameters, as peers were measured."""

    hidden: int = 256
    layers: int = 4
    heads: int = 4
    vocabulary: int = 1024
    batch: int = 8
    prompt: int = 64
    completion: int = 128

    def model(self) -> BertForMaskedLM:
        """With weights of seed 0."""
        torch.manual_seed(0)
        length = max(256, self.prompt + self.completion)
        return bert_model(self.vocabulary, PAD, length, self.hidden, self.layers, self.heads)

    def texts(self) -> TextBatch:
        """Random tokens of seed 0; no padding."""
        shape = self.batch, self.prompt + self.completion
        ids = torch.randint(2, self.vocabulary, shape, generator=torch.Generator().manual_seed(0))
        everywhere = torch.ones(shape, dtype=torch.bool)
        completion = everywhere.clone()
        completion[:, : self.prompt] = False
        return TextBatch(ids, everywhere, completion)

    def advantages(self) -> Tensor:
        """[B] of seed 0, with mean 0."""
        drawn = torch.randn(self.batch, generator=torch.Generator().manual_seed(0))
        return drawn - drawn.mean()


class Case(NamedTuple):
    """One estimator and objective, and the loss of a batch in several ways."""

    method: str
    losses: dict[str, Callable[[], Tensor]]
    """Ways to compute one and the same loss; the first is the reference."""


def cases(denoiser: MaskedTextDenoiser, size: Size) -> list[Case]:
    """d1's step and ESPO's step, as the peers compute them and as lmdiff does."""
    d1 = PolicyConfig(
        estimator="mean-field", objective="token-ratio", samples=1, epsilon=0.5, group_size=1
    )
    espo = PolicyConfig(
        estimator="elbo-complementary", objective="sequence-ratio", samples=2, group_size=1
    )
    named = (("mean-field (d1)", d1), ("elbo-complementary, 2 samples (ESPO)", espo))
    return [Case(method, _ways(denoiser, size, config)) for method, config in named]


def _ways(
    denoiser: MaskedTextDenoiser, size: Size, config: PolicyConfig
) -> dict[str, Callable[[], Tensor]]:
    x, advantages = size.texts(), size.advantages()
    draw = check_policy(config).draw(
        x, DrawOptions(config.samples), torch.Generator().manual_seed(1)
    )

    def evaluate(sample: int) -> Tensor:
        return denoiser.log_probs(x, draw, sample)

    def loss(table: Tensor) -> Tensor:
        return policy_loss(config, table, draw, advantages, x.completion_mask).loss.mean()

    reference = _d1_loss if config.objective == "token-ratio" else _espo_loss
    return {
        "peers' way": lambda: reference(denoiser.model, x, draw, advantages, config.epsilon),
        "lmdiff, one graph": lambda: loss(torch.stack([evaluate(s) for s in range(len(draw))])),
        "lmdiff, one sample's memory": lambda: loss(recomputed(evaluate, len(draw))),
    }


def _all_log_probs(model: Callable[..., Any], x: TextBatch, mask: Tensor) -> Tensor:
    """[B, L'] of the completion's tokens, from the logits of all places."""
    seen = torch.where(mask, MASK, x.ids)
    logits = model(input_ids=seen, attention_mask=x.attention_mask.long()).logits
    start = int(x.completion_mask[0].int().argmax())
    logits, targets = logits[:, start:], x.ids[:, start:]
    logits = logits.float().masked_fill(torch.arange(logits.shape[-1]) == MASK, float("-inf"))
    return -F.cross_entropy(logits.transpose(1, 2), targets, reduction="none")


def _d1_loss(
    model: Callable[..., Any], x: TextBatch, draw: TextDraw, advantages: Tensor, epsilon: float
) -> Tensor:
    log_probs = _all_log_probs(model, x, draw.masks[0])
    ratio = (log_probs - log_probs.detach()).exp()
    bounded = ratio.clamp(1 - epsilon, 1 + epsilon)
    return -torch.minimum(ratio * advantages[:, None], bounded * advantages[:, None]).mean()


def _espo_loss(
    model: Callable[..., Any], x: TextBatch, draw: TextDraw, advantages: Tensor, epsilon: float
) -> Tensor:
    length = int(x.lengths[0])
    elbo = torch.zeros(len(advantages))
    for mask in draw.masks:  # S masks, then their complements
        log_probs = _all_log_probs(model, x, mask)
        masked = mask[:, -length:]
        scale = (length + 1) / masked.sum(-1).clamp_min(1)
        elbo = elbo + scale * (log_probs * masked).sum(-1) / len(draw)
    ratio = ((elbo - elbo.detach()) / length).exp()
    bounded = ratio.clamp(1 - epsilon, 1 + epsilon)
    return -torch.minimum(ratio * advantages, bounded * advantages).mean()


Table = tuple[str, dict[str, str], list[dict[str, Any]]]
"""A result's title, columns and rows (see results.py)."""

COLUMNS = {
    "method": "method",
    "way": "computed",
    "precision": "precision",
    "cpu": "CPU time",
    "wall": "wall time",
    "ratio": "CPU time against the peers' way in fp32",
}


def text_step(repeats: int, size: Size | None = None) -> Table:
    """Median and middle half of CPU and wall seconds, each way in turn.

    Raises:
        UserError: the ways do not compute one loss and gradient; then their times mean nothing.
    """
    size = size or Size()
    model = size.model()
    denoiser = MaskedTextDenoiser(model, bert_spec(model, MASK))
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    rows = []
    for method, losses in cases(denoiser, size):
        difference = _difference(model, losses)
        if difference > 1e-5:
            raise UserError(f"{method}: the gradients differ by {difference:.1e} of their norm.")
        runs = {
            (way, precision): _step(model, loss, precision)
            for precision in PRECISIONS
            for way, loss in losses.items()
        }
        timed = in_turn(list(runs.values()), repeats)
        for (way, precision), seconds in zip(runs, timed, strict=True):
            rows.append(
                {
                    "method": method,
                    "way": way,
                    "precision": precision,
                    "cpu": quartiles(seconds.cpu, "s"),
                    "wall": quartiles(seconds.wall, "s"),
                    "ratio": quartiles(
                        [a / b for a, b in zip(seconds.cpu, timed[0].cpu, strict=True)], "x"
                    ),
                    "difference": difference if precision == "fp32" else None,
                }
            )
    title = (
        f"Loss and backward of text RL, one thread: BERT of {parameters:.1f}M parameters, "
        f"batch {size.batch}, prompt {size.prompt}, completion {size.completion}"
    )
    return title, COLUMNS, rows


def _step(
    model: BertForMaskedLM, loss: Callable[[], Tensor], precision: str
) -> Callable[[], object]:
    bf16, ours = precision == PRECISIONS[2], precision == PRECISIONS[1]

    def run() -> None:
        model.zero_grad(set_to_none=True)
        model.set_attn_implementation("eager" if bf16 else "sdpa")
        with fast_fp32(_CPU) if ours else nullcontext():
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                value = loss()
            value.backward()

    return run


def _difference(model: BertForMaskedLM, losses: dict[str, Callable[[], Tensor]]) -> float:
    """Largest distance of a way's gradient from the reference's, by the latter's norm."""
    gradients = []
    for loss in losses.values():
        model.zero_grad(set_to_none=True)
        loss().backward()
        gradients.append(
            torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        )
    model.zero_grad(set_to_none=True)
    first = gradients[0]
    return max(((other - first).norm() / first.norm()).item() for other in gradients[1:])


class Seconds(NamedTuple):
    """One run's times, by repeats."""

    cpu: list[float]
    """Of this process, which other load does not lengthen much."""
    wall: list[float]


def in_turn(runs: Sequence[Callable[[], object]], repeats: int) -> list[Seconds]:
    """Time several things one after the other, again and again: what disturbs one disturbs all."""
    for run in runs:
        run()
    times = [Seconds([], []) for _ in runs]
    for _ in range(repeats):
        for run, seconds in zip(runs, times, strict=True):
            cpu, wall = time.process_time(), time.perf_counter()
            run()
            seconds.cpu.append(time.process_time() - cpu)
            seconds.wall.append(time.perf_counter() - wall)
    return times


def quartiles(values: Sequence[float], unit: str) -> dict[str, Any]:
    """Median and middle half."""
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
    return {"mean": median, "low": low, "high": high, "unit": unit}

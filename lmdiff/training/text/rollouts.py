"""Roll-outs of text: prompts, completions of them, rewards, advantages.

Everything is a pure function of the weights and of (seed, shard), so that a resumed run
repeats its roll-outs instead of storing them.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lmdiff.algos.advantages import group_advantages
from lmdiff.denoisers.masked_text import TextBatch
from lmdiff.pipelines.text_pipeline import TextPipeline
from lmdiff.text.prompts import Row
from lmdiff.text.rewards import RewardFunction, RewardSettings, Scores, score
from lmdiff.text.rl_config import TextRLConfig
from lmdiff.text.tasks import columns_of
from lmdiff.text.tokenizer import end_id
from lmdiff.training.seeds import ROLLOUT, SHUFFLE, derived_seed


@dataclass(frozen=True)
class Rollout:
    """B completions; those of one prompt follow each other."""

    prompts: list[Any]
    completions: list[str]
    x: TextBatch
    """Tokens of both. Places that the sampler left open, after the end, hold the mask token and
    belong to no completion: the likelihood is that of what was written, seen as it was written."""
    step_map: Tensor
    """[B, P + L] the step at which each token was written."""
    scores: Scores
    advantages: Tensor
    """[B]; 0 where no reward is known."""
    known: Tensor
    """[B] 1 where a reward is known, else 0."""
    tokens: int
    """Of prompts and completions."""
    figures: dict[str, float] = field(default_factory=dict)
    """What is logged, under TRL's names; NaN where there is nothing to tell."""


class PromptOrder:
    """Which rows a batch is made of: epoch after epoch, each in an order of its own."""

    def __init__(self, rows: int, seed: int, shuffle: bool):
        self.rows, self.seed, self.shuffle = rows, seed, shuffle

    def __call__(self, first: int, count: int) -> list[int]:
        """Rows number `first` to `first + count` of the endless sequence."""
        epochs = {at // self.rows for at in range(first, first + count)}
        orders = {epoch: self._epoch(epoch) for epoch in epochs}
        return [
            orders[at // self.rows][at % self.rows].item() for at in range(first, first + count)
        ]

    def _epoch(self, epoch: int) -> np.ndarray:
        if not self.shuffle:
            return np.arange(self.rows)
        seed = derived_seed(self.seed, epoch, 0, SHUFFLE)
        return np.random.default_rng(seed).permutation(self.rows)


class Rollouts:
    """Makes roll-outs with the present weights of a pipeline.

    Args:
        pipe: prompts to texts.
        rows: the prompts and their other columns, which rewards receive.
        rewards: from `load_rewards`.
        args: how.
    """

    def __init__(
        self,
        pipe: TextPipeline,
        rows: Sequence[Row],
        rewards: Mapping[str, RewardFunction],
        args: TextRLConfig,
    ):
        self.pipe, self.rows, self.rewards, self.args = pipe, rows, rewards, args
        self.order = PromptOrder(len(rows), args.seed, args.shuffle_dataset)

    def __call__(self, shard: int) -> Rollout:
        """Roll-out number `shard`, the same whichever process makes it.

        Raises:
            RewardFailure: a reward failed, and the run is to stop then.
        """
        args, group = self.args, self.args.num_generations
        count = args.per_device_train_batch_size // group
        chosen = self.order(shard * count, count)
        rows = [self.rows[i] for i in chosen for _ in range(group)]
        seed = derived_seed(args.seed, shard, 0, ROLLOUT)
        prompts = [row["prompt"] for row in rows]
        out = self.pipe(
            prompts,
            generation_length=args.max_completion_length,
            num_inference_steps=args.num_inference_steps or args.max_completion_length,
            block_length=args.block_length or args.max_completion_length,
            order=args.order,
            temperature=args.temperature,
            threshold=args.threshold,
            generator=torch.Generator().manual_seed(seed),
        )
        scores = score_rows(self.rewards, rows, out.text, args)
        x, step_map = _texts(self.pipe, prompts, out.ids, out.step_map)
        rewards = torch.tensor([math.nan if r is None else r for r in scores.total])
        advantages = group_advantages(rewards, group, args.baseline, args.scale_rewards)
        written = int(x.completion_mask.sum())
        end = end_id(self.pipe.tokenizer)
        ended = torch.zeros(len(rows)) if end is None else (out.ids == end).any(1).float()
        lengths = out.lengths.float()
        figures = {
            **reward_figures(scores, group),
            "completions/mean_length": lengths.mean().item(),
            "completions/min_length": lengths.min().item(),
            "completions/max_length": lengths.max().item(),
            "completions/clipped_ratio": 1 - ended.mean().item(),
            "tokens_per_step": written / max(out.row_forwards, 1),
        }
        device = x.ids.device
        return Rollout(
            prompts=prompts,
            completions=out.text,
            x=x,
            step_map=step_map,
            scores=scores,
            advantages=advantages.to(device),
            known=(~rewards.isnan()).to(device, torch.float32),
            tokens=int(x.attention_mask.sum()) - len(rows) * out.ids.shape[1] + int(lengths.sum()),
            figures=figures,
        )


def score_rows(
    rewards: Mapping[str, RewardFunction],
    rows: Sequence[Row],
    texts: Sequence[str],
    args: TextRLConfig,
) -> Scores:
    """Rewards of completions; a conversation's completion is a message, as with TRL."""
    return score(
        rewards,
        [row["prompt"] for row in rows],
        [
            text if isinstance(row["prompt"], str) else [{"role": "assistant", "content": text}]
            for row, text in zip(rows, texts, strict=True)
        ],
        columns_of(rows),
        args.reward_weights,
        RewardSettings(args.reward_time_limit, args.on_reward_error),
    )


def reward_figures(scores: Scores, group: int) -> dict[str, float]:
    """Means and deviations of rewards, under TRL's names."""
    figures: dict[str, float] = {}
    for name, values in scores.by_function.items():
        given = np.array([v for v in values if v is not None])
        figures[f"rewards/{name}/mean"] = given.mean().item() if len(given) else math.nan
        figures[f"rewards/{name}/std"] = given.std(ddof=1).item() if len(given) > 1 else math.nan
        figures[f"rewards/{name}/dropped"] = float(scores.dropped.get(name, 0))
    total = np.array([math.nan if v is None else v for v in scores.total])
    groups = [part[~np.isnan(part)] for part in total.reshape(-1, group)]
    spreads = [part.std(ddof=1) for part in groups if len(part) > 1]
    known = total[~np.isnan(total)]
    figures["reward"] = known.mean().item() if len(known) else math.nan
    figures["reward_std"] = float(np.mean(spreads)) if spreads else math.nan
    equal = [float(np.ptp(part) == 0) for part in groups if len(part) > 0]
    figures["frac_reward_zero_std"] = float(np.mean(equal)) if equal else math.nan
    return figures


def _texts(
    pipe: TextPipeline, prompts: Sequence[Any], ids: Tensor, step_map: Tensor
) -> tuple[TextBatch, Tensor]:
    prompt_ids, prompt_mask = pipe.encode(prompts)
    written = step_map >= 0
    seen = torch.where(written, ids, pipe.spec.mask_id)
    nothing = torch.zeros_like(prompt_mask)
    x = TextBatch(
        torch.cat([prompt_ids, seen], 1),
        torch.cat([prompt_mask, torch.ones_like(written)], 1),
        torch.cat([nothing, written], 1),
    )
    return x, torch.cat([torch.zeros_like(prompt_ids), step_map.clamp_min(0)], 1)

"""`lmdiff bench generate`: tokens a second of TextPipeline beside diffusers' LLaDA2Pipeline.

The same model, prompts and machine, in turn. With fresh weights only the cost of a model call can
be compared: all samplers then make the same number of calls (blocks of 32, 16 calls each). With a
trained Sudoku agent they may also make fewer, and the share of puzzles solved says what that costs.
"""

from collections.abc import Callable
from typing import Any

import torch
from diffusers import BlockRefinementScheduler, LLaDA2Pipeline
from torch import Tensor

from lmdiff.denoisers.text_models import bert_model, bert_spec
from lmdiff.errors import UserError
from lmdiff.evaluation.bench_text import Size, Table, in_turn, quartiles
from lmdiff.evaluation.intervals import wilson
from lmdiff.pipelines.text_pipeline import TextPipeline
from lmdiff.text.sudoku import CELLS, is_solved, puzzles
from lmdiff.text.tokenizer import SPECIAL, char_tokenizer, decode_completion

COLUMNS = {
    "sampler": "sampler",
    "settings": "settings",
    "forwards": "model calls a text",
    "tokens": "tokens / s of CPU time",
    "wall": "tokens / s",
    "ratio": "against LLaDA2Pipeline",
}
BLANKS = 4, 8
"""Least and most empty cells of the puzzles: those of agents/sudoku-sft.toml."""
Sample = Callable[[], Tensor]
"""-> [B, L] completions."""


class Calls:
    """Counts the rows that go through a model."""

    def __init__(self, model: torch.nn.Module):
        self.rows = 0
        self._handle = model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, model: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        self.rows += len(arguments[0] if arguments else named["input_ids"])

    def close(self) -> None:
        """Stop counting."""
        self._handle.remove()


def _llada2(model: Any, prompts: Tensor, pads: Tensor, mask_id: int, **settings: Any) -> Sample:
    pipe: Any = LLaDA2Pipeline(model, BlockRefinementScheduler())
    pipe.set_progress_bar_config(disable=True)
    usual: dict[str, Any] = {"eos_early_stop": False, "output_type": "seq"}

    def sample() -> Tensor:
        found: Any = pipe(
            input_ids=prompts,
            attention_mask=pads.long(),
            mask_token_id=mask_id,
            **usual | settings,
        )
        return found.sequences

    return sample


def generate_speed(repeats: int, size: Size | None = None) -> Table:
    """Tokens a second with fresh weights: the cost of a model call, by what is left out of it."""
    size = size or Size()
    tokenizer: Any = char_tokenizer(
        "".join(chr(0x4E00 + i) for i in range(size.vocabulary - len(SPECIAL)))
    )
    torch.manual_seed(0)
    model = bert_model(
        len(tokenizer),
        tokenizer.pad_token_id,
        size.prompt + size.completion,
        size.hidden,
        size.layers,
        size.heads,
    ).eval()
    # Neither the end nor what is never an answer: every row is written in full by every sampler.
    model.cls.predictions.bias.data[: len(SPECIAL)] = -1e4
    texts = _random_prompts(size)
    block, steps = size.completion // 4, size.completion // 8
    head = bert_spec(model, tokenizer.mask_token_id).head
    ours = {
        "as LLaDA2Pipeline": TextPipeline(model, tokenizer),
        "+ head at masked places only": TextPipeline(model, tokenizer, head=head),
        "+ prompt once (prefix attention)": TextPipeline(
            model, tokenizer, attention="prefix", head=head
        ),
    }
    prompts, pads = ours["as LLaDA2Pipeline"].encode(texts)
    settings: dict[str, Any] = {
        "generation_length": size.completion,
        "block_length": block,
        "num_inference_steps": 4 * steps,
    }

    def whole(pipe: TextPipeline, hide: bool) -> Sample:
        return lambda: pipe(texts, hide_later_blocks=hide, **settings).ids

    runs: dict[tuple[str, str], Sample] = {
        ("LLaDA2Pipeline", f"blocks of {block}, {4 * steps} steps"): _llada2(
            model,
            prompts,
            pads,
            tokenizer.mask_token_id,
            gen_length=size.completion,
            block_length=block,
            num_inference_steps=steps,
            threshold=2.0,
            editing_threshold=None,
        ),
        ("TextPipeline", "all later masks seen"): whole(ours["as LLaDA2Pipeline"], False),
    }
    runs |= {("TextPipeline", name): whole(pipe, True) for name, pipe in ours.items()}
    title = (
        f"Generation of {size.completion} tokens, prompt {size.prompt}, batch {size.batch}, one "
        f"thread, BERT of {sum(p.numel() for p in model.parameters()) / 1e6:.1f}M fresh parameters"
    )
    return title, COLUMNS, _rows(model, runs, size.batch, repeats)


def _random_prompts(size: Size) -> list[str]:
    generator = torch.Generator().manual_seed(0)
    # A prompt's last token is the separator, which the tokenizer adds.
    shape = size.batch, size.prompt - 1
    letters = torch.randint(size.vocabulary - len(SPECIAL), shape, generator=generator)
    return ["".join(chr(0x4E00 + i) for i in row) for row in letters.tolist()]


def _rows(
    model: torch.nn.Module, runs: dict[tuple[str, str], Sample], texts: int, repeats: int
) -> list[dict[str, Any]]:
    forwards, lengths = [], []
    for sample in runs.values():
        calls = Calls(model)
        lengths.append(sample().shape[1])
        calls.close()
        forwards.append(calls.rows / texts)
    timed = in_turn(list(runs.values()), repeats)
    rows = []
    for index, (sampler, settings) in enumerate(runs):
        seconds, tokens = timed[index], texts * lengths[index]
        first = timed[0].cpu
        rows.append(
            {
                "sampler": sampler,
                "settings": settings,
                "forwards": round(forwards[index], 1),
                "tokens": quartiles([tokens / s for s in seconds.cpu], "/ s"),
                "wall": quartiles([tokens / s for s in seconds.wall], "/ s"),
                "ratio": quartiles([a / b for a, b in zip(first, seconds.cpu, strict=True)], "x"),
            }
        )
    return rows


def generate_sudoku(pipe: TextPipeline, repeats: int, count: int = 128) -> Table:
    """Tokens a second and puzzles solved of a trained Sudoku agent, held-out grids.

    Raises:
        UserError: the agent was trained for something else.
    """
    if pipe.config["task"] != "sudoku":
        raise UserError(f"The agent's task is {pipe.config['task']!r}: give a Sudoku agent.")
    model, tokenizer = pipe.model.eval(), pipe.tokenizer
    texts = [row["prompt"] for row in puzzles("held_out", count, BLANKS, seed=0)]
    prompts, pads = pipe.encode(texts)
    length = CELLS

    def theirs(**settings: Any) -> Sample:
        # Its block grid begins at the prompt's start: the second block is the completion.
        return _llada2(
            model,
            prompts,
            pads,
            pipe.spec.mask_id,
            gen_length=length,
            block_length=prompts.shape[1],
            num_inference_steps=length,
            **settings,
        )

    def ours(**settings: Any) -> Sample:
        return lambda: pipe(texts, generation_length=length, temperature=0.0, **settings).ids

    runs = {
        ("LLaDA2Pipeline", "one token a call"): theirs(threshold=2.0, editing_threshold=None),
        ("LLaDA2Pipeline", "defaults: threshold 0.7, editing"): theirs(),
        ("LLaDA2Pipeline", "threshold 0.9"): theirs(threshold=0.9, editing_threshold=None),
        ("LLaDA2Pipeline", "threshold 0.99"): theirs(threshold=0.99, editing_threshold=None),
        ("TextPipeline", "one token a call"): ours(),
        ("TextPipeline", "threshold 0.9"): ours(threshold=0.9),
        ("TextPipeline", "threshold 0.97"): ours(threshold=0.97),
        ("TextPipeline", "threshold 0.99"): ours(threshold=0.99),
        ("TextPipeline", "entropy bound 0.1"): ours(order="entropy", threshold=0.1),
    }
    rows = _rows(model, runs, count, repeats)
    for row, sample in zip(rows, runs.values(), strict=True):
        written = [decode_completion(tokenizer, ids) for ids in sample().tolist()]
        solved = sum(map(is_solved, texts, written))
        row["solved"] = wilson(solved, count).to_dict()
    title = f"Sudoku 4x4, {count} puzzles of unseen grids in one batch, one thread"
    return title, COLUMNS | {"solved": "solved, %"}, rows

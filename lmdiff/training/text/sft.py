"""Supervised fine-tuning and pre-training of text: batches, and the module that the loop trains.

Both minimise the mean denoising loss of a token (Nie et al., LLaDA, arXiv:2502.09992): SFT masks
completions only, pre-training masks prompts as well.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lmdiff.denoisers import text_draws
from lmdiff.denoisers.masked_text import DrawNoise, MaskedTextDenoiser, TextBatch
from lmdiff.errors import UserError
from lmdiff.pipelines.text_agents import TextModel
from lmdiff.text.config import SFTConfig
from lmdiff.text.prompts import Row
from lmdiff.text.tokenizer import encode_completion, encode_prompt
from lmdiff.training.seeds import EXAMPLES, derived_seed

_NOISE: dict[str, DrawNoise] = {
    "exact_k": text_draws.exact_k_draw,
    "antithetic": text_draws.antithetic_draw,
    "bernoulli": text_draws.bernoulli_draw,
    "complementary": text_draws.complementary_draw,
}


class SFTModule(nn.Module):
    """A `Trainable` (see callbacks.py): nats per token, the mean over texts."""

    shardable = True  # a step is one forward pass of all of it

    def __init__(self, parts: TextModel, config: SFTConfig):
        super().__init__()
        noise = _NOISE[config.noise]
        self.denoiser = MaskedTextDenoiser(parts.model, parts.spec, noise, config.samples)

    def forward(self, batch: TextBatch, generator: torch.Generator) -> dict[str, Tensor]:
        draw = self.denoiser.draw_noise(batch, generator)
        return {"loss": (self.denoiser.loss(batch, None, draw) / batch.lengths).mean()}


class Examples:
    """Texts as tokens, and batches of them as pure functions of seed and shard (ranks.py).

    Args:
        parts: the model and its tokenizer.
        rows: texts; each with a completion, unless `prompts_too`.
        generation_length: tokens of a completion, as they will be sampled.
        most: tokens that the model can take; None if it does not say.
        prompts_too: the loss covers prompts (pre-training).

    Raises:
        UserError: a row without completion, or one that is too long.
    """

    def __init__(
        self,
        parts: TextModel,
        rows: Sequence[Row],
        generation_length: int,
        most: int | None,
        prompts_too: bool = False,
    ):
        self.pad_id = parts.spec.pad_id
        self.texts: list[tuple[list[int], int]] = []
        for number, row in enumerate(rows, 1):
            text = _text(parts, row, number, generation_length, prompts_too)
            if most is not None and len(text[0]) > most:
                raise UserError(
                    f"Row {number} has {len(text[0])} tokens with its completion, and the model "
                    f"can take {most}. Raise --model.max-length if it is fresh, or shorten it."
                )
            self.texts.append(text)

    def __len__(self) -> int:
        return len(self.texts)

    def batch(self, seed: int, shard: int, size: int) -> TextBatch:
        """`size` texts, drawn with replacement, padded on the left as they are sampled."""
        generator = torch.Generator().manual_seed(derived_seed(seed, shard, stream=EXAMPLES))
        chosen = torch.randint(len(self), (size,), generator=generator).tolist()
        return self.collate([self.texts[i] for i in chosen])

    def collate(self, texts: Sequence[tuple[list[int], int]]) -> TextBatch:
        """Texts of (tokens, how many of the last the loss covers) as one batch."""
        width = max(len(ids) for ids, _ in texts)
        padded = [[self.pad_id] * (width - len(ids)) + ids for ids, _ in texts]
        place = torch.arange(width).expand(len(texts), width)
        starts = torch.tensor([[width - len(ids), width - asked] for ids, asked in texts])
        return TextBatch(torch.tensor(padded), place >= starts[:, :1], place >= starts[:, 1:])


def _text(
    parts: TextModel, row: Row, number: int, length: int, prompts_too: bool
) -> tuple[list[int], int]:
    prompt = encode_prompt(parts.tokenizer, row["prompt"])
    completion = row.get("completion")
    if not isinstance(completion, str):
        if completion is None and prompts_too:
            return prompt, len(prompt)
        raise UserError(f"Row {number} has no completion to learn from, as a text.")
    try:
        answer = encode_completion(parts.tokenizer, completion, length)
    except UserError as error:
        raise UserError(f"Row {number}: {error}") from error
    text = prompt + answer
    return text, len(text) if prompts_too else len(answer)

"""The embedded tokenizer, mostly one token a character, and how texts become tokens.

The same functions serve training and sampling, so that both see one form of text: a prompt with
the special tokens that its tokenizer adds, a completion without any, then the end token until the
length is full (as LLaDA is fine-tuned, arXiv:2502.09992).
"""

import string
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, models, processors
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from lmdiff.errors import UserError

PRINTABLE = string.printable[:95] + "\n"
"""ASCII characters that can be seen, the space and the line break."""

SPECIAL = {"pad": "[PAD]", "mask": "[MASK]", "eos": "[EOS]", "sep": "[SEP]", "unk": "[UNK]"}

Message = Mapping[str, Any]


def char_tokenizer(alphabet: Sequence[str] = PRINTABLE) -> PreTrainedTokenizerFast:
    """A character-level tokenizer; `save_pretrained` and `AutoTokenizer` keep it.

    A prompt ends with [SEP]: else "... -> 4" followed by "63" could not be told from "... -> 46"
    followed by "3". The words "[MASK]" in a text are six characters, never the mask token.

    Args:
        alphabet: its characters, then pairs of them that are one token where they stand together
            ("17"); every other character becomes [UNK].
    """
    if not alphabet or len(set(alphabet)) < len(alphabet):
        raise UserError(f"An alphabet has at least one character, each once, not {alphabet!r}.")
    vocabulary = {token: i for i, token in enumerate([*SPECIAL.values(), *alphabet])}
    # A byte-pair encoding that merges nothing else: other characters stay alone, spaces too.
    pairs = [(token[0], token[1]) for token in alphabet if len(token) == 2]
    tokenizer = Tokenizer(models.BPE(vocabulary, pairs, unk_token=SPECIAL["unk"]))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A [SEP]", special_tokens=[(SPECIAL["sep"], vocabulary[SPECIAL["sep"]])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,
        **{f"{name}_token": token for name, token in SPECIAL.items()},
    )


def end_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that ends a text: eos, or sep where a tokenizer has no eos (BERT); None without."""
    eos, sep = tokenizer.eos_token_id, tokenizer.sep_token_id
    found = sep if eos is None else eos
    return found if isinstance(found, int) else None


def encode_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str | Sequence[Message]) -> list[int]:
    """Tokens of a prompt: a text, or a conversation through the tokenizer's chat template.

    Raises:
        UserError: a conversation, but no chat template; no token; text that is no Unicode; or the
            mask token among them, which the sampler would take for a place to fill.
    """
    shown = repr(prompt) if len(repr(prompt)) < 80 else f"{prompt!r:.77}..."
    if isinstance(prompt, str):
        ids = _ids(tokenizer, prompt)
    elif tokenizer.chat_template is None:
        raise UserError("The prompt is a conversation, but the tokenizer has no chat template.")
    else:
        text: Any = tokenizer.apply_chat_template(
            [dict(message) for message in prompt], tokenize=False, add_generation_prompt=True
        )
        # The template wrote the special tokens already.
        ids = _ids(tokenizer, text, add_special_tokens=False)
    if not ids:
        raise UserError(f"The prompt {shown} has no token.")
    if tokenizer.mask_token_id is not None and tokenizer.mask_token_id in ids:
        raise UserError(f"The prompt contains the mask token {tokenizer.mask_token}: {shown}")
    return ids


def _ids(
    tokenizer: PreTrainedTokenizerBase, text: str, add_special_tokens: bool = True
) -> list[int]:
    try:
        text.encode()  # tokenizers raise a TypeError about half a character
    except UnicodeEncodeError as error:
        raise UserError(f"The text is not valid Unicode ({error.reason}). Type it anew.") from error
    return list(tokenizer(text, add_special_tokens=add_special_tokens).input_ids)


def encode_completion(
    tokenizer: PreTrainedTokenizerBase, completion: str, length: int | None = None
) -> list[int]:
    """Tokens of a completion and the end token, which also fills the rest up to `length`.

    Raises:
        UserError: the completion does not fit into `length` tokens, holds the mask token, or the
            tokenizer has no end token.
    """
    ids = _ids(tokenizer, completion, add_special_tokens=False)
    end = end_id(tokenizer)
    if end is None:
        raise UserError("The tokenizer has neither an eos nor a sep token to end a text with.")
    if tokenizer.mask_token_id is not None and tokenizer.mask_token_id in ids:
        raise UserError(f"The completion contains the mask token: {completion!r}")
    if length is None:
        return [*ids, end]
    # A completion as long as the canvas needs no end token: a Sudoku of 16 cells.
    if len(ids) > length:
        raise UserError(
            f"The completion {completion[:60]!r} has {len(ids)} tokens, generation_length is "
            f"{length}. Raise it, or leave this sample out."
        )
    return ids + [end] * (length - len(ids))


def decode_completion(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    """The text of a completion, up to its first end token."""
    ids, end = list(ids), end_id(tokenizer)
    text = tokenizer.decode(ids[: ids.index(end)] if end in ids else ids, skip_special_tokens=True)
    return text if isinstance(text, str) else "".join(text)


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """Each token's own text, for pictures; special tokens by their names."""
    return [str(tokenizer.decode([int(token)])) for token in ids]

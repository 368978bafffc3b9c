"""Where the answer stands in what a model wrote. Nothing here trusts the text."""

from collections.abc import Mapping, Sequence
from typing import Any

OPENING, CLOSING = "<answer>", "</answer>"


def text_of(message: str | Sequence[Mapping[str, Any]]) -> str:
    """A prompt or completion as text; of a conversation (TRL's form) its last message's content."""
    if isinstance(message, str):
        return message
    return str(message[-1].get("content", "")) if message else ""


def tagged_answer(text: str) -> str | None:
    """What stands in the last complete `<answer>...</answer>`; None without one.

    Found from the end, in linear time: a pattern such as `<answer>(.*?)</answer>` takes quadratic
    time on a text of many opening tags.
    """
    end = text.rfind(CLOSING)
    start = text.rfind(OPENING, 0, max(end, 0))
    return None if start < 0 else text[start + len(OPENING) : end]

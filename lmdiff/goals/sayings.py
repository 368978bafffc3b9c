"""How goals are said: sentences for each goal key, as data, with a held-out split.

`prompts/FAMILY.toml` has a table for each goal, or for a pattern of goals with slots:

    [goals."pick up the {color} {kind}"]
    train = ["pick up the {color} {kind}", "grab the {color} {kind}"]
    validation = ["get hold of the {color} {kind}"]
    held_out = ["lift the {color} {kind} off the floor"]

    [words.color.grey]
    train = ["grey"]
    held_out = ["ash-coloured"]

    ambiguous = ["ball", "key"]

A slot may have a number behind its name, where two slots take the same words: `{color}` and
`{color2}`. The keys of a table of words are the values of its slots and may be several words ("on
your left"); values that no table lists are single words.

A sentence is taught if its template and its words are; else it belongs to the split of what is not
taught in it. A split never mixes an untaught template with an untaught word. A sentence of others
with an `ambiguous` word may ask for a goal: it is no example of what is not understood.
"""

import hashlib
import itertools
import random
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmdiff.errors import UserError
from lmdiff.goals.descriptions import SPLITS, Split, normalise
from lmdiff.resources import find

_SLOT = re.compile(r"\{(\w+)\}")
_ANY_WORD = r"[\w-]+"


def _table(slot: str) -> str:
    """The table of words of a slot: `color` of `color2`."""
    return slot.rstrip("0123456789")


@dataclass(frozen=True)
class Saying:
    """A sentence and the goal that it asks for."""

    text: str
    goal: str
    split: Split


class Sayings:
    """The sentences of a family. `digest` is the sha256 of its file."""

    def __init__(self, data: Mapping[str, Any], digest: str):
        self.digest = digest
        self._templates: dict[str, Mapping[str, Sequence[str]]] = dict(data["goals"])
        self._words: Mapping[str, Mapping[str, Mapping[str, Sequence[str]]]] = data.get("words", {})
        self._ambiguous = {normalise(word) for word in data.get("ambiguous", ())}
        # Listed values first: "the {color} {kind}" is no pattern for "the ball {location}".
        self._patterns = [
            (re.compile(self._pattern(key, listed)), key)
            for listed in (True, False)
            for key in self._templates
        ]

    def of(self, goal: str, split: Split) -> list[str]:
        """All sentences of a split for a goal, in the order of the file.

        Raises:
            UserError: the file says nothing of this goal.
        """
        key, values = self._find(goal)
        templates = self._templates[key]
        found: dict[str, None] = {}
        for own in dict.fromkeys(("train", split)):
            for template in templates.get(own, ()):
                # Either the template or one of the words is of the split, the rest is taught.
                for text in self._filled(template, values, "train" if own != "train" else split):
                    found[text] = None
        taught = {} if split == "train" else dict.fromkeys(self.of(goal, "train"))
        return [text for text in found if text not in taught]

    def phrases(
        self, goals: Sequence[str], split: Split, limit: int | None = None, seed: int = 0
    ) -> list[Saying]:
        """Sentences of a split, in turn over the goals; at most `limit` of them."""
        rng = random.Random(f"{split} {seed}")
        streams = []
        for goal in goals:
            texts = self.of(goal, split)
            rng.shuffle(texts)
            streams.append([Saying(text, goal, split) for text in texts])
        rounds = itertools.zip_longest(*streams)
        every = [saying for turn in rounds for saying in turn if saying is not None]
        return every[:limit]

    def meaning(self, text: str, goals: Sequence[str]) -> str | None:
        """The goal among `goals` of which this very sentence is known, in any split."""
        plain = normalise(text)
        for goal in goals:
            if any(plain == normalise(own) for split in SPLITS for own in self.of(goal, split)):
                return goal
        return None

    def may_mean(self, text: str) -> bool:
        """Whether a sentence might ask for one of the family's goals, by its words."""
        return not self._ambiguous.isdisjoint(normalise(text).split())

    def _find(self, goal: str) -> tuple[str, dict[str, str]]:
        if goal in self._templates:
            return goal, {}
        for pattern, key in self._patterns:
            match = pattern.fullmatch(goal)
            if match:
                return key, match.groupdict()
        raise UserError(f"The prompts have no sentence for the goal {goal!r}.")

    def _pattern(self, key: str, listed: bool) -> str:
        """A key as a regular expression; with `listed`, slots take the values of their tables."""

        def values(slot: re.Match[str]) -> str:
            table = self._words.get(_table(slot[1]), {}) if listed else {}
            known = "|".join(map(re.escape, table))
            return f"(?P<{slot[1]}>{known or _ANY_WORD})"

        plain = re.escape(key).replace(r"\{", "{").replace(r"\}", "}")
        return _SLOT.sub(values, plain)

    def _filled(self, template: str, values: Mapping[str, str], split: Split) -> Iterator[str]:
        """A template with taught words; with `split`, also with one of its words."""
        slots = list(dict.fromkeys(_SLOT.findall(template)))
        taught = {slot: self._said(slot, values[slot], "train") for slot in slots}
        yield from self._products(template, slots, taught)
        if split == "train":
            return
        for slot in slots:
            own = self._said(slot, values[slot], split)
            if own:
                yield from self._products(template, slots, {**taught, slot: own})

    @staticmethod
    def _products(
        template: str, slots: Sequence[str], words: Mapping[str, Sequence[str]]
    ) -> Iterator[str]:
        for chosen in itertools.product(*(words[slot] for slot in slots)):
            yield template.format_map(dict(zip(slots, chosen, strict=True)))

    def _said(self, slot: str, value: str, split: Split) -> Sequence[str]:
        entry = self._words.get(_table(slot), {}).get(value)
        if entry is None:
            return [value] if split == "train" else []
        return entry.get(split, [value] if split == "train" else [])


def load_sayings(source: str | Path) -> Sayings:
    """Read the sentences of a family by name (`metaworld`) or path.

    Raises:
        UserError: no such file, or it does not have the form that this module describes.
    """
    path = find("prompts", source)
    raw = path.read_bytes()
    try:
        return Sayings(tomllib.loads(raw.decode("utf-8")), hashlib.sha256(raw).hexdigest())
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} has no sentences for goals: {error!r}.") from error

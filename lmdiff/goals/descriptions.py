"""Descriptions of places: what the templates and words of a phrase grammar can say, and reading it.

Numbers stay open ("row #, column #"), so that one small table serves mazes of any size.
"""

import itertools
import re
import unicodedata
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Cell = tuple[int, int]
"""(row, column): indices of the maze's map array, row 0 on top."""
PlaceKey = tuple[str | int, ...]
"""What a description names: ('corner', 'top', 'left'), ('row', 3), ('cell', 3, 5), ..."""
Places = Mapping[PlaceKey, frozenset[Cell]]
Split = Literal["train", "validation", "held_out"]
Why = Literal["taught", "template", "synonym", "combination"]

SPLITS: tuple[Split, ...] = ("train", "validation", "held_out")
"""From what is taught to what is only ever measured."""
PLACEHOLDER = re.compile(r"\{(\w+)\}")


def hardest(*splits: Split) -> Split:
    """The split of a whole whose parts are of these splits; without parts, train."""
    found: Split = "train"
    for split in splits:
        if SPLITS.index(split) > SPLITS.index(found):
            found = split
    return found


def normalise(text: str) -> str:
    """Lower case, words and numbers apart ("R3c5" is "r 3 c 5"), no punctuation, single spaces."""
    text = unicodedata.normalize("NFKC", text).casefold()
    text = re.sub(r"['’]", "", text)
    text = re.sub(r"(?<=[^\W\d])(?=\d)|(?<=\d)(?=[^\W\d])|[\W_]+", " ", text)
    return " ".join(text.split())


@dataclass(frozen=True)
class Description:
    """A template with its words filled in; number fields are still open."""

    text: str
    template: str
    kind: str
    key: PlaceKey
    """The place, with the names of number fields where their values go."""
    numbers: tuple[str | int, ...]
    """What each number in the text is: a field of the key, or a fixed value."""
    template_split: Split
    words_split: Split

    def place(self, numbers: tuple[int, ...]) -> PlaceKey | None:
        """The place, given the numbers in the order of the text; None if they do not fit."""
        if len(numbers) != len(self.numbers):
            return None
        fields: dict[str | int, int] = {}
        for meaning, number in zip(self.numbers, numbers, strict=True):
            if fields.setdefault(meaning, number) != number or number == -1:
                return None
            if isinstance(meaning, int) and meaning != number:
                return None
        return (self.key[0], *(fields.get(field, field) for field in self.key[1:]))

    def split(self, place: PlaceKey) -> Split:
        """The split of this description of that place; a tenth of the combinations is kept out."""
        own = hardest(self.template_split, self.words_split)
        if own != "train":
            return own
        # Punctuation must not carry a combination into another split.
        bucket = zlib.crc32(f"{place}|{normalise(self.template)}".encode()) % 10
        return "held_out" if bucket == 0 else "validation" if bucket == 1 else "train"

    def why(self, split: Split) -> Why:
        if split == "train":
            return "taught"
        if self.template_split == split:
            return "template"
        return "synonym" if self.words_split == split else "combination"


class Vocabulary:
    """The tables of words of a grammar's data, and every description they make."""

    def __init__(self, data: Mapping[str, Any]):
        self._data = data
        self.number_words: list[str] = data["words"]["number"]["words"]
        self._numbers = {word: value for value, word in enumerate(self.number_words)}

    def abstract(self, tokens: list[str]) -> tuple[list[str], tuple[int, ...]]:
        """Numbers of a text, and the text with # in their place."""
        pattern, numbers = [], []
        for token in tokens:
            number = self._numbers.get(token)
            if number is None and token.isdecimal():
                number = int(token) if len(token) < 4 else -1
            pattern.append(token if number is None else "#")
            if number is not None:
                numbers.append(number)
        return pattern, tuple(numbers)

    def descriptions(self) -> Iterator[Description]:
        slots, domains = self._data["slots"], self._data["fields"]
        for kind, entry in self._data["places"].items():
            name, *fields = entry["key"]
            values = [domains.get(field, [field]) for field in fields]
            for bound in itertools.product(*values):
                value = dict(zip(fields, bound, strict=True))
                templates: list[tuple[Split, str]] = [(s, t) for s in SPLITS for t in entry[s]]
                for split, template in templates:
                    used = PLACEHOLDER.findall(template)
                    choices = [self._words(slots[slot], value) for slot in used]
                    for words in itertools.product(*choices):
                        said = {slot: word for slot, (word, _) in zip(used, words, strict=True)}
                        splits: list[Split] = [split for _, split in words]
                        filled = template.format_map(said)
                        yield Description(
                            text=filled,
                            template=template,
                            kind=kind,
                            key=(name, *bound),
                            numbers=self._meanings(filled),
                            template_split=split,
                            words_split=hardest(*splits),
                        )

    def _words(self, slot: list[str], value: Mapping[str, str]) -> list[tuple[str, Split]]:
        """Ways to fill a placeholder, each with its split."""
        table, *fields = slot
        if table == "number":
            # Left open: the placeholder comes back as the name of the field.
            return [("{" + fields[0] + "}", "train")]
        entry = self._data["words"][table][" ".join(value[field] for field in fields)]
        return [(word, split) for split in SPLITS for word in entry[split]]

    def _meanings(self, text: str) -> tuple[str | int, ...]:
        """For each number of a description in order: the field that it gives, or its value."""
        fields = iter(PLACEHOLDER.findall(text))
        marked = normalise(PLACEHOLDER.sub(" # ", text).replace("#", "fieldmark")).split()
        meanings: list[str | int] = []
        for token in marked:
            if token == "fieldmark":
                meanings.append(next(fields))
            elif token in self._numbers:
                meanings.append(self._numbers[token])
        return tuple(meanings)

"""Phrase grammars as data: a phrase denotes a set of states (for a maze, a set of cells).

The words lie in `prompts/NAME.toml`; the geometry is the task's, as a mapping of places to cells.
One grammar serves every maze: numbers in a description are read, not enumerated.
"""

import hashlib
import itertools
import random
import re
import tomllib
import unicodedata
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lmdiff.errors import UserError
from lmdiff.resources import find

Cell = tuple[int, int]
"""(row, column): indices of the maze's map array, row 0 on top."""
PlaceKey = tuple[str | int, ...]
"""What a description names: ('corner', 'top', 'left'), ('row', 3), ('cell', 3, 5), ..."""
Places = Mapping[PlaceKey, frozenset[Cell]]
Split = Literal["train", "validation", "held_out"]
Why = Literal["taught", "template", "synonym", "combination"]

SPLITS: tuple[Split, ...] = ("train", "validation", "held_out")
"""From what is taught to what is only ever measured."""
_PLACEHOLDER = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Phrase:
    """A sentence and what it denotes."""

    text: str
    place: PlaceKey
    cells: frozenset[Cell]
    split: Split
    kind: Why
    """Why it is not taught: its template (or carrier), a synonym, or just this combination."""


@dataclass(frozen=True)
class _Description:
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
        own = _hardest(self.template_split, self.words_split)
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


class Grammar:
    """A phrase grammar; see `prompts/maze.toml` for the form of the data.

    `digest` is the sha256 of its file: the prompt-set hash of a model card.
    """

    def __init__(self, data: Mapping[str, Any], digest: str):
        self.digest = digest
        self._data = data
        self._number_words: list[str] = data["words"]["number"]["words"]
        self._numbers = {word: value for value, word in enumerate(self._number_words)}
        directions = [*data["words"]["vertical"].values(), *data["words"]["horizontal"].values()]
        self._blockers = {
            token
            for words in [data["blockers"]["words"], *(d[s] for d in directions for s in SPLITS)]
            for token in normalise(" ".join(words)).split()
        }
        self._harmless = re.compile(rf"\b({'|'.join(data['blockers']['harmless'])})\b")
        self._adverbs = tuple(data["adverbs"]["words"])
        self._carriers = {split: list(data["carriers"][split]) for split in SPLITS}
        self._adverb_carriers = {split: list(data["adverb_carriers"][split]) for split in SPLITS}
        self._affixes: list[tuple[tuple[str, ...], Split]] = [
            (tuple(normalise(part) for part in carrier.split("{place}")), split)
            for split in SPLITS
            for carrier in dict.fromkeys(self._carriers[split] + self._adverb_carriers[split])
        ]
        self._by_pattern: dict[str, list[_Description]] = {}
        self._by_key: dict[PlaceKey, list[_Description]] = {}
        for description in self._descriptions():
            marked = _PLACEHOLDER.sub(" 0 ", description.text)
            pattern, _ = self._abstract(normalise(marked).split())
            self._by_pattern.setdefault(" ".join(pattern), []).append(description)
            self._by_key.setdefault(description.key, []).append(description)
        self._longest = max(pattern.count(" ") + 1 for pattern in self._by_pattern)

    def phrases(
        self, places: Places, split: Split, limit: int | None = None, seed: int = 0
    ) -> list[Phrase]:
        """Distinct phrases of a split, evenly over kinds of places, then places, then templates.

        Args:
            places: the task's places; those without cells are never said.
            split: none of its phrases can be derived in an easier split.
            limit: at most so many; without it, every description once (in some carrier).
            seed: the same seed gives the same phrases.
        """
        rng = random.Random(f"{split} {seed}")
        seen: set[str] = set()
        kinds: dict[str, list[Iterator[Phrase]]] = {}
        for place, cells in places.items():
            described = self._of_place(place) if cells else []
            if described:
                stream = self._stream(place, cells, described, split, rng, seen, limit is None)
                kinds.setdefault(described[0].kind, []).append(stream)
        weights = {kind: self._data["places"][kind].get("weight", 1) for kind in kinds}
        turns = [kind for kind in kinds for _ in range(weights[kind])]
        found: list[Phrase] = []
        while any(kinds.values()):
            for kind in turns:
                streams = kinds[kind]
                while streams:
                    stream = streams.pop(0)
                    phrase = next(stream, None)
                    if phrase is not None:
                        streams.append(stream)
                        found.append(phrase)
                        break
                if len(found) == limit:
                    return found
        return found

    def denote(self, text: str, places: Places) -> tuple[PlaceKey, frozenset[Cell]] | None:
        """The place that a free phrase denotes and its cells (none: a wall, or not in this maze).

        A phrase of any split is known exactly. Otherwise the longest description of a place
        that occurs in the text counts, unless another place is named beside it, or a word such
        as "not". Returns None for texts that denote no place.
        """
        if len(text) > 500:
            return None
        plain = normalise(text)
        exact = {place for place, _ in self._derivations(plain)}
        if len(exact) == 1:
            place = exact.pop()
            return place, places.get(place, frozenset())
        tokens = self._harmless.sub(" ", plain).split()
        spans = [
            (start, end, place)
            for start in range(len(tokens))
            for end in range(start + 1, min(len(tokens), start + self._longest) + 1)
            # "NE" alone is a word of other languages.
            if end - start > 1 or len(tokens[start]) > 4
            for place, _ in self._lookup(tokens[start:end])
        ]
        outer = [
            span
            for span in spans
            if not any(
                other[0] <= span[0] and span[1] <= other[1] and other[:2] != span[:2]
                for other in spans
            )
        ]
        named = {place for _, _, place in outer}
        covered = {i for start, end, _ in outer for i in range(start, end)}
        rest = {token for i, token in enumerate(tokens) if i not in covered}
        if len(named) != 1 or rest & self._blockers:
            return None
        place = named.pop()
        return place, places.get(place, frozenset())

    def split_of(self, text: str) -> Split | None:
        """The easiest split in which a phrase can be derived; None if in none."""
        splits = [split for _, split in self._derivations(normalise(text))]
        return next((split for split in SPLITS if split in splits), None)

    def _derivations(self, plain: str) -> Iterator[tuple[PlaceKey, Split]]:
        for (before, after), carrier_split in self._affixes:
            fits = plain.startswith(before) and plain.endswith(after)
            if not fits or len(plain) <= len(before) + len(after):
                continue
            inner = plain[len(before) : len(plain) - len(after)]
            if (before and inner[0] != " ") or (after and inner[-1] != " "):
                continue
            for place, description in self._lookup(inner.split()):
                yield place, _hardest(description.split(place), carrier_split)

    def _lookup(self, tokens: list[str]) -> Iterator[tuple[PlaceKey, _Description]]:
        pattern, numbers = self._abstract(tokens)
        for description in self._by_pattern.get(" ".join(pattern), ()):
            place = description.place(numbers)
            if place is not None:
                yield place, description

    def _abstract(self, tokens: list[str]) -> tuple[list[str], tuple[int, ...]]:
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

    def _descriptions(self) -> Iterator[_Description]:
        slots, domains = self._data["slots"], self._data["fields"]
        for kind, entry in self._data["places"].items():
            name, *fields = entry["key"]
            values = [domains.get(field, [field]) for field in fields]
            for bound in itertools.product(*values):
                value = dict(zip(fields, bound, strict=True))
                templates: list[tuple[Split, str]] = [(s, t) for s in SPLITS for t in entry[s]]
                for split, template in templates:
                    used = _PLACEHOLDER.findall(template)
                    choices = [self._words(slots[slot], value) for slot in used]
                    for words in itertools.product(*choices):
                        filled = template.format_map(
                            {s: w for s, (w, _) in zip(used, words, strict=True)}
                        )
                        yield _Description(
                            text=filled,
                            template=template,
                            kind=kind,
                            key=(name, *bound),
                            numbers=self._meanings(filled),
                            template_split=split,
                            words_split=_hardest(*(s for _, s in words)),
                        )

    def _words(self, slot: list[str], value: Mapping[str, str]) -> list[tuple[str, Split]]:
        table, *fields = slot
        if table == "number":
            # Left open: the placeholder comes back as the name of the field.
            return [("{" + fields[0] + "}", "train")]
        entry = self._data["words"][table][" ".join(value[field] for field in fields)]
        return [(word, split) for split in SPLITS for word in entry[split]]

    def _meanings(self, text: str) -> tuple[str | int, ...]:
        """For each number of a description in order: the field that it gives, or its value."""
        fields = iter(_PLACEHOLDER.findall(text))
        marked = normalise(_PLACEHOLDER.sub(" # ", text).replace("#", "fieldmark")).split()
        meanings: list[str | int] = []
        for token in marked:
            if token == "fieldmark":
                meanings.append(next(fields))
            elif token in self._numbers:
                meanings.append(self._numbers[token])
        return tuple(meanings)

    def _of_place(self, place: PlaceKey) -> list[_Description]:
        known = self._by_key.get(place)
        if known is None:
            # A place with numbers: its key in the grammar names the fields.
            for entry in self._data["places"].values():
                key = entry["key"]
                if key[0] == place[0] and len(key) == len(place):
                    known = self._by_key.get(tuple(key))
        return known or []

    def _stream(
        self,
        place: PlaceKey,
        cells: frozenset[Cell],
        described: list[_Description],
        split: Split,
        rng: random.Random,
        seen: set[str],
        once: bool,
    ) -> Iterator[Phrase]:
        """Phrases for one place: in turn over reasons, then templates, then words."""
        easy = ["train"] if split == "train" else ["train", split]
        lanes: dict[tuple[str, str], list[tuple[_Description, list[str]]]] = {}
        for description in described:
            own = description.split(place)
            why = description.why(split)
            if own == split:
                mixed = description.template_split != "train" and description.words_split != "train"
                if not mixed:
                    carriers = self._fitting(description, easy if why == "template" else ["train"])
                    lanes.setdefault((why, description.template), []).append(
                        (description, carriers)
                    )
            elif own == "train":
                carriers = self._fitting(description, [split])
                lanes.setdefault(("carrier", description.template), []).append(
                    (description, carriers)
                )
        groups: dict[str, list[list[tuple[_Description, list[str]]]]] = {}
        for (why, _), lane in lanes.items():
            rng.shuffle(lane)
            groups.setdefault(why, []).append(lane)
        for lanes_of_reason in groups.values():
            rng.shuffle(lanes_of_reason)
        number = dict(zip(described[0].key[1:], place[1:], strict=True))
        while groups:
            for why in list(groups):
                lane = groups[why].pop(0)
                text = None
                description = lane[0][0]
                for _ in range(len(lane) if once else 8 + len(lane)):
                    description, carriers = lane.pop(0)
                    if not once:
                        lane.append((description, carriers))
                    text = self._say(description, number, rng.choice(carriers), rng)
                    plain = normalise(text)
                    if plain not in seen and self.split_of(text) == split:
                        seen.add(plain)
                        break
                    text = None
                if text is not None and lane:
                    groups[why].append(lane)
                if not groups[why]:
                    del groups[why]
                if text is not None:
                    kind = "template" if why == "carrier" else description.why(split)
                    yield Phrase(text, place, cells, split, kind)

    def _fitting(self, description: _Description, splits: list[str]) -> list[str]:
        carriers = [c for s in splits for c in self._carriers[s]]
        if description.text.startswith(self._adverbs):
            carriers += [c for s in splits for c in self._adverb_carriers[s]]
        return carriers

    def _say(
        self,
        description: _Description,
        number: Mapping[str | int, str | int],
        carrier: str,
        rng: random.Random,
    ) -> str:
        values = {}
        for field in description.numbers:
            if isinstance(field, str):
                value = int(number[field])
                spelled = rng.random() < 0.25 and value < len(self._number_words)
                values[field] = self._number_words[value] if spelled else str(value)
        text = carrier.replace("{place}", description.text.format_map(values))
        style = rng.random()
        if style < 0.15:
            text = text[0].upper() + text[1:]
        elif style < 0.2:
            text = text.lower()
        elif style < 0.22:
            text = text.upper()
        if text[-1].isalnum() and rng.random() < 0.15:
            text += rng.choice("...!")
        return text


def _hardest(*splits: Split) -> Split:
    hardest: Split = "train"
    for split in splits:
        if SPLITS.index(split) > SPLITS.index(hardest):
            hardest = split
    return hardest


def normalise(text: str) -> str:
    """Lower case, words and numbers apart ("R3c5" is "r 3 c 5"), no punctuation, single spaces."""
    text = unicodedata.normalize("NFKC", text).casefold()
    text = re.sub(r"['’]", "", text)
    text = re.sub(r"(?<=[^\W\d])(?=\d)|(?<=\d)(?=[^\W\d])|[\W_]+", " ", text)
    return " ".join(text.split())


def load_grammar(source: str | Path = "maze") -> Grammar:
    """Read a grammar by name (`maze`) or path.

    Raises:
        UserError: no such grammar, or its file does not have the form of `prompts/maze.toml`.
    """
    path, raw, data = _read(source)
    try:
        return Grammar(data, hashlib.sha256(raw).hexdigest())
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path} is not a phrase grammar: {error!r}. Compare it with prompts/maze.toml."
        ) from error


def load_unknown(split: Split, source: str | Path = "unknown") -> list[str]:
    """Sentences that a maze agent is not taught, for refusal to learn from and be measured on.

    Raises:
        UserError: no such file, or it lacks the split.
    """
    path, _, data = _read(source)
    if split not in data:
        raise UserError(f"{path} has no [{split}]. Compare it with prompts/unknown.toml.")
    entry = data[split]
    sentences: list[str] = list(entry["sentences"])
    for template in entry.get("templates", ()):
        slots = _PLACEHOLDER.findall(template)
        for words in itertools.product(*(entry["fill"][slot] for slot in slots)):
            sentences.append(template.format_map(dict(zip(slots, words, strict=True))))
    return list(dict.fromkeys(sentences))


def _read(source: str | Path) -> tuple[Path, bytes, dict[str, Any]]:
    path = find("prompts", source)
    raw = path.read_bytes()
    try:
        return path, raw, tomllib.loads(raw.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid TOML: {error}") from error

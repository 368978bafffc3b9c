"""Phrase grammars as data: a phrase denotes a set of states (for a maze, a set of cells).

The words lie in `prompts/NAME.toml`; the geometry is the task's, as a mapping of places to cells.
One grammar serves every maze: numbers in a description are read, not enumerated.
"""

import hashlib
import itertools
import random
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lmdiff.errors import UserError
from lmdiff.goals.descriptions import (
    PLACEHOLDER,
    SPLITS,
    Cell,
    Description,
    PlaceKey,
    Places,
    Split,
    Vocabulary,
    Why,
    hardest,
    normalise,
)
from lmdiff.resources import find


@dataclass(frozen=True)
class Phrase:
    """A sentence and what it denotes."""

    text: str
    place: PlaceKey
    cells: frozenset[Cell]
    split: Split
    kind: Why
    """Why it is not taught: its template (or carrier), a synonym, or just this combination."""


class Grammar:
    """A phrase grammar; see `prompts/maze.toml` for the form of the data.

    `digest` is the sha256 of its file: the prompt-set hash of a model card.
    """

    def __init__(self, data: Mapping[str, Any], digest: str):
        self.digest = digest
        self._data = data
        self._vocabulary = Vocabulary(data)
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
        self._by_pattern: dict[str, list[Description]] = {}
        self._by_key: dict[PlaceKey, list[Description]] = {}
        for description in self._vocabulary.descriptions():
            marked = PLACEHOLDER.sub(" 0 ", description.text)
            pattern, _ = self._vocabulary.abstract(normalise(marked).split())
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
                yield place, hardest(description.split(place), carrier_split)

    def _lookup(self, tokens: list[str]) -> Iterator[tuple[PlaceKey, Description]]:
        pattern, numbers = self._vocabulary.abstract(tokens)
        for description in self._by_pattern.get(" ".join(pattern), ()):
            place = description.place(numbers)
            if place is not None:
                yield place, description

    def _of_place(self, place: PlaceKey) -> list[Description]:
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
        described: list[Description],
        split: Split,
        rng: random.Random,
        seen: set[str],
        once: bool,
    ) -> Iterator[Phrase]:
        """Phrases for one place: in turn over reasons, then templates, then words."""
        easy = ["train"] if split == "train" else ["train", split]
        lanes: dict[tuple[str, str], list[tuple[Description, list[str]]]] = {}
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
        groups: dict[str, list[list[tuple[Description, list[str]]]]] = {}
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

    def _fitting(self, description: Description, splits: list[str]) -> list[str]:
        carriers = [c for s in splits for c in self._carriers[s]]
        if description.text.startswith(self._adverbs):
            carriers += [c for s in splits for c in self._adverb_carriers[s]]
        return carriers

    def _say(
        self,
        description: Description,
        number: Mapping[str | int, str | int],
        carrier: str,
        rng: random.Random,
    ) -> str:
        values = {}
        for field in description.numbers:
            if isinstance(field, str):
                value = int(number[field])
                spelled = rng.random() < 0.25 and value < len(self._vocabulary.number_words)
                values[field] = self._vocabulary.number_words[value] if spelled else str(value)
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
        slots = PLACEHOLDER.findall(template)
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

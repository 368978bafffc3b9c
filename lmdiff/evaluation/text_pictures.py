"""The denoising of a text as terminal frames and as a GIF: text appears out of masks.

Both replay the step map: at step s the places with a step of at most s are written. What a model
wrote is shown and nothing else: control characters (a terminal would obey them) become "\ufffd".
"""

import os
import sys
import time
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import matplotlib as mpl
from PIL import Image, ImageDraw, ImageFont

from lmdiff.evaluation.pictures import INK, MUTED, one_line

MASK = "░"
_FRESH, _FRESH_FILL, _MASK_FILL = "#c2410c", "#ffedd5", "#e2e8f0"
_BOLD, _DIM, _PLAIN = "\x1b[1;33m", "\x1b[2m", "\x1b[0m"
_FONT_SIZE, _MARGIN, _LINE = 20, 24, 30  # pixels
_GRID_COLUMNS = 9


@dataclass(frozen=True)
class Cell:
    """One character of a frame."""

    text: str
    state: str
    """`masked`, `fresh` (written in this step) or `written`."""


Lines = list[list[Cell]]


def frames(tokens: Sequence[str], step_map: Sequence[int], columns: int = 64) -> list[Lines]:
    """Frames from all masked to all written, as lines of characters.

    A masked token takes as much room as its text will, so that nothing moves when it appears.
    Steps that write nothing have no frame; places with a negative step (after the end) are not
    shown. The last frame shows the text alone, with nothing marked as new.

    Args:
        tokens: [L] the text of each token.
        step_map: [L] when it was written.
        columns: characters a line; 4 shows a Sudoku as its grid.

    Raises:
        ValueError: lengths that differ, or no room.
    """
    if len(tokens) != len(step_map) or columns < 1:
        raise ValueError(f"{len(tokens)} tokens, {len(step_map)} steps, {columns} columns.")
    steps = [int(step) for step in step_map]
    pairs = zip(tokens, steps, strict=True)
    characters = [(c, step) for text, step in pairs if step >= 0 for c in text]
    layout = _wrapped(characters, columns)
    times = [-1, *sorted({step for _, step in characters}), max(steps, default=-1) + 1]
    return [[[_cell(c, step, now) for c, step in line] for line in layout] for now in times]


def _wrapped(characters: list[tuple[str, int]], columns: int) -> list[list[tuple[str, int]]]:
    """Lines of at most `columns` characters (beside a line break), broken at spaces if possible."""
    lines: list[list[tuple[str, int]]] = [[]]
    for character, step in characters:
        if len(lines[-1]) == columns and character != "\n":
            spaces = [i for i, (c, _) in enumerate(lines[-1]) if c == " "]
            cut = spaces[-1] + 1 if spaces else columns
            lines.append(lines[-1][cut:])
            del lines[-2][cut:]
        lines[-1].append((character, step))
        if character == "\n":
            lines.append([])
    return lines


def _cell(character: str, step: int, now: int) -> Cell:
    state = "written" if step < now else "fresh" if step == now else "masked"
    return Cell(MASK if state == "masked" else _visible(character), state)


def _visible(character: str) -> str:
    """The character, or a sign for one that a terminal would obey or a line could not show."""
    if character in "\t\n":
        return " "
    return (
        "\ufffd" if unicodedata.category(character)[0] in "CZ" and character != " " else character
    )


def as_text(frame: Lines, colour: bool = False) -> str:
    """A frame for a terminal; with `colour`, what is new is bright and what is masked is dim."""
    codes = {"fresh": _BOLD, "masked": _DIM, "written": ""} if colour else {}
    written = []
    for line in frame:
        parts = []
        for cell in line:
            code = codes.get(cell.state, "")
            parts.append(f"{code}{cell.text}{_PLAIN}" if code else cell.text)
        written.append("".join(parts))
    return "\n".join(written)


def play(
    tokens: Sequence[str],
    step_map: Sequence[int],
    stream: TextIO | None = None,
    columns: int = 64,
    seconds: float = 2.0,
) -> None:
    """Show the denoising in a terminal, each frame over the last; elsewhere only the text.

    Args:
        tokens: [L] the text of each token.
        step_map: [L] when it was written.
        stream: standard output by default.
        columns: characters a line.
        seconds: that it takes in all.
    """
    out = stream or sys.stdout
    shown = frames(tokens, step_map, columns)
    if not out.isatty():
        out.write(as_text(shown[-1]) + "\n")
        return
    for number, frame in enumerate(shown):
        if number:
            time.sleep(seconds / len(shown))
            out.write(f"\x1b[{len(shown[number - 1])}F\x1b[J")  # up to the first line, and clear
        out.write(as_text(frame, colour=True) + "\n")
        out.flush()


def write_gif(
    path: str | Path,
    prompt: str,
    tokens: Sequence[str],
    step_map: Sequence[int],
    columns: int = 48,
    fps: float = 8.0,
) -> Path:
    """Write the denoising as a GIF and return its path.

    Args:
        path: where to write; folders are made.
        prompt: the line above the text.
        tokens: [L] the text of each token.
        step_map: [L] when it was written.
        columns: characters a line; 4 shows a Sudoku as its grid.
        fps: frames a second; the last one stays for two seconds.

    Raises:
        ValueError: another suffix, or lengths that differ.
    """
    path = Path(path)
    if path.suffix != ".gif":
        raise ValueError(f"{path.name}: the picture's name must end in .gif.")
    shown = frames(tokens, step_map, columns)
    steps = len(shown) - 2  # the first frame is before, the last one after them
    pictures = [_picture(frame, n, steps, prompt, columns) for n, frame in enumerate(shown)]
    # One palette for all frames, from one that has every colour: nothing flickers.
    palette = pictures[len(pictures) // 2].quantize(64, dither=Image.Dither.NONE)
    palette.putpalette([255 if v > 248 else v for v in palette.getpalette() or []])  # pure white
    small = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    duration = [round(1000 / fps)] * (len(small) - 1) + [2000]
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}")
    small[0].save(partial, "GIF", save_all=True, append_images=small[1:], duration=duration, loop=0)
    os.replace(partial, path)
    return path


def _picture(frame: Lines, number: int, steps: int, prompt: str, columns: int) -> Image.Image:
    folder = Path(mpl.get_data_path()) / "fonts/ttf"
    font = ImageFont.truetype(folder / "DejaVuSansMono.ttf", _FONT_SIZE)
    small = ImageFont.truetype(folder / "DejaVuSans.ttf", 14)
    # Few columns are a grid: its cells are square.
    advance = _LINE - 4 if columns <= _GRID_COLUMNS else font.getlength("0")
    longest = max(len(line) for line in frame)
    # As wide as its longest line, but the prompt has some room.
    width = round(2 * _MARGIN + max(advance * longest, 320))
    height = 2 * _MARGIN + 56 + _LINE * len(frame)
    picture = Image.new("RGB", (width, height), "#ffffff")
    pen = ImageDraw.Draw(picture)
    title = _fitted(one_line(prompt), small, width - 2 * _MARGIN)
    pen.text((_MARGIN, _MARGIN), title, fill=INK, font=small)
    step = f"step {min(number, steps)} of {steps}"
    pen.text((_MARGIN, _MARGIN + 22), step, fill=MUTED, font=small)
    for row, line in enumerate(frame):
        y = _MARGIN + 56 + row * _LINE
        for column, cell in enumerate(line):
            x = _MARGIN + column * advance
            fill = {"masked": _MASK_FILL, "fresh": _FRESH_FILL}.get(cell.state)
            if fill:
                pen.rectangle((x + 1, y + 2, x + advance - 1, y + _LINE - 4), fill=fill)
            if cell.state != "masked":
                ink = _FRESH if cell.state == "fresh" else INK
                middle = (x + advance / 2, y + _LINE / 2 - 1)
                pen.text(middle, cell.text, fill=ink, font=font, anchor="mm")
    return picture


def _fitted(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text + "…"

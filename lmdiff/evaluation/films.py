"""Films of worlds: rendered frames with what was said above them, as a GIF."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from lmdiff.evaluation.frames import write_gif
from lmdiff.evaluation.pictures import INK, one_line

_STRIP = 28  # pixels above the picture for the words
_MOST_FRAMES = 60
_WIDTH = 256


def write_film(path: Path, frames: Sequence[np.ndarray], words: str, fps: float) -> Path:
    """Write frames [H, W, 3] uint8, at most some sixty of them, at their own speed.

    Returns the path; its folder is made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    every = max(1, -(-len(frames) // _MOST_FRAMES))
    shown = [*frames[::every], frames[-1]]
    source = Path(mpl.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"
    font = ImageFont.truetype(str(source), 12)
    return write_gif(path, [_captioned(f, words, font) for f in shown], max(1, round(fps / every)))


def _captioned(frame: np.ndarray, words: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    picture = Image.fromarray(frame)
    height = round(picture.height * _WIDTH / picture.width)
    canvas = Image.new("RGB", (_WIDTH, height + _STRIP), "white")
    canvas.paste(picture.resize((_WIDTH, height), Image.Resampling.LANCZOS), (0, _STRIP))
    text = one_line(words)
    while font.getlength(text) > _WIDTH - 16:
        text = text[:-2].rstrip(". ") + "…"
    ImageDraw.Draw(canvas).text((8, 7), text, fill=INK, font=font)
    return canvas

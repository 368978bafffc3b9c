"""Films of worlds: rendered frames with what was said above them, as a GIF."""

from collections.abc import Sequence
from pathlib import Path

import imageio.v3 as iio
import numpy as np
from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

_STRIP = 28  # pixels above the picture for the words
_MOST_FRAMES = 90
_WIDTH = 320


def write_film(path: Path, frames: Sequence[np.ndarray], words: str, fps: float) -> Path:
    """Write frames [H, W, 3] uint8, at most some ninety of them, at their own speed.

    Returns the path; its folder is made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    every = max(1, -(-len(frames) // _MOST_FRAMES))
    shown = [*frames[::every], frames[-1]]
    font = ImageFont.truetype(font_manager.findfont("DejaVu Sans"), 13)
    pictures = [np.asarray(_captioned(frame, words, font)) for frame in shown]
    milliseconds = max(20.0, 1000 * every / fps)
    # The last picture stays: one wants to see where it ended.
    durations = [milliseconds] * (len(pictures) - 1) + [1500.0]
    iio.imwrite(path, pictures, extension=".gif", duration=durations, loop=0)
    return path


def _captioned(frame: np.ndarray, words: str, font: ImageFont.FreeTypeFont) -> Image.Image:
    picture = Image.fromarray(frame)
    height = round(picture.height * _WIDTH / picture.width)
    picture = picture.resize((_WIDTH, height), Image.Resampling.LANCZOS)
    canvas = Image.new("RGB", (_WIDTH, height + _STRIP), "white")
    canvas.paste(picture, (0, _STRIP))
    text = words
    while text and font.getlength(text) > _WIDTH - 16:
        text = text[:-2].rstrip(". ") + "…"
    ImageDraw.Draw(canvas).text((8, 6), text, fill="black", font=font)
    return canvas

"""Frames to files: a GIF, or an MP4 where ffmpeg works. A file is whole or not there."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image


def write_gif(path: Path, frames: list[Image.Image], fps: int) -> Path:
    """Write frames of one size as a GIF; its folder must be there."""
    # One palette for all frames: quick, and nothing flickers.
    palette = frames[-1].quantize(128, dither=Image.Dither.NONE)
    palette.putpalette([255 if v > 249 else v for v in palette.getpalette() or []])  # pure white
    small = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    duration = [round(1000 / fps)] * (len(small) - 1) + [1500]  # the end is worth a look
    partial = path.with_name(f".{path.name}")
    small[0].save(partial, "GIF", save_all=True, append_images=small[1:], duration=duration, loop=0)
    os.replace(partial, path)
    return path


def write_mp4(path: Path, frames: list[Image.Image], fps: int) -> Path:
    """Write frames of one size as an MP4.

    Raises:
        ImportError, RuntimeError, OSError: there is no ffmpeg, or it does not work.
    """
    import imageio.v2 as imageio  # slow to import, and seldom needed

    partial = path.with_name(f".{path.name}")
    writer: Any = imageio.get_writer(partial, fps=fps, macro_block_size=2, quality=8)
    with writer:
        for frame in frames + [frames[-1]] * fps:  # hold the end for a second
            writer.append_data(np.asarray(frame))
    os.replace(partial, path)
    return path

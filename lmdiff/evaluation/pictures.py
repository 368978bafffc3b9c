"""Pictures and videos of mazes: the plan, the path that was taken, and the cells that were meant.

Coordinates are (row, column) in cells: a whole number is the centre of that cell of the map array.
The maze is drawn as its array prints (row 0 on top, columns from the left) with those indices along
the edges, so that words, plan and picture use one orientation.
"""

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection
from matplotlib.colors import LinearSegmentedColormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

from lmdiff.evaluation.frames import write_gif, write_mp4

Cells = Iterable[tuple[int, int]]

INK, MUTED, GRID, FLOOR, WALL = "#1e293b", "#64748b", "#e8edf3", "#ffffff", "#475569"
GOAL, GOAL_FILL, PATH = "#15803d", "#bbf7d0", "#2563eb"
PLAN = LinearSegmentedColormap.from_list("plan", ["#fbbf24", "#ea580c", "#7f1d1d"])

_WIDTH = 480  # picture width at scale 1, in pixels, as all lengths below
_LEFT, _RIGHT, _TOP, _BOTTOM = 38, 14, 84, 36
_DPI = 100  # points are 1/72 inch, so a line of width w points is w * 100 / 72 pixels
_SUPERSAMPLE = 3  # Pillow draws hard edges; frames are drawn larger and reduced
# A user's matplotlibrc (TeX, another font) must not reach these pictures.
_STYLE: dict[Any, Any] = {
    "text.usetex": False,
    "font.family": ["DejaVu Sans"],
    "text.parse_math": False,
}


@dataclass(frozen=True)
class _Scene:
    """The static part of a picture, and where its maze lies."""

    figure: Figure
    cell: int
    """Pixels per cell."""
    corner: tuple[int, int]
    """(x, y) of the maze's top left corner in pixels."""
    size: tuple[int, int]
    """(width, height) of the maze in pixels."""

    def pixels(self, points: NDArray[np.float64], scale: int = 1) -> list[tuple[float, float]]:
        """(row, column) [T, 2] to (x, y) from the maze's top left corner."""
        return [(x, y) for y, x in ((points + 0.5) * self.cell * scale).tolist()]


def draw_plan(
    path: str | Path,
    maze: ArrayLike,
    plan: ArrayLike | None,
    trail: ArrayLike,
    goal_cells: Cells,
    title: str,
    subtitle: str = "",
) -> Path:
    """Draw a plan and the path that was taken; write a PNG and return its path.

    Args:
        path: Where to write; folders are made.
        maze: Map array [R, C]; 1 is a wall.
        plan: Planned (row, column) [T, 2], dots coloured from early to late; or None.
        trail: Executed (row, column) [T, 2]; may be empty.
        goal_cells: The cells (row, column) that the goal denotes.
        title: Usually the goal, as the user typed it; shortened to one line.
        subtitle: A second line, smaller.

    Raises:
        ValueError: `maze` or a path has another shape.
    """
    planned = _points(plan)
    with mpl.rc_context(_STYLE):
        scene = _scene(maze, goal_cells, title, subtitle, has_plan=len(planned) > 0)
        axes = scene.figure.axes[0]
        taken = _points(trail)
        y, x = taken.T
        axes.plot(x, y, color=PATH, lw=2.4, solid_capstyle="round", zorder=3)
        if len(planned):
            times = PLAN(np.linspace(0, 1, len(planned)))
            v, u = planned.T
            axes.plot(u, v, color=PLAN(0.5), lw=0.9, alpha=0.8, zorder=4)
            axes.scatter(u, v, s=17, c=times, edgecolors="white", linewidths=0.5, zorder=5)
        for at, face, edge in ((slice(1), "white", PATH), (slice(-1, None), PATH, "white")):
            axes.plot(x[at], y[at], "o", ms=8.5, mfc=face, mec=edge, mew=1.8, zorder=6)
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph .* missing")
            scene.figure.savefig(path, format="png", dpi=2 * _DPI)
    return path


def write_video(
    path: str | Path,
    maze: ArrayLike,
    trail: ArrayLike,
    plans: Sequence[tuple[int, ArrayLike]],
    goal_cells: Cells,
    title: str,
    fps: int = 20,
    max_frames: int = 120,
) -> Path:
    """Write a GIF or MP4 of a roll-out (by the suffix) and return the path that was written.

    Without a working ffmpeg an MP4 becomes a GIF of the same name.

    Args:
        path: Where to write; the suffix is .gif or .mp4. Folders are made.
        maze: Map array [R, C]; 1 is a wall.
        trail: Executed (row, column) [T, 2], one an environment step.
        plans: (step, planned (row, column) [H, 2]): the plan that is followed from that step on.
        goal_cells: The cells (row, column) that the goal denotes.
        title: Usually the goal, as the user typed it.
        fps: Frames a second.
        max_frames: Steps are left out evenly beyond this many frames.

    Raises:
        ValueError: another suffix, a wrong shape, or no frames to show.
    """
    path = Path(path)
    if path.suffix not in (".gif", ".mp4"):
        raise ValueError(f"{path.name}: a video's name must end in .gif or .mp4.")
    taken = _points(trail)
    if len(taken) == 0 or max_frames < 1:
        raise ValueError("A video needs at least one step of the trail and one frame.")
    with mpl.rc_context(_STYLE):
        scene = _scene(maze, goal_cells, title, has_plan=len(plans) > 0)
        background = _render(scene.figure)
    count = min(max_frames, len(taken))
    steps = np.unique(np.linspace(0, len(taken) - 1, count).round().astype(int))
    if count == 1:
        steps = np.array([len(taken) - 1])
    frames = list(_frames(scene, background, taken, plans, steps.tolist()))
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".mp4":
        try:
            return write_mp4(path, frames, fps)
        except (ImportError, RuntimeError, OSError) as error:
            path = path.with_suffix(".gif")
            warnings.warn(f"No MP4 (ffmpeg: {error}); writing {path.name}.", stacklevel=2)
    return write_gif(path, frames, fps)


def one_line(text: str) -> str:
    """Text that any font can be asked to draw: one line, no control characters or surrogates."""
    return " ".join("".join(c if c.isprintable() else " " for c in text[:1000]).split())


def _points(values: ArrayLike | None) -> NDArray[np.float64]:
    """A [T, 2] array without its non-finite rows; None gives no rows."""
    points = np.empty((0, 2)) if values is None else np.asarray(values, np.float64)
    if points.size == 0:
        points = points.reshape(0, 2)
    if points.ndim != 2 or points.shape[1] != 2:
        raise ValueError(f"A path must be (row, column) [T, 2], not {points.shape}.")
    return points[np.isfinite(points).all(axis=1)]


def _scene(
    maze: ArrayLike, goal_cells: Cells, title: str, subtitle: str = "", *, has_plan: bool
) -> _Scene:
    """Lay out title, indices, walls, goal cells and legend to the pixel."""
    maze = np.asarray(maze)
    if maze.ndim != 2 or maze.size == 0:
        raise ValueError(f"A maze must be a map array [rows, columns], not {maze.shape}.")
    rows, columns = maze.shape
    cell = max(4, min((_WIDTH - _LEFT - _RIGHT) // columns, _WIDTH // rows))
    size = (columns * cell, rows * cell)
    width = max(_WIDTH, size[0] + _LEFT + _RIGHT)
    width, height = (n + n % 2 for n in (width, size[1] + _TOP + _BOTTOM))  # video wants even
    left = _LEFT + (width - _LEFT - _RIGHT - size[0]) // 2
    figure = Figure(figsize=(width / _DPI, height / _DPI), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    bottom = height - _TOP - size[1]
    axes = figure.add_axes(
        (left / width, bottom / height, size[0] / width, size[1] / height), facecolor=FLOOR
    )
    extent = (-0.5, columns - 0.5, rows - 0.5, -0.5)
    lines = [[(-0.5, r), (columns - 0.5, r)] for r in np.arange(0.5, rows - 1)]
    lines += [[(c, -0.5), (c, rows - 0.5)] for c in np.arange(0.5, columns - 1)]
    goals = {(int(r), int(c)) for r, c in goal_cells}
    lit = np.zeros((rows, columns), bool)
    for r, c in goals:
        if 0 <= r < rows and 0 <= c < columns:
            lit[r, c] = True
    for mask, colour, order in ((lit, GOAL_FILL, 0.5), (maze == 1, WALL, 2)):
        shown = np.ma.masked_where(~mask, mask)
        axes.imshow(shown, ListedColormap([colour]), extent=extent, zorder=order, aspect="auto")
    axes.add_collection(LineCollection(lines, colors=GRID, linewidths=0.7, zorder=1), autolim=False)
    border = LineCollection(_outline(goals), colors=GOAL, linewidths=1.6, capstyle="projecting")
    axes.add_collection(border, autolim=False)
    border.set_zorder(2.5)
    axes.set(xlim=extent[:2], ylim=extent[2:])
    every = math.ceil(16 / cell)  # indices must not run into each other
    axes.set_xticks(range(0, columns, every))
    axes.set_yticks(range(0, rows, every))
    axes.tick_params(length=0, labelsize=7, labelcolor=MUTED, pad=3)
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xlabel("column", fontsize=7, color=MUTED, labelpad=3)
    axes.set_ylabel("row", fontsize=7, color=MUTED, labelpad=3)
    axes.spines[:].set_visible(False)
    head = figure.text(left / width, 1 - 18 / height, one_line(title), va="center", color=INK)
    head.set(fontsize=11, fontweight="bold")
    below = figure.text(left / width, 1 - 37 / height, one_line(subtitle), va="center", color=MUTED)
    below.set(fontsize=8.5)
    for text in (head, below):
        _fit(text, 0.97 * (width - _RIGHT - left))  # hinting differs from one scale to another
    _legend(figure, has_plan)
    return _Scene(figure, cell, (left, _TOP), size)


def _outline(cells: set[tuple[int, int]]) -> list[list[tuple[float, float]]]:
    """The outer edges of a set of cells, as (x, y) segments."""
    edges = []
    for r, c in cells:
        for dr, dc in ((-1, 0), (1, 0), (0, -1), (0, 1)):
            if (r + dr, c + dc) not in cells:
                x, y = c + dc / 2, r + dr / 2
                edges.append([(x - dr / 2, y - dc / 2), (x + dr / 2, y + dc / 2)])
    return edges


def _fit(text: Text, limit: float) -> None:
    """Shorten a text with an ellipsis until it is at most `limit` pixels wide."""
    whole = text.get_text()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        low, high = 0, min(len(whole), 200)
        while low < high:  # longest prefix that fits
            middle = (low + high + 1) // 2
            kept = whole if middle == len(whole) else whole[:middle].rstrip(" ,.;") + "…"
            text.set_text(kept)
            if text.get_window_extent().width <= limit:
                low = middle
            else:
                high = middle - 1
        text.set_text(whole if low == len(whole) else whole[:low].rstrip(" ,.;") + "…")


def _legend(figure: Figure, has_plan: bool) -> None:
    ramp = [
        Line2D([], [], ls="", marker="o", ms=4.5, color=PLAN(t)) for t in (0.0, 0.33, 0.67, 1.0)
    ]
    entries: dict[str, Any] = {
        "start": Line2D([], [], ls="", marker="o", ms=6, mfc="white", mec=PATH, mew=1.5),
        "path": Line2D([], [], color=PATH, lw=2.4),
        "plan, early to late": tuple(ramp),
        "goal": Patch(facecolor=GOAL_FILL, edgecolor=GOAL, lw=1.2),
    }
    if not has_plan:
        del entries["plan, early to late"]
    figure.legend(
        list(entries.values()),
        list(entries),
        handler_map={tuple: HandlerTuple(ndivide=None, pad=0)},
        loc="lower center",
        ncols=len(entries),
        frameon=False,
        fontsize=8,
        labelcolor=INK,
        columnspacing=1.8,
    )


def _render(figure: Figure) -> Image.Image:
    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")
        canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def _frames(
    scene: _Scene,
    background: Image.Image,
    trail: NDArray[np.float64],
    plans: Sequence[tuple[int, ArrayLike]],
    steps: list[int],
) -> Iterator[Image.Image]:
    """One picture for each of `steps`: only the maze is redrawn, over what was drawn before."""
    scale = _SUPERSAMPLE
    x, y = scene.corner
    inside = background.crop((x, y, x + scene.size[0], y + scene.size[1]))
    ground = inside.resize((scene.size[0] * scale, scene.size[1] * scale), Image.Resampling.NEAREST)
    path = scene.pixels(trail, scale)
    timed = [(step, scene.pixels(_points(plan), scale)) for step, plan in plans]
    font = ImageFont.truetype(Path(mpl.get_data_path()) / "fonts/ttf/DejaVuSans.ttf", 12)
    pen, last = ImageDraw.Draw(ground), 0
    radius = max(4, min(7, scene.cell // 4)) * scale
    for step in steps:
        if step > last:  # the trail stays on the ground, so each piece of it is drawn once
            pen.line(path[last : step + 1], fill=PATH, width=3 * scale, joint="curve")
            last = step
        picture = ground.copy()
        over = ImageDraw.Draw(picture)
        current = [plan for start, plan in timed if start <= step]
        if current and current[-1]:
            plan = current[-1]
            over.line(plan, fill="#f0a868", width=scale, joint="curve")
            for index, at in enumerate(plan):
                colour = tuple(round(255 * v) for v in PLAN(index / max(1, len(plan) - 1))[:3])
                over.circle(at, 2.6 * scale, fill=colour, outline="white", width=scale // 2)
        over.circle(path[0], radius, fill="white", outline=PATH, width=2 * scale)
        over.circle(path[step], radius, fill=PATH, outline="white", width=2 * scale)
        frame = background.copy()
        frame.paste(picture.reduce(scale), (x, y))
        label = f"step {step} of {len(trail) - 1}"
        ImageDraw.Draw(frame).text((x, 37), label, fill=MUTED, font=font, anchor="lm")
        yield frame

"""Pictures: where things are drawn, how long it takes, and text from anywhere."""

import subprocess
import sys
import time
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from PIL import Image, ImageColor, ImageSequence

from lmdiff.evaluation import pictures
from lmdiff.evaluation.pictures import GOAL_FILL, PATH, WALL, draw_plan, one_line, write_video

MAZE = np.array(
    [
        [1, 1, 1, 1, 1, 1],
        [1, 0, 0, 0, 0, 1],
        [1, 0, 1, 1, 0, 1],
        [1, 1, 1, 1, 1, 1],
    ]
)
TRAIL = np.array([[2.0, 1.0], [1.0, 1.0], [1.0, 2.0], [1.0, 3.0]])
GOALS = [(1, 4), (2, 4)]


def colour_at(image: Image.Image, row: float, column: float, scale: int = 1) -> tuple[int, ...]:
    """The colour at a place of MAZE in a picture (its cells are 71 pixels at scale 1)."""
    x = pictures._LEFT + (column + 0.5) * 71
    y = pictures._TOP + (row + 0.5) * 71
    return image.convert("RGB").getpixel((round(x * scale), round(y * scale)))  # type: ignore


def close(colour: tuple[int, ...], name: str, tolerance: int = 6) -> bool:
    return max(abs(a - b) for a, b in zip(colour, ImageColor.getrgb(name), strict=True)) < tolerance


def test_the_picture_is_the_array_as_printed(tmp_path: Path) -> None:
    path = draw_plan(tmp_path / "a" / "p.png", MAZE, None, TRAIL, GOALS, "a goal")
    image = Image.open(path)
    for (row, column), wall in np.ndenumerate(MAZE):
        corner = colour_at(image, row + 0.3, column + 0.3, 2)  # off the centre, where paths run
        expected = WALL if wall else GOAL_FILL if (row, column) in GOALS else "white"
        assert close(corner, expected), (row, column, corner)
    assert close(colour_at(image, 1.5, 1.0, 2), PATH)  # between (2, 1) and (1, 1): down, not right
    assert close(colour_at(image, 1.0, 3.0, 2), PATH)
    assert close(colour_at(image, 2.0, 1.0, 2), "white")  # the start is a ring


def test_a_plan_changes_the_picture(tmp_path: Path) -> None:
    plan = [[1.0, 1.0], [1.0, 4.0]]
    empty = np.empty((0, 2))
    with_plan = draw_plan(tmp_path / "a.png", MAZE, plan, empty, GOALS, "t", "s").read_bytes()
    without = draw_plan(tmp_path / "b.png", MAZE, None, empty, GOALS, "t", "s").read_bytes()
    assert with_plan != without
    assert with_plan.startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "title",
    [
        "",
        "cost $x^{2$ and $\\frac$",
        "a\nb\tc\x00\x1b[31md\ud800\u202e\ufeff",
        "到右下角去 🏁 ไปที่ مرحبا",
        "go to the bottom right corner " * 3000,
        "W" * 300,
        "\u0301" * 50,
    ],
)
def test_titles_from_anywhere(tmp_path: Path, title: str) -> None:
    path = draw_plan(tmp_path / "p.png", MAZE, TRAIL, TRAIL, GOALS, title, title)
    head = Image.open(path).convert("L").crop((0, 0, 960, 2 * 60))
    margin = np.asarray(head)[:, 960 - 2 * pictures._RIGHT + 4 :]
    assert margin.min() > 250, "the title runs over the margin"


def test_one_line() -> None:
    assert one_line("  a\n\tb\x00c  ") == "a b c"


def test_a_user_s_matplotlib_settings_do_not_matter(tmp_path: Path) -> None:
    plain = draw_plan(tmp_path / "a.png", MAZE, TRAIL, TRAIL, GOALS, "t").read_bytes()
    with mpl.rc_context({"text.usetex": True, "font.family": ["no such font"]}):
        assert draw_plan(tmp_path / "b.png", MAZE, TRAIL, TRAIL, GOALS, "t").read_bytes() == plain
        assert mpl.rcParams["text.usetex"] is True


def test_plans_that_are_not_numbers_or_leave_the_maze_are_drawn_anyhow(tmp_path: Path) -> None:
    plan = np.array([[1.0, 1.0], [np.nan, 2.0], [1e9, -1e9], [np.inf, 0.0]])
    draw_plan(tmp_path / "p.png", MAZE, plan, plan, [(99, 99)], "t")
    video = write_video(tmp_path / "v.gif", MAZE, plan, [(0, plan)], [(99, 99)], "t")
    assert len(list(ImageSequence.Iterator(Image.open(video)))) == 2


def test_shapes_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\[T, 2\]"):
        draw_plan(tmp_path / "p.png", MAZE, None, np.zeros((4, 3)), [], "t")
    with pytest.raises(ValueError, match="map array"):
        draw_plan(tmp_path / "p.png", MAZE[0], None, TRAIL, [], "t")
    with pytest.raises(ValueError, match=r"\.gif or \.mp4"):
        write_video(tmp_path / "v.avi", MAZE, TRAIL, [], [], "t")
    with pytest.raises(ValueError, match="at least one step"):
        write_video(tmp_path / "v.gif", MAZE, [], [], [], "t")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("shape", [(3, 3), (3, 40), (40, 3), (120, 120)])
def test_any_size_of_maze(tmp_path: Path, shape: tuple[int, int]) -> None:
    maze = np.ones(shape, int)
    maze[1:-1, 1:-1] = 0
    draw_plan(tmp_path / "p.png", maze, None, [[1, 1]], [(1, 1)], "t")
    frame = Image.open(write_video(tmp_path / "v.gif", maze, [[1, 1]], [], [(1, 1)], "t"))
    assert frame.width % 2 == frame.height % 2 == 0


def test_a_gif_shows_the_agent_where_it_is(tmp_path: Path) -> None:
    trail = np.linspace([1.0, 1.0], [1.0, 4.0], 31)
    plans = [(0, trail[::5]), (10, trail[10::5])]
    path = write_video(tmp_path / "v.gif", MAZE, trail, plans, GOALS, "t", max_frames=4)
    frames = [frame.convert("RGB") for frame in ImageSequence.Iterator(Image.open(path))]
    assert len(frames) == 4  # steps 0, 10, 20, 30
    for frame, column in zip(frames[1:], (2, 3, 4), strict=True):
        assert close(colour_at(frame, 1, column), PATH, 24)
    assert close(colour_at(frames[2], 1.3, 4.3), GOAL_FILL, 24)
    assert close(colour_at(frames[0], 1.3, 2.3), "white", 6)


def test_an_mp4_can_be_read_back(tmp_path: Path) -> None:
    imageio = pytest.importorskip("imageio.v2")
    path = write_video(tmp_path / "v.mp4", MAZE, TRAIL, [(0, TRAIL)], GOALS, "t", fps=10)
    assert path.suffix == ".mp4"
    with imageio.get_reader(path) as reader:
        frames = [frame for frame in reader]  # noqa: C416 (its length is infinite)
    assert len(frames) == len(TRAIL) + 10  # the end is held for a second
    assert close(colour_at(Image.fromarray(frames[-1]), 1, 3), PATH, 40)
    assert [entry.name for entry in tmp_path.iterdir()] == ["v.mp4"]


@pytest.mark.parametrize("ffmpeg", ["/nonexistent/ffmpeg", sys.executable])
def test_without_ffmpeg_an_mp4_becomes_a_gif(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ffmpeg: str
) -> None:
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", ffmpeg)
    with pytest.warns(UserWarning, match="No MP4"):
        path = write_video(tmp_path / "v.mp4", MAZE, TRAIL, [], GOALS, "t")
    assert path == tmp_path / "v.gif"
    assert [entry.name for entry in tmp_path.iterdir()] == ["v.gif"]


def test_120_frames_of_a_giant_maze_are_quick(tmp_path: Path) -> None:
    maze = np.ones((12, 16), int)
    maze[1:-1, 1:-1] = 0
    trail = np.linspace([1.0, 1.0], [10.0, 14.0], 1000)
    plans = [(step, trail[step::16]) for step in range(0, 1000, 100)]
    begin = time.process_time()
    write_video(tmp_path / "v.gif", maze, trail, plans, [(10, 14)], "t")
    assert time.process_time() - begin < 4.0  # about 0.8 s; the limit allows for a slow machine


def test_pyplot_and_its_global_state_are_not_used() -> None:
    code = "import sys, lmdiff.evaluation.pictures; sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

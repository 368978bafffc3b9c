import io

import pytest
from PIL import Image

from lmdiff.evaluation.text_pictures import MASK, as_text, frames, play, write_gif

TOKENS = ["Roses ", "are ", "red", "."]
STEPS = [2, 0, 0, 5]


def texts(*arguments, **options):
    return [as_text(frame) for frame in frames(*arguments, **options)]


def test_text_appears_out_of_masks():
    assert texts(TOKENS, STEPS) == [
        MASK * 14,
        MASK * 6 + "are red" + MASK,
        "Roses are red" + MASK,
        "Roses are red.",
        "Roses are red.",
    ]


def test_each_frame_marks_what_is_new():
    shown = frames(TOKENS, STEPS)
    new = ["".join(c.text for c in line if c.state == "fresh") for (line,) in shown]
    assert new == ["", "are red", "Roses ", ".", ""]
    assert {c.state for c in shown[0][0]} == {"masked"}
    assert {c.state for c in shown[-1][0]} == {"written"}


def test_a_sudoku_is_a_grid():
    shown = texts(list("1234341221434321"), range(16), columns=4)
    assert shown[-1] == "1234\n3412\n2143\n4321"
    assert shown[3] == f"123{MASK}" + f"\n{MASK * 4}" * 3
    assert len(shown) == 18


def test_nothing_moves_and_lines_break_at_spaces():
    words = [f"{word} " for word in ["one", "two", "three", "four", "five", "six", "seven"]]
    shown = texts(words, [6, 5, 4, 3, 2, 1, 0], columns=10)
    assert shown[-1].split("\n") == ["one two ", "three ", "four five ", "six seven "]
    sizes = {tuple(map(len, frame.split("\n"))) for frame in shown}
    assert len(sizes) == 1


def test_places_after_the_end_are_not_shown():
    assert texts(["a", "[EOS]", "x"], [0, 1, -1])[-1] == "a[EOS]"
    assert texts(["x"], [-1]) == ["", ""]


def test_line_breaks_of_the_text():
    assert texts(["a\nb"], [0])[-1] == "a \nb"


@pytest.mark.parametrize("bad", ["\x1b[2J", "\x07", "\r", "\x9b31m", "\u202e", "\u2028", "\ud800"])
def test_a_terminal_obeys_nothing_that_a_model_wrote(bad):
    shown = texts([f"a{bad}"], [0])[-1]
    assert shown[0] == "a"
    assert bad[0] not in shown
    out = io.StringIO()
    play([f"a{bad}"], [0], out)
    assert bad[0] not in out.getvalue()


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_played_in_a_terminal_each_frame_replaces_the_last():
    out = Terminal()
    play(list("12344321"), range(8), out, columns=4, seconds=0.0)
    assert out.getvalue().count("\x1b[2F\x1b[J") == 9  # two lines up, before all but the first
    assert "\x1b[1;33m1\x1b[0m" in out.getvalue()
    assert out.getvalue().endswith("1234\n4321\n")


def test_piped_only_the_text_is_printed():
    out = io.StringIO()
    play(TOKENS, STEPS, out)
    assert out.getvalue() == "Roses are red.\n"


def test_a_gif(tmp_path):
    path = write_gif(tmp_path / "new" / "a.gif", "Say\nsomething " * 20, TOKENS, STEPS, fps=5)
    picture = Image.open(path)
    assert picture.n_frames == 5
    assert picture.info["duration"] == 200
    greys, warms = [], []
    for n in range(5):
        picture.seek(n)
        seen = picture.convert("RGB")
        colours = seen.getcolors(1 << 16) or []
        greys.append(sum(k for k, (r, _, b) in colours if abs(r - 226) < 4 and abs(b - 240) < 4))
        warms.append(sum(k for k, (r, _, b) in colours if r > 250 and 200 < b < 225))
        assert seen.getpixel((0, 0)) == (255, 255, 255)
    # More than a character's box, so that the grey edges of letters do not count.
    assert [n > 150 for n in greys] == [True, True, True, False, False]
    assert [n > 150 for n in warms] == [False, True, True, True, False]
    assert list(path.parent.iterdir()) == [path]


def test_a_gif_of_nothing(tmp_path):
    assert write_gif(tmp_path / "a.gif", "", [], []).is_file()


@pytest.mark.parametrize(
    ("tokens", "steps", "columns"), [(["a"], [], 4), (["a"], [0], 0), ([], [0], 4)]
)
def test_sizes_that_do_not_fit(tokens, steps, columns):
    with pytest.raises(ValueError, match="tokens"):
        frames(tokens, steps, columns)


def test_another_suffix(tmp_path):
    with pytest.raises(ValueError, match=r"\.gif"):
        write_gif(tmp_path / "a.png", "", ["a"], [0])

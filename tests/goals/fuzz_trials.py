"""Goals and prompts among any Unicode, as a program: python fuzz_trials.py COUNT [OUTPUT.json].

Each text is given as a goal (is it understood, which cells does it denote) and as a prompt (its
tokens). It must be answered or refused; anything else is a crash, which is shown and counted.
"""

import sys
import time
import traceback
from pathlib import Path

from hypothesis import given, settings
from test_fuzz import QUIET, TEXTS, answer, make_known, prompt

from lmdiff.goals.encoder import GoalEncoder
from lmdiff.tasks.pointmaze import PointMaze

LENGTHS = {"empty": 0, "1 to 300 characters": 300, "to 10 kB": 10_000, "to 1 MB": 2_000_000}
COLUMNS = {
    "length": "length",
    "tried": "texts",
    "goals_answered": "goals answered",
    "goals_refused": "goals refused",
    "prompts_answered": "prompts encoded",
    "prompts_refused": "prompts refused",
    "longest": "longest, bytes",
    "crashes": "crashes",
}


def main(count: int, output: Path | None) -> None:
    known, maze = make_known(GoalEncoder("embedded")), PointMaze("pointmaze-medium")
    rows = [{"length": name} | dict.fromkeys([*COLUMNS][1:], 0) for name in LENGTHS]
    began = time.monotonic()

    @settings(QUIET, max_examples=count)
    @given(text=TEXTS)
    def every_text(text: str) -> None:
        row = next(r for r, most in zip(rows, LENGTHS.values(), strict=True) if len(text) <= most)
        row["tried"] += 1
        try:
            refused = {"goals": answer(known, maze, text), "prompts": prompt(text)}
        except Exception:
            row["crashes"] += 1
            print(ascii(text)[:300])
            traceback.print_exc()
        else:
            for kind, refusal in refused.items():
                row[f"{kind}_{'refused' if refusal else 'answered'}"] += 1
        row["longest"] = max(row["longest"], len(text.encode("utf-8", "surrogatepass")))

    every_text()
    print(*rows, f"{time.monotonic() - began:.0f} s", sep="\n")
    tried = sum(row["tried"] for row in rows)
    if tried < count:
        sys.exit(f"Only {tried} texts were tried.")
    if any(row["crashes"] for row in rows):
        sys.exit("See the texts above.")
    if output is not None:
        from lmdiff.evaluation.results import write_result

        write_result(output, f"scripts/fuzz {count}", [0], rows, columns=COLUMNS)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]) if len(sys.argv) > 2 else None)

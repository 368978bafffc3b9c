"""`lmdiff VERB ...`: train an agent, give it goals or prompts, measure it.

Exit codes: 0 achieved, 2 wrong use, 3 goal not understood, 4 not achieved, 130 interrupted, 1 else.
Heavy imports wait until a verb runs, so that `--help` answers at once.
"""

import contextlib
import json
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import tyro

from lmdiff.errors import GoalNotUnderstood, UserError
from lmdiff.train_verbs import Train, train_command
from lmdiff.verbs import Agents, Bench, Chat, Data, Doctor, Eval, Run

INTERRUPTED = 130

VERBS: dict[str, type] = {
    "agents": Agents,
    "data": Data,
    "train": Train,
    "run": Run,
    "chat": Chat,
    "eval": Eval,
    "bench": Bench,
    "doctor": Doctor,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help") or words[0] not in VERBS:
        return _usage(words)
    verb = words[0]
    # A user's warning is for developers of libraries; their own come through `warnings` too.
    try:
        processes, words = _processes(words)
        if processes > 1:
            from lmdiff.training.launch import launch

            return launch(processes, words)
        default = train_command(words[1:]) if verb == "train" else None
        form = VERBS[verb] if default is None else type(default)
        command: Any = tyro.cli(form, args=words[1:], default=default, prog=f"lmdiff {verb}")
        with _rank_of_several(verb):
            return command.run()
    except UserError as error:
        _report(error, words)
        return error.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reader has gone (`lmdiff agents | head`): not an error, and nothing left to say.
        with contextlib.suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _processes(words: Sequence[str]) -> tuple[int, list[str]]:
    """The value of `--processes` of `train` and `eval` (1 by default), and the other words."""
    if words[0] not in ("train", "eval"):
        return 1, list(words)
    rest, value, given = [], "1", iter(words)
    for word in given:
        if word == "--processes":
            value = next(given, "")
        elif word.startswith("--processes="):
            value = word.partition("=")[2]
        else:
            rest.append(word)
    if not value.isdecimal() or int(value) < 1:
        raise UserError(f"--processes {value}: give the number of processes, at least 1.")
    return int(value), rest


@contextlib.contextmanager
def _rank_of_several(verb: str) -> Iterator[None]:
    """An evaluation that a launcher started joins the other ranks; the first one speaks for all."""
    if verb != "eval" or "WORLD_SIZE" not in os.environ:
        yield
        return
    from lmdiff.training.launch import make_accelerator

    accelerator = make_accelerator()
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        silent = contextlib.redirect_stdout(nowhere)
        with contextlib.nullcontext() if accelerator.is_main_process else silent:
            yield


def _usage(words: Sequence[str]) -> int:
    known = not words or words[0] in ("-h", "--help")
    stream = sys.stdout if known else sys.stderr
    if not known:
        import difflib

        close = difflib.get_close_matches(words[0], VERBS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        print(f"lmdiff: no verb {words[0]!r}.{hint}\n", file=stream)
    print("usage: lmdiff VERB ...   (lmdiff VERB --help tells more)\n", file=stream)
    for name, verb in VERBS.items():
        print(f"  {name:8} {(verb.__doc__ or '').splitlines()[0]}", file=stream)
    print("\ntrain and eval take --processes N: see docs/multi-gpu.md", file=stream)
    return 0 if known and words else 2


def _report(error: UserError, words: Sequence[str]) -> None:
    print(f"lmdiff: {error}", file=sys.stderr)
    if "--json" in words and isinstance(error, GoalNotUnderstood):
        # Machines read the last line of stdout, whatever came of it.
        print(json.dumps({"understood": False, "nearest": error.nearest, "success": False}))


if __name__ == "__main__":
    sys.exit(main())

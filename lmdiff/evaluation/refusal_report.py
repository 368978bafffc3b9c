"""How well an agent tells goals that it was taught from all others."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lmdiff.goals.grammar import load_grammar, load_unknown
from lmdiff.goals.refusal import KnownGoals, auroc
from lmdiff.goals.sayings import Sayings
from lmdiff.tasks.pointmaze import PointMaze
from lmdiff.tasks.world import World

_KNOWN = 300
_RESAMPLES = 1000


def refusal_report(known_goals: KnownGoals, task: PointMaze, seed: int) -> dict[str, Any]:
    """AUROC of held-out known phrases against held-out unknown sentences, with a 95% interval.

    Also the shares that the threshold (set on validation sentences) accepts and refuses.
    """
    phrases = load_grammar(task.grammar).phrases(task.places, "held_out", limit=_KNOWN, seed=seed)
    return _told_apart(
        known_goals, [phrase.text for phrase in phrases], load_unknown("held_out"), seed
    )


def policy_refusal_report(
    known_goals: KnownGoals, world: World, sayings: Sayings, seed: int
) -> dict[str, Any]:
    """The same for a world's goals, against sentences that ask for nothing in it."""
    known = sayings.phrases(world.goals, "held_out", limit=_KNOWN, seed=seed)
    unknown = [text for text in load_unknown("held_out") if not sayings.may_mean(text)]
    return _told_apart(known_goals, [saying.text for saying in known], unknown, seed)


def _told_apart(
    known_goals: KnownGoals, phrases: Sequence[str], strays: Sequence[str], seed: int
) -> dict[str, Any]:
    known = np.array(known_goals.scores(phrases))
    unknown = np.array(known_goals.scores(strays))
    threshold = float(known_goals.threshold)
    low, high = _bootstrap(known, unknown, seed)
    return {
        "auroc": {"mean": auroc(known.tolist(), unknown.tolist()), "low": low, "high": high},
        "known": len(known),
        "unknown": len(unknown),
        "known_accepted": float((known >= threshold).mean()),
        "unknown_refused": float((unknown < threshold).mean()),
    }


def _bootstrap(known: np.ndarray, unknown: np.ndarray, seed: int) -> Sequence[float]:
    """Percentile interval over resampled phrases and sentences."""
    rng = np.random.default_rng(seed)
    values = [
        auroc(rng.choice(known, len(known)).tolist(), rng.choice(unknown, len(unknown)).tolist())
        for _ in range(_RESAMPLES)
    ]
    return np.quantile(values, [0.025, 0.975]).tolist()

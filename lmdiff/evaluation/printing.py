"""What the verbs print at the end: rates for people, one JSON object for machines."""

import json
from collections.abc import Mapping
from typing import Any


def print_rate(name: str, interval: Mapping[str, float]) -> None:
    """One line: a rate in percent, with its 95% interval."""
    mean, low, high = (100 * interval[key] for key in ("mean", "low", "high"))
    print(f"{name:24} {mean:5.1f}%  (95%: {low:.1f} to {high:.1f})", flush=True)


def print_result(result: Mapping[str, Any], *, as_json: bool) -> None:
    """With `--json`, the result as the last line of stdout."""
    if as_json:
        print(json.dumps(result))

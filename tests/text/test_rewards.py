import contextlib
import re
import signal
import sys
import threading
import time

import numpy as np
import pytest
import torch

from lmdiff.errors import UserError
from lmdiff.text import rewards
from lmdiff.text.rewards import RewardFailure, RewardSettings, load_rewards, score
from lmdiff.time_limits import TimeUp, call_within

PROMPTS = ["3 7 25 -> 46"] * 3
TEXTS = ["3*7+25", "3+7+25", "?"]
DROP = RewardSettings(time_limit=0.2, on_error="drop")
STOP = RewardSettings(time_limit=0.2)


def length(prompts, completions, **columns):
    return [float(len(text)) for text in completions]


def on_last(action):
    """A reward that is 1, but does something else for the completion "?"."""

    def reward(prompts, completions, **columns):
        return [action() if text == "?" else 1.0 for text in completions]

    return reward


def raises():
    raise KeyError("broken")


def leaves():
    sys.exit(3)


def sleeps():
    time.sleep(30)


def spins():
    while True:
        pass


def spins_stubbornly():
    while True:
        with contextlib.suppress(Exception):
            time.sleep(0.01)


def backtracks():
    return float(bool(re.match(r"(a+)+b", "a" * 40)))


def test_named_rewards_and_dotted_names():
    found = load_rewards(["countdown", "os.path:basename", length])
    assert list(found) == ["countdown", "basename", "length"]
    assert load_rewards("sudoku") == {"sudoku": rewards.NAMED["sudoku"]}
    assert load_rewards(length) == {"length": length}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("countdwn", "No reward 'countdwn'. Known: sudoku"),
        ("my_module.f", "package.module:function"),
        ("no_such_module:f", "PYTHONPATH=."),
        ("os.path:nothing", "has no 'nothing'"),
        ("math:pi", "not a function"),
        (":f", "package.module:function"),
        ("os:", "package.module:function"),
        ([], "No reward was given"),
        ([length, length], "Two rewards are named 'length'"),
    ],
)
def test_rewards_that_cannot_be_loaded(source, message):
    with pytest.raises(UserError, match=re.escape(message)):
        load_rewards(source)


def test_a_module_that_fails_at_import(tmp_path, monkeypatch):
    (tmp_path / "broken_reward_module.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(UserError, match="division by zero"):
        load_rewards("broken_reward_module:f")


def test_weighted_sums():
    found = score(load_rewards(["countdown", length]), PROMPTS, TEXTS, weights=[2.0, -0.1])
    assert found.by_function == {"countdown": [1.0, 0.1, 0.0], "length": [6.0, 6.0, 1.0]}
    assert found.total == pytest.approx([1.4, -0.4, -0.1])
    assert found.dropped == {}


def test_columns_reach_the_functions():
    def target_is(prompts, completions, target, **columns):
        assert columns == {"numbers": [[3, 7, 25]] * 3}
        return [float(t) for t in target]

    columns = {"target": [1, 2, 3], "numbers": [[3, 7, 25]] * 3}
    assert score({"t": target_is}, PROMPTS, TEXTS, columns).total == [1.0, 2.0, 3.0]


def test_none_does_not_apply():
    found = score({"a": lambda **_: [None, 1, None], "b": lambda **_: [2, 2, None]}, PROMPTS, TEXTS)
    assert found.total == [2.0, 3.0, None]
    assert found.dropped == {}


@pytest.mark.parametrize(
    "values", [np.array([1, 2, 3]), torch.tensor([1.0, 2.0, 3.0]), (True, np.float32(2), 3)]
)
def test_arrays_tensors_and_booleans_are_numbers(values):
    assert score({"f": lambda **_: values}, PROMPTS, TEXTS).total == [1.0, 2.0, 3.0]


def test_an_async_reward():
    async def reward(prompts, completions, **columns):
        return [1.0] * len(prompts)

    assert score({"f": reward}, PROMPTS, TEXTS).total == [1.0] * 3


@pytest.mark.parametrize(
    ("action", "message"),
    [
        (raises, "The reward 'f' raised KeyError: 'broken'"),
        (leaves, "raised SystemExit"),
        (sleeps, "took longer than its limit of 0.2 s"),
        (spins, "took longer"),
        (spins_stubbornly, "took longer"),
        (backtracks, "took longer"),
        (lambda: float("nan"), "returned nan for sample 2"),
        (lambda: float("inf"), "returned inf for sample 2"),
        (lambda: "1.0", "returned '1.0' for sample 2"),
        (lambda: [1.0], r"returned \[1.0\] for sample 2"),
    ],
)
def test_failures_stop_or_are_dropped_and_counted(action, message):
    reward = {"f": on_last(action), "length": length}
    with pytest.raises(RewardFailure, match=message):
        score(reward, PROMPTS, TEXTS, settings=STOP)
    with pytest.warns(UserWarning, match="1 of 3 samples are left out"):
        found = score(reward, PROMPTS, TEXTS, settings=DROP)
    assert found.by_function["f"] == [1.0, 1.0, None]
    assert found.total == [7.0, 7.0, None]  # not 1.0: half a sum compares with nothing
    assert found.dropped == {"f": 1}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0], "returned 1 values for 3"),
        ([1.0] * 4, "returned 4 values for 3"),
        (None, "returned NoneType"),
        (1.0, "returned float"),
        ({1: 2}, "returned dict"),
        (np.float64(3.0), "returned float"),
    ],
)
def test_a_wrong_number_of_values(values, message):
    reward = {"f": lambda **_: values}
    with pytest.raises(RewardFailure, match=message):
        score(reward, PROMPTS, TEXTS)
    if values != [1.0]:  # one value is right for one sample
        with pytest.warns(UserWarning, match="3 of 3"):
            found = score(reward, PROMPTS, TEXTS, settings=DROP)
        assert found.total == [None] * 3
        assert found.dropped == {"f": 3}


def test_a_good_function_is_called_once():
    calls = []

    def reward(prompts, completions):
        calls.append(len(prompts))
        return [0.0] * len(prompts)

    score({"f": reward}, PROMPTS, TEXTS, settings=DROP)
    assert calls == [3]


def test_a_function_cannot_change_what_others_see():
    def vandal(prompts, completions, **columns):
        completions.clear()
        prompts[0] = "gone"
        return [0.0] * 3

    texts = list(TEXTS)
    score({"vandal": vandal, "countdown": rewards.NAMED["countdown"]}, PROMPTS, texts)
    assert texts == TEXTS


@pytest.mark.parametrize("weights", [[1.0], [1.0, float("nan")], []])
def test_weights_that_do_not_fit(weights):
    with pytest.raises(UserError, match="reward_weights"):
        score({"a": length, "b": length}, PROMPTS, TEXTS, weights=weights)


def test_columns_that_do_not_fit():
    with pytest.raises(UserError, match="3 prompts, but 2 values of target"):
        score({"a": length}, PROMPTS, TEXTS, {"target": [1, 2]})


@pytest.mark.parametrize(
    "settings", [{"on_error": "ignore"}, {"time_limit": 0}, {"time_limit": float("nan")}]
)
def test_settings_that_are_none(settings):
    with pytest.raises(UserError):
        RewardSettings(**settings)


def test_control_c_is_not_swallowed():
    def interrupted(**_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score({"f": interrupted}, PROMPTS, TEXTS, settings=DROP)


def test_the_time_limit_leaves_other_alarms_as_they_were():
    rung = []
    before = signal.signal(signal.SIGALRM, lambda *_: rung.append(1))
    timer = signal.setitimer(signal.ITIMER_REAL, 0.5)
    try:
        with pytest.raises(TimeUp):
            call_within(0.1, sleeps)
        assert call_within(5, lambda: 3) == 3
        assert 0 < signal.getitimer(signal.ITIMER_REAL)[0] <= 0.5
        deadline = time.monotonic() + 5
        while not rung and time.monotonic() < deadline:
            time.sleep(0.01)
        assert rung
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *timer)


def test_outside_the_main_thread_there_is_a_limit_too():
    found = []

    def work():
        found.append(call_within(5, lambda: 3))
        for call in (sleeps, raises):
            try:
                call_within(0.1, call)
            except (TimeUp, KeyError) as error:
                found.append(type(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(10)
    assert found == [3, TimeUp, KeyError]


def test_nothing_that_a_model_wrote_is_run(tmp_path):
    trap = tmp_path / "trap"
    text = f"__import__('pathlib').Path({str(trap)!r}).touch()"
    texts = [text, f"<answer>{text}</answer>", "{0.__class__}"]
    score(load_rewards(["countdown", "countdown_solved"]), PROMPTS, texts)
    score(load_rewards(["sudoku", "sudoku_solved"]), ["0234341221434320"] * 3, texts)
    assert not trap.exists()

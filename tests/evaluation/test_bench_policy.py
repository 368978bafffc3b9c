"""The benches of policies at their smallest: every row is there and was measured."""

from lmdiff.algos.policies import Sizes
from lmdiff.evaluation.bench_policy import Scale, policy_action, policy_step

TINY = Scale(width=16, layers=3, batch=8, sizes=Sizes(observation=5, action=2, horizon=1, words=16))


def test_every_algorithm_takes_a_step_beside_the_peer():
    title, columns, rows = policy_step(2, TINY)
    assert "batch 8, observation 5, action 2 x 1" in title
    assert [row["method"].split(",")[0] for row in rows] == [
        "Diffusion-QL",
        "Diffusion-QL",
        "bc",
        "awr",
        "idql",
        "fql",
        "qc",
        "gtp",
    ]
    assert all(row["cpu"]["mean"] > 0 for row in rows)
    assert rows[0]["ratio"]["mean"] == 1
    assert columns.keys() <= rows[0].keys()


def test_an_action_by_evaluations():
    _, columns, rows = policy_action(2, TINY)
    found = [(row["method"], row["evaluations"]) for row in rows]
    assert found[0] == ("flow", 10)
    assert ("flow map", 2) in found
    assert ("one-step student", 1) in found
    assert columns.keys() <= rows[0].keys()

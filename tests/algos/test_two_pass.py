"""Two passes give the gradients of one graph, whatever the objective, and hold one graph."""

from contextlib import contextmanager

import pytest
import torch

from lmdiff.algos.likelihood import ESTIMATORS, DrawOptions
from lmdiff.algos.policy_loss import (
    OBJECTIVES,
    PolicyConfig,
    check_policy,
    is_sum_over_samples,
    policy_loss,
    sample_term,
)
from lmdiff.algos.policy_objectives import clipped_ratio
from lmdiff.algos.two_pass import one_pass_backward, recomputed, two_pass_backward, values
from lmdiff.denoisers.contract import Condition
from lmdiff.denoisers.masked_text import MaskedTextDenoiser, TextBatch
from lmdiff.denoisers.network import TrajectoryTransformer
from lmdiff.denoisers.text_models import bert_model, bert_spec
from lmdiff.denoisers.trajectory import TrajectoryDenoiser
from lmdiff.errors import UserError

V, MASK, PAD = 12, 10, 11


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def text_denoiser(seed, dropout=0.0):
    torch.manual_seed(seed)
    model = bert_model(V, PAD, 32, hidden=16, layers=2, heads=2, dropout=dropout).double()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    return MaskedTextDenoiser(model, bert_spec(model, MASK))


@pytest.fixture(scope="module")
def models():
    """Policy, old policy (close to it) and reference."""
    policy, old, reference = (text_denoiser(seed) for seed in (0, 0, 0))
    for other, size in ((old, 0.01), (reference, 0.02)):
        for index, parameter in enumerate(other.parameters()):
            noise = torch.randn(parameter.shape, generator=seeded(index), dtype=torch.float64)
            parameter.data += size * noise
    return policy, old, reference


@pytest.fixture(scope="module")
def x():
    ids = torch.randint(0, 10, (4, 9), generator=seeded(7))
    lengths = torch.tensor([5, 6, 3, 6])[:, None]
    places = torch.arange(9)
    attention = (places < 3 + lengths).expand(4, 9)
    return TextBatch(ids, attention, attention & (places >= 3))


ADVANTAGES = torch.tensor([1.5, -0.7, 0.4, -1.2]).double()


def gradients(model):
    found = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    return found


def assert_equal(first, second, relative=1e-6):
    assert max(part.abs().max().item() for part in first) > 1e-4
    for left, right in zip(first, second, strict=True):
        torch.testing.assert_close(left, right, atol=1e-6, rtol=relative)


def all_pairs():
    for estimator in ESTIMATORS:
        for objective in OBJECTIVES:
            samples = 1 if estimator == "trace" else 2
            config = PolicyConfig(
                estimator=estimator,
                objective=objective,
                samples=samples,
                group_size=2,
                epsilon=0.9,
                beta=0.05 if objective == "sequence-ratio" else 0.0,
            )
            try:
                check_policy(config)
            except UserError:
                continue
            yield pytest.param(config, id=f"{estimator}-{objective}")


def setting(config, models, x):
    steps = torch.randint(0, 4, x.ids.shape, generator=seeded(3))
    options = DrawOptions(config.samples, block_length=3, segments=3, step_map=steps)
    draw = check_policy(config).draw(x, options, seeded(5))
    policy, *others = models
    old, reference = (
        values(lambda j, other=other: other.log_probs(x, draw, j), len(draw)) for other in others
    )

    def evaluate(j):
        return policy.log_probs(x, draw, j)

    def objective(table):
        rows = policy_loss(config, table, draw, ADVANTAGES, x.completion_mask, old, reference)
        return rows.loss.mean()

    return draw, old, evaluate, objective


@pytest.mark.parametrize("config", list(all_pairs()))
def test_two_passes_equal_one_graph(config, models, x):
    policy = models[0]
    draw, old, evaluate, objective = setting(config, models, x)
    loss = objective(torch.stack([evaluate(j) for j in range(len(draw))]))
    loss.backward()
    one_graph = gradients(policy)
    two_pass = two_pass_backward(evaluate, len(draw), objective)
    torch.testing.assert_close(two_pass, loss.detach())
    assert_equal(one_graph, gradients(policy))
    objective(recomputed(evaluate, len(draw))).backward()
    assert_equal(one_graph, gradients(policy))
    if is_sum_over_samples(config):

        def term(log_probs, j):
            rows = sample_term(config, log_probs, j, draw, ADVANTAGES, x.completion_mask, old)
            return rows.mean()

        one_pass = one_pass_backward(evaluate, len(draw), term)
        torch.testing.assert_close(one_pass, loss.detach())
        assert_equal(one_graph, gradients(policy))


def test_every_objective_was_tried():
    tried = {param.values[0].objective for param in all_pairs()}
    assert tried == set(OBJECTIVES)
    assert {param.values[0].estimator for param in all_pairs()} == set(ESTIMATORS)


def test_known_values_save_the_first_pass(models, x):
    """On-policy the old policy's table is the policy's own."""
    policy = models[0]
    config = PolicyConfig(estimator="elbo", objective="sequence-ratio", samples=3, group_size=2)
    draw, _, evaluate, _ = setting(config, models, x)
    own = values(evaluate, len(draw))
    calls = []

    def counting(j):
        calls.append(j)
        return evaluate(j)

    def objective(table):
        return policy_loss(config, table, draw, ADVANTAGES, x.completion_mask, own).loss.mean()

    two_pass_backward(counting, len(draw), objective)
    assert calls == [0, 1, 2] * 2
    expected = gradients(policy)
    calls.clear()
    two_pass_backward(counting, len(draw), objective, known=own)
    assert calls == [0, 1, 2]
    assert_equal(expected, gradients(policy))


@pytest.mark.parametrize("count", [2, 6])
@pytest.mark.parametrize("way", ["two-pass", "one-pass", "recomputed"])
def test_what_autograd_keeps_does_not_grow(models, x, count, way):
    """Bytes saved for backward and alive at once: those of one sample."""
    config = PolicyConfig(estimator="elbo", objective="bgpo", samples=count, group_size=2)
    draw, old, evaluate, objective = setting(config, models, x)
    alive, peak = {}, 0

    class Kept:
        def __init__(self, tensor):
            nonlocal peak
            self.tensor = tensor
            # One storage is counted once, however many views of it are kept.
            self.key = tensor.untyped_storage().data_ptr()
            size, uses = alive.get(self.key, (tensor.untyped_storage().nbytes(), 0))
            alive[self.key] = size, uses + 1
            peak = max(peak, sum(size for size, _ in alive.values()))

        def __del__(self):
            size, uses = alive.pop(self.key)
            if uses > 1:
                alive[self.key] = size, uses - 1

    def measure(run):
        nonlocal peak
        alive.clear()
        peak = 0
        with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
            run()
        models[0].zero_grad()
        return peak

    def term(log_probs, j):
        return sample_term(config, log_probs, j, draw, ADVANTAGES, x.completion_mask, old).mean()

    ways = {
        "two-pass": lambda: two_pass_backward(evaluate, count, objective),
        "one-pass": lambda: one_pass_backward(evaluate, count, term),
        "recomputed": lambda: objective(recomputed(evaluate, count)).backward(),
    }
    single = measure(lambda: evaluate(0).sum().backward())
    graph = measure(lambda: objective(torch.stack([evaluate(j) for j in range(count)])).backward())
    assert graph > 1.5 * single
    # Checkpoints' own hooks see their tensors first; ours see all that `recomputed` keeps itself.
    assert measure(ways[way]) < 1.1 * single


def test_recomputation_costs_a_forward_for_all_samples_but_one(models, x):
    policy, calls = models[0], []
    draw = ESTIMATORS["elbo"].draw(x, DrawOptions(3), seeded())

    def counting(j):
        calls.append(j)
        return policy.log_probs(x, draw, j)

    recomputed(counting, 3).sum().backward()
    assert calls == [0, 1, 2, 1, 0]
    calls.clear()
    recomputed(counting, 1).sum().backward()
    assert calls == [0]
    policy.zero_grad()


def test_dropout_is_repeated_by_recomputation(x):
    model = text_denoiser(0, dropout=0.3).train()
    draw = ESTIMATORS["elbo"].draw(x, DrawOptions(2), seeded())

    def objective(table):
        return (draw.weights * table).sum((0, 2)).exp().sum()

    torch.manual_seed(1)
    objective(torch.stack([model.log_probs(x, draw, j) for j in range(2)])).backward()
    expected = gradients(model)
    torch.manual_seed(1)
    objective(recomputed(lambda j: model.log_probs(x, draw, j), 2)).backward()
    for left, right in zip(expected, gradients(model), strict=True):
        torch.testing.assert_close(left, right)


def test_hold_is_entered_for_all_but_the_last(models, x):
    config = PolicyConfig(estimator="elbo", objective="bgpo", samples=3, group_size=2)
    draw, _, evaluate, objective = setting(config, models, x)
    events = []

    @contextmanager
    def hold():
        events.append("in")
        yield
        events.append("out")

    def backward(loss):
        events.append("backward")
        loss.backward()

    held = ["in", "backward", "out"] * 2 + ["backward"]
    two_pass_backward(evaluate, len(draw), objective, backward=backward, hold=hold)
    assert events == held
    events.clear()
    one_pass_backward(evaluate, len(draw), lambda v, j: v.sum(), backward=backward, hold=hold)
    assert events == held
    models[0].zero_grad()


def test_the_same_for_actions():
    """FPO (arXiv:2507.21053): a ratio of denoising losses of trajectories, over several draws."""
    torch.manual_seed(0)
    network = TrajectoryTransformer(2, 2, 1, 2, 8, 4, width=16, layers=1, heads=2)
    torch.nn.init.normal_(network.head.weight, std=0.3)
    denoiser = TrajectoryDenoiser(network, {"policy": 1.0})
    x = torch.randn(4, 4, 5, generator=seeded(1))
    draws = [denoiser.draw_noise(x, seeded(seed)) for seed in range(3)]

    def evaluate(j):
        return denoiser.loss(x, Condition(), draws[j])

    old = values(evaluate, 3) + 0.1 * torch.randn(3, 4, generator=seeded(2))

    def objective(losses):
        log_probs = -losses.mean(0), -old.mean(0)
        return clipped_ratio(*log_probs, ADVANTAGES.float(), 0.9).loss.mean()

    objective(torch.stack([evaluate(j) for j in range(3)])).backward()
    expected = gradients(denoiser)
    two_pass_backward(evaluate, 3, objective)
    assert_equal(expected, gradients(denoiser), 1e-5)  # float32

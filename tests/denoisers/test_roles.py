import pytest
import torch

from lmdiff.denoisers.processes import make_process
from lmdiff.denoisers.roles import GROUPS, ROLES, role_masks
from lmdiff.denoisers.trajectory import TrajectoryDenoiser, TrajectoryDraw
from lmdiff.errors import UserError

G, A, X = "given", "asked", "absent"
# (observation, action, signal): the use of the first step, then of the later ones.
TABLE = {
    "planner": ((G, A), (X, X), (A, A), True),
    "policy": ((G, X), (A, X), (X, X), True),
    "controller": ((G, G), (A, A), (X, X), False),
    "simulator": ((G, A), (G, G), (A, A), True),
    "reward_model": ((G, G), (X, X), (A, A), True),
    "explorer": ((G, A), (A, A), (A, A), False),
}
HORIZON = 4


def spelled_out(role):
    """Use of each entry, [HORIZON][group], from the table."""
    return [[use[min(step, 1)] for use in TABLE[role][:3]] for step in range(HORIZON)]


def channels(denoiser, role, use):
    """[HORIZON, C] bool: which channels have that use."""
    entries = torch.tensor([[u == use for u in step] for step in spelled_out(role)])
    return entries.repeat_interleave(torch.tensor(denoiser.network.group_sizes), 1)


def test_the_table_is_complete():
    assert GROUPS == ("observation", "action", "signal")
    assert set(ROLES) == set(TABLE)
    for name, role in ROLES.items():
        assert (role.observation, role.action, role.signal, role.goal) == TABLE[name]


@pytest.mark.parametrize("role", TABLE)
def test_masks(role):
    masks = role_masks([role, "policy"], HORIZON)
    assert masks.asked.shape == masks.absent.shape == (2, HORIZON, 3)
    assert masks.asked.dtype == masks.absent.dtype == masks.goal.dtype == torch.bool
    for row, name in enumerate([role, "policy"]):
        uses = spelled_out(name)
        assert masks.asked[row].tolist() == [[use == A for use in step] for step in uses]
        assert masks.absent[row].tolist() == [[use == X for use in step] for step in uses]
    assert masks.goal.tolist() == [TABLE[role][3], True]

    level = masks.level(torch.tensor([0.3, 0.7]))
    numbers = {G: 0.0, A: 0.3, X: 1.0}
    expected = torch.tensor([[numbers[use] for use in step] for step in spelled_out(role)])
    assert torch.equal(level[0], expected)
    assert level[1, 0, 1] == torch.tensor(0.7)


def test_a_window_of_one_step():
    masks = role_masks(["planner"], 1)
    assert masks.asked.tolist() == [[[False, False, True]]]
    assert masks.absent.tolist() == [[[False, True, False]]]


@pytest.mark.parametrize("process", ["flow", "vp"])
@pytest.mark.parametrize("role", TABLE)
def test_samples_keep_what_is_given(make_denoiser, windows, goals, generator, role, process):
    denoiser = make_denoiser(process)
    given = windows(3, HORIZON)
    scheduler = denoiser.process.scheduler()
    for guidance in (1.0, 2.0):
        sample = denoiser.sample(
            goals(3), given, role, scheduler, 3, guidance, generator=generator(0)
        )
        assert sample.shape == given.shape
        kept, absent = (channels(denoiser, role, use).expand(3, -1, -1) for use in (G, X))
        assert torch.equal(sample[kept], given[kept])
        assert not sample[absent].any()
        asked = ~kept & ~absent
        assert torch.isfinite(sample).all()
        assert not torch.isclose(sample[asked], given[asked]).any()


@pytest.mark.parametrize("role", TABLE)
def test_samples_depend_on_nothing_but_what_is_given(
    make_denoiser, windows, goals, generator, role
):
    denoiser = make_denoiser()
    given = windows(2, HORIZON)
    other = torch.where(channels(denoiser, role, G), given, given + 3)

    def sample(window):
        scheduler = denoiser.process.scheduler()
        return denoiser.sample(goals(2), window, role, scheduler, 2, generator=generator(0))

    assert torch.equal(sample(given), sample(other))


@pytest.mark.parametrize("role", TABLE)
def test_the_loss_is_of_what_is_asked(make_denoiser, windows, goals, generator, role):
    denoiser = make_denoiser(roles={role: 1.0})
    x = windows(2, HORIZON).requires_grad_()
    draw = denoiser.draw_noise(x.detach(), generator(0))
    (gradient,) = torch.autograd.grad(denoiser.loss(x, goals(2), draw).sum(), x)
    for step in range(2):
        # Given entries are seen by the network, asked ones are its target, absent ones neither.
        for use in (G, A):
            assert (gradient[step][channels(denoiser, role, use)] != 0).all()
        assert not gradient[step][channels(denoiser, role, X)].any()

    def loss_of_moved(use, times):
        moved = x.detach() + times * channels(denoiser, role, use)
        return denoiser.loss(moved, goals(2), draw)

    before = denoiser.loss(x, goals(2), draw)
    assert torch.equal(loss_of_moved(X, 5.0), before)
    if role == "planner":
        assert (loss_of_moved(A, 5.0) > before).all()


@pytest.mark.parametrize("role", TABLE)
def test_errors_at_given_and_absent_entries_cost_nothing(
    make_denoiser, windows, goals, generator, role
):
    denoiser = make_denoiser(roles={role: 1.0})
    x = windows(2, HORIZON)
    draw = denoiser.draw_noise(x, generator(0))
    before = denoiser.loss(x, goals(2), draw)
    shift = torch.zeros(HORIZON, x.shape[-1])
    denoiser.network.register_forward_hook(lambda module, inputs, output: output + shift)
    for use in (G, X):
        shift = 10.0 * channels(denoiser, role, use)
        assert torch.equal(denoiser.loss(x, goals(2), draw), before)
    shift = 10.0 * channels(denoiser, role, A)
    assert (denoiser.loss(x, goals(2), draw) > before + 1).all()


def test_groups_count_alike_whatever_their_size(make_denoiser, windows, goals, generator):
    denoiser = make_denoiser(roles={"explorer": 1.0})
    x = windows(1, HORIZON)
    draw = denoiser.draw_noise(x, generator(0))
    draw = TrajectoryDraw(torch.ones(1), draw.noise, draw.masks)
    costs = []
    for group in range(3):
        # Right everywhere but in one group, by 1.
        off = (denoiser.group_of_channel == group).float()
        hook = denoiser.network.register_forward_hook(lambda *_, off=off: x + off)
        costs.append(float(denoiser.loss(x, goals(1), draw)))
        hook.remove()
    entries = 3 * HORIZON - 1  # the first observation is given
    expected = [(HORIZON - 1) / entries, HORIZON / entries, HORIZON / entries]
    assert costs == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("role", TABLE)
def test_the_goal_is_shown_to_roles_that_have_one(make_denoiser, windows, goals, generator, role):
    denoiser = make_denoiser(roles={role: 1.0})
    x = windows(2, HORIZON)
    draw = denoiser.draw_noise(x, generator(0))
    shown, hidden = goals(2), goals(2).hidden(torch.tensor([True, True]))
    same = torch.equal(denoiser.loss(x, shown, draw), denoiser.loss(x, hidden, draw))
    assert same == (not TABLE[role][3])

    def sample(condition, guidance):
        scheduler = denoiser.process.scheduler()
        return denoiser.sample(condition, x, role, scheduler, 2, guidance, generator(0))

    assert torch.equal(sample(shown, 1.0), sample(hidden, 1.0)) == (not TABLE[role][3])
    assert torch.equal(sample(shown, 3.0), sample(shown, 1.0)) == (not TABLE[role][3])


def test_unknown_roles():
    with pytest.raises(UserError, match="explorer"):
        role_masks(["planer"], HORIZON)


def test_unknown_roles_of_a_denoiser(make_denoiser, windows, goals):
    with pytest.raises(UserError, match="planner"):
        make_denoiser(roles={"planner": 0.5, "dreamer": 0.5})
    denoiser = make_denoiser()
    with pytest.raises(UserError, match="No role 'dreamer'"):
        denoiser.sample(goals(1), windows(1), "dreamer", denoiser.process.scheduler(), 1)


def test_roles_are_drawn_by_their_shares(make_denoiser, windows, generator):
    denoiser = make_denoiser(roles={"planner": 3.0, "controller": 1.0})
    assert isinstance(denoiser, TrajectoryDenoiser)
    assert denoiser.process == make_process("flow", "sample")
    masks = denoiser.draw_noise(torch.zeros(4000, 2, 6), generator(0)).masks
    assert masks.goal.float().mean().item() == pytest.approx(0.75, abs=0.03)

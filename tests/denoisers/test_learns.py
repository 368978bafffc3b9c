import torch

from lmdiff.algos.imitation import imitation_loss
from lmdiff.denoisers.contract import Condition
from lmdiff.denoisers.network import TrajectoryTransformer
from lmdiff.denoisers.trajectory import TrajectoryDenoiser
from lmdiff.goals.encoder import GoalTokens

HORIZON = 6
PLACES = torch.tensor([[1.5, 1.5], [-1.5, 1.5], [1.5, -1.5], [-1.5, -1.5]])
# One token for each place; the words say nothing of where it lies.
WORDS = torch.eye(4)[:, None]


def walks(batch, generator):
    """Straight walks [B, HORIZON, 2 + 2 + 1] from anywhere to a place; the place's number."""
    place = torch.randint(4, (batch,), generator=generator)
    start = 4 * torch.rand(batch, 2, generator=generator) - 2
    progress = torch.linspace(0, 1, HORIZON)
    way = PLACES[place] - start
    observation = start[:, None] + progress[:, None] * way[:, None]
    action = (way / 2)[:, None].expand(-1, HORIZON, -1)
    action = action + 0.2 * torch.randn(action.shape, generator=generator)
    signal = 2 * (progress - 0.5).expand(batch, -1)[..., None]
    return torch.cat([observation, action, signal], -1), place


def said(place, with_words):
    """Goals in words or as states, row by row."""
    mask = with_words[:, None]
    return Condition(GoalTokens(WORDS[place], mask), PLACES[place], ~with_words)


def test_it_learns_to_go_to_goals_and_to_act():
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    network = TrajectoryTransformer(2, 2, 1, 2, 4, HORIZON, width=32, layers=2, heads=2)
    denoiser = TrajectoryDenoiser(network, {"planner": 0.6, "controller": 0.2, "policy": 0.2})
    steps = 500
    optimizer = torch.optim.AdamW(denoiser.parameters(), 4e-3)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses = []
    for _ in range(steps):
        x, place = walks(128, generator)
        condition = said(place, torch.rand(128, generator=generator) < 0.5)
        loss = imitation_loss(denoiser, x, condition, 0.1, generator)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
        losses.append(loss.item())
    assert sum(losses[-50:]) < 0.3 * sum(losses[:20]) * 50 / 20

    x, place = walks(200, generator)

    def sample(condition, role, steps, **settings):
        scheduler = denoiser.process.scheduler()
        return denoiser.sample(
            condition, x, role, scheduler, steps, generator=generator, **settings
        )

    for with_words in (True, False):
        told = said(place, torch.full((200,), with_words))
        plan = sample(told, "planner", 5)
        gap = (plan[..., :2] - x[..., :2]).norm(dim=-1)
        assert gap[:, -1].median() < 0.3, "it arrives"
        assert gap.mean() < 0.3, "along the straight way"
        nearest = torch.cdist(plan[:, -1, :2], PLACES).argmin(1)
        assert (nearest == place).float().mean() > 0.97
        assert (plan[..., -1] - x[..., -1]).abs().mean() < 0.2
        action = sample(told, "policy", 1)[:, 0, 2:4]
        assert (action - (PLACES[place] - x[:, 0, :2]) / 2).norm(dim=-1).mean() < 0.55

    # The controller needs no goal: the plan that it is given says it all.
    action = sample(Condition(), "controller", 1)[:, 0, 2:4]
    assert (action - (PLACES[place] - x[:, 0, :2]) / 2).norm(dim=-1).mean() < 0.55

    # Without a goal, every place is visited.
    free = sample(Condition(), "planner", 10)
    visited = torch.cdist(free[:, -1, :2], PLACES).argmin(1).bincount(minlength=4)
    assert visited.min() >= 20

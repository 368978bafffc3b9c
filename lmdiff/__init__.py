"""Say the goal in words; diffusion decides."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmdiff.pipelines.goal_pipeline import GoalPipeline

__all__ = ["GoalPipeline"]


def __getattr__(name: str) -> object:
    # Late, so that `lmdiff --help` need not wait for torch.
    if name == "GoalPipeline":
        from lmdiff.pipelines.goal_pipeline import GoalPipeline

        return GoalPipeline
    raise AttributeError(f"module 'lmdiff' has no attribute {name!r}")

"""Say the goal in words; diffusion decides."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmdiff.pipelines.goal_pipeline import GoalPipeline
    from lmdiff.pipelines.policy_pipeline import PolicyPipeline

__all__ = ["GoalPipeline", "PolicyPipeline"]


def __getattr__(name: str) -> object:
    # Late, so that `lmdiff --help` need not wait for torch.
    if name == "GoalPipeline":
        from lmdiff.pipelines.goal_pipeline import GoalPipeline

        return GoalPipeline
    if name == "PolicyPipeline":
        from lmdiff.pipelines.policy_pipeline import PolicyPipeline

        return PolicyPipeline
    raise AttributeError(f"module 'lmdiff' has no attribute {name!r}")

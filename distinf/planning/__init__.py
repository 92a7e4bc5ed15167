"""What a run will take before it runs: units, FLOPs, bytes, memory, and times one can trust."""

from distinf.planning.fitting import fitted
from distinf.planning.plans import (
    Plan,
    StagePlan,
    joins,
    plan,
    quick_plans,
    refuse_what_cannot_fit,
)

__all__ = ["Plan", "StagePlan", "fitted", "joins", "plan", "quick_plans", "refuse_what_cannot_fit"]

"""What a run will take before it runs: units, FLOPs, bytes, memory, and times one can trust."""

from distinf.planning.expected import Plan
from distinf.planning.fitting import fitted
from distinf.planning.plans import (
    StagePlan,
    fitting_runtime,
    joins,
    plan,
    quick_plans,
    refuse_what_cannot_fit,
)

__all__ = [
    "Plan", "StagePlan", "fitted", "fitting_runtime", "joins", "plan", "quick_plans",
    "refuse_what_cannot_fit",
]  # fmt: skip

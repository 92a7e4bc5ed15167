"""distinf: which training samples made this model do that, and what happens if we act on it?

Sign of every score: > 0 means that training on the sample helps the query (lowers its loss).
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distinf.numerics.aggregation import aggregate
    from distinf.numerics.capture import per_sample_gradients
    from distinf.numerics.influence import influence
    from distinf.numerics.krylov import arnoldi
    from distinf.numerics.projection import TwoSided
    from distinf.numerics.sparse import SparseRows
    from distinf.stages.tensor_task import TensorTask

__version__ = "0.1.0"

__all__ = [
    "SparseRows",
    "TensorTask",
    "TwoSided",
    "__version__",
    "aggregate",
    "arnoldi",
    "influence",
    "per_sample_gradients",
]

_HOMES = {
    "SparseRows": "distinf.numerics.sparse",
    "TensorTask": "distinf.stages.tensor_task",
    "TwoSided": "distinf.numerics.projection",
    "aggregate": "distinf.numerics.aggregation",
    "arnoldi": "distinf.numerics.krylov",
    "influence": "distinf.numerics.influence",
    "per_sample_gradients": "distinf.numerics.capture",
}


def __getattr__(name: str) -> Any:
    """Import a public function when it is first used, so that `import distinf` stays cheap."""
    if name not in _HOMES:
        raise AttributeError(f"module 'distinf' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})

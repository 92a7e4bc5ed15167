"""distinf: which training samples made this model do that, and what happens if we act on it?

Sign of every score: > 0 means that training on the sample helps the query (lowers its loss).
"""

from typing import TYPE_CHECKING

from distinf.lazily import from_homes

if TYPE_CHECKING:
    from distinf.numerics.aggregation import aggregate
    from distinf.numerics.capture import per_sample_gradients
    from distinf.numerics.damping import sgd_damping
    from distinf.numerics.ekfac import EkFac, ekfac, sampled_labels
    from distinf.numerics.influence import influence
    from distinf.numerics.krylov import arnoldi
    from distinf.numerics.projection import TwoSided
    from distinf.numerics.sparse import SparseRows
    from distinf.tasks.tensor_task import TensorTask

__version__ = "0.2.0"

__all__ = [
    "EkFac",
    "SparseRows",
    "TensorTask",
    "TwoSided",
    "__version__",
    "aggregate",
    "arnoldi",
    "ekfac",
    "influence",
    "per_sample_gradients",
    "sampled_labels",
    "sgd_damping",
]

_HOMES = {
    "EkFac": "numerics.ekfac",
    "SparseRows": "numerics.sparse",
    "TensorTask": "tasks.tensor_task",
    "TwoSided": "numerics.projection",
    "aggregate": "numerics.aggregation",
    "arnoldi": "numerics.krylov",
    "ekfac": "numerics.ekfac",
    "influence": "numerics.influence",
    "per_sample_gradients": "numerics.capture",
    "sampled_labels": "numerics.ekfac",
    "sgd_damping": "numerics.damping",
}


__getattr__ = from_homes(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})

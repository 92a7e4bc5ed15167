"""Influence estimators, one a file: frozen settings, functions, and what names them, ESTIMATOR.

Sign: score > 0 means that training on the sample helps the query (lowers its loss).
"""

from distinf.numerics.estimators import arnoldi, cosine, datainf, ekfac, exact, fisher, tracin
from distinf.numerics.estimators.register import Estimator

ESTIMATORS: dict[str, Estimator] = {
    module.ESTIMATOR.name: module.ESTIMATOR
    for module in (tracin, cosine, datainf, fisher, arnoldi, ekfac, exact)
}

"""Arnoldi's own work (orthogonalisation and reductions) at DeepRx's size.

Run: OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_arnoldi
"""

from time import perf_counter

import torch

from distinf.numerics.basis import SlicedBasis
from distinf.numerics.collective import Alone
from distinf.numerics.randomness import uniform

PARAMETERS = 1_232_516


def seconds_per_step(steps: int, dim: int = PARAMETERS, repeats: int = 3) -> float:
    """Best seconds to orthogonalise one vector against `steps` nearly orthonormal ones."""
    basis = SlicedBasis(dim, steps, slices=8, collective=Alone())
    for index in range(steps):  # random directions are orthogonal enough for the same work
        vector = uniform(0, "bench", dim, stream=index)
        basis.append(vector / torch.linalg.vector_norm(vector))
    product = uniform(1, "bench", dim).float()
    times = []
    for _ in range(repeats):
        began = perf_counter()
        basis.orthogonalise(product)
        times.append(perf_counter() - began)
    return min(times)


def main() -> None:
    """Print seconds of own work by Krylov step."""
    torch.set_num_threads(1)
    print(f"P = {PARAMETERS:,}, float32 basis, float64 dots, 1 thread")
    print("step   own work (s)")
    for steps in (50, 100, 200):
        print(f"{steps:>4}   {seconds_per_step(steps):.3f}")


if __name__ == "__main__":
    main()

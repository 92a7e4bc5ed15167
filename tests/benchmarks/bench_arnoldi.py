"""Arnoldi's own work (orthogonalisation, reductions, commit) at DeepRx's size, per Krylov step.

Beside it the product that it accompanies, over 64 slots at full width: the share is what counts.

    python -m tests.benchmarks.bench_arnoldi [--slots 64]
"""

import argparse
import tempfile
from time import perf_counter

import numpy as np
import torch

from distinf.collective import Collective
from distinf.numerics.basis import SlicedBasis
from distinf.numerics.curvature import hessian_product
from distinf.numerics.parameters import Layout
from distinf.numerics.randomness import uniform
from distinf.runtime import Ledger, Unit
from distinf.store import open_root, write_group
from distinf.studies.receiver.deeprx import DeepRx, DeepRxConfig
from distinf.studies.receiver.losses import CapacityBce
from tests.benchmarks.bench_runtime import batch

PARAMETERS = 1_232_516


def seconds_per_step(steps: int, dim: int = PARAMETERS, repeats: int = 3) -> float:
    """Best seconds to orthogonalise one vector against `steps` nearly orthonormal ones."""
    basis = SlicedBasis(dim, steps, slices=8, collective=Collective())
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


def commit_seconds(steps: int, repeats: int = 5) -> float:
    """Median seconds to commit one step: write, fsync, read back, record."""
    times = []
    with tempfile.TemporaryDirectory() as root:
        blobs = open_root(root)
        arrays = {
            "vector": uniform(2, "bench", PARAMETERS).float().numpy(),
            "column": np.zeros(steps + 2),
        }
        for repeat in range(repeats):
            unit = Unit("curvature", "bench", repeat, repeat + 1)
            began = perf_counter()
            manifest = write_group(blobs, f"curvature.zarr/{unit.id}/1", arrays)
            Ledger(blobs, "curvature").commit(unit, 1, {"manifest": manifest})
            times.append(perf_counter() - began)
    return sorted(times)[repeats // 2]


def product_seconds(slots: int, microbatch: int = 4) -> float:
    """Seconds of one Hessian product over `slots` slots at full width, after a small first one."""
    model = DeepRx(DeepRxConfig(), 4, 2).eval()
    layout = Layout.of(model)
    batches = [batch(microbatch, 26) for _ in range(slots // microbatch)]
    direction = uniform(3, "bench", layout.size).float()
    hessian_product(model, CapacityBce(), batches[:1], layout)(direction)
    began = perf_counter()
    hessian_product(model, CapacityBce(), batches, layout)(direction)
    return perf_counter() - began


def main() -> None:
    """Print seconds of own work by Krylov step, and its share of the product's."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--slots", type=int, default=64)
    slots = parser.parse_args().slots
    torch.set_num_threads(1)
    product = product_seconds(slots)
    print(f"P = {PARAMETERS:,}, float32 basis, float64 dots, 1 thread")
    print(f"product over {slots} slots: {product:.1f} s")
    print("step   orthogonalise (s)   commit (s)   share of a step")
    for steps in (50, 100, 200):
        own, commit = seconds_per_step(steps), commit_seconds(steps)
        share = (own + commit) / (own + commit + product)
        print(f"{steps:>4}   {own:>17.3f}   {commit:>10.3f}   {share:>14.2%}")


if __name__ == "__main__":
    main()

"""The receiver's depthwise convolution against nn.Conv2d's own kernels on a CPU.

    python -m tests.benchmarks.bench_depthwise

Each kind of work, of the quickstart's network and of DeepRx at full size, in turn with either
convolution; medians of the pairs, one torch thread.
"""

from collections.abc import Callable, Iterator
from statistics import median
from time import perf_counter

import torch
from torch import nn

from distinf.numerics.capture import flat_gradients
from distinf.numerics.curvature import Batch, hessian_product
from distinf.numerics.parameters import Layout
from distinf.studies.receiver.deeprx import DeepRx, DeepRxConfig, DepthwiseConv
from distinf.studies.receiver.losses import CapacityBce

CASES = {
    "quickstart, 24 slots of 4 PRB": (DeepRxConfig(widths=(16, 32, 32, 16)), 24, 4, 15),
    "full size, 4 slots of 26 PRB": (DeepRxConfig(), 4, 26, 3),
}


def batch_of(rows: int, blocks: int) -> dict[str, torch.Tensor]:
    grid = (14, 12 * blocks)
    inputs = torch.randn(rows, 10, *grid)
    return {
        "inputs": inputs.contiguous(memory_format=torch.channels_last),
        "bits": torch.randint(0, 2, (rows, 4, *grid)).float(),
        "mask": torch.ones(rows, *grid, dtype=torch.bool),
        "snr_db": torch.full((rows,), 10.0),
    }


def works(model: nn.Module, batch: Batch) -> Iterator[tuple[str, Callable[[], object]]]:
    loss, layout = CapacityBce(), Layout.of(model)
    vector = torch.randn(layout.size) / layout.size**0.5
    yield "training step", lambda: loss(model.train(), batch).sum().backward()
    product = hessian_product(model, loss, [batch], layout)
    yield "Hessian product", lambda: product(vector)
    yield (
        "per-sample gradients",
        lambda: flat_gradients(model.eval(), loss, batch, layout, method="hooks"),
    )


def seconds(work: Callable[[], object]) -> float:
    began = perf_counter()
    work()
    return perf_counter() - began


def main() -> None:
    torch.set_num_threads(1)
    for name, (config, rows, blocks, pairs) in CASES.items():
        torch.manual_seed(0)
        batch, ours, plain = batch_of(rows, blocks), DeepRx(config), DeepRx(config)
        for module in plain.modules():
            if isinstance(module, DepthwiseConv):
                module.__class__ = nn.Conv2d
        for (work, first), (_, second) in zip(works(ours, batch), works(plain, batch), strict=True):
            seconds(first), seconds(second)
            took = [(seconds(first), seconds(second)) for _ in range(pairs)]
            ratio = median(a / b for a, b in took)
            mine, theirs = (median(times) * 1e3 for times in zip(*took, strict=True))
            print(f"{name}: {work:22s} {mine:8.1f} ms, nn.Conv2d {theirs:8.1f} ms: {ratio:.2f}")


if __name__ == "__main__":
    main()

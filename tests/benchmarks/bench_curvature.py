"""Time and peak memory of a curvature product against one gradient of the same microbatch.

Run: OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_curvature [module:function]
The function returns (model, per-sample loss, batch); the default is DeepRx at full size.
"""

import resource
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from time import perf_counter

import torch
from torch import Tensor, nn

from distinf.numerics.capture import flat_gradients
from distinf.numerics.curvature import Loss, hessian_product, sum_gradient
from distinf.numerics.parameters import Layout

DEFAULT = "tests.benchmarks.bench_curvature:deeprx"
WORK = (
    "gradient",
    "hessian",
    "hessian-double-backward",
    "gauss-newton",
    "per-sample loop",
    "per-sample vmap",
)


def deeprx(rows: int = 4, blocks: int = 26) -> tuple[nn.Module, Loss, dict[str, Tensor]]:
    """DeepRx with 1,232,516 parameters on random slots of `blocks` resource blocks."""
    from distinf.studies.receiver.deeprx import DeepRx, DeepRxConfig
    from distinf.studies.receiver.losses import CapacityBce

    torch.manual_seed(0)
    grid = (14, 12 * blocks)
    inputs = torch.randn(rows, 10, *grid).contiguous(memory_format=torch.channels_last)
    batch = {
        "inputs": inputs,
        "bits": torch.randint(0, 2, (rows, 4, *grid)).float(),
        "mask": torch.ones(rows, *grid, dtype=torch.bool),
        "snr_db": torch.full((rows,), 10.0),
    }
    return DeepRx(DeepRxConfig()), CapacityBce(), batch


def measure(target: str, work: str) -> tuple[float, float]:
    """(seconds, MiB of peak memory above the model and batch), in this process."""
    module, _, function = target.partition(":")
    model, loss, batch = getattr(import_module(module), function)()
    layout = Layout.of(model)
    vector = torch.randn(layout.size) / layout.size**0.5
    with torch.no_grad():  # one small forward, so that library start-up is in the baseline
        loss(model.eval(), {name: value[:1] for name, value in batch.items()})
    baseline = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    run: Callable[[], Tensor]
    if work == "gradient":
        run = lambda: sum_gradient(model, loss, batch, layout)  # noqa: E731
    elif work.startswith("per-sample"):
        method = "vmap" if work.endswith("vmap") else "loop"
        run = lambda: flat_gradients(model, loss, batch, layout, method=method)  # noqa: E731
    else:
        product = hessian_product(model, loss, [batch], layout, work)  # type: ignore[arg-type]
        run = lambda: product(vector)  # noqa: E731
    times = []
    for _ in range(3):
        began = perf_counter()
        run()
        times.append(perf_counter() - began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return min(times), (peak - baseline) / 1024


def main() -> None:
    """One subprocess per kind of work, so that each has its own peak."""
    torch.set_num_threads(1)
    target = sys.argv[1] if len(sys.argv) > 1 else DEFAULT
    if len(sys.argv) > 2:
        print(*measure(target, sys.argv[2]))
        return
    print(f"{target}: {'work':<24} seconds  ratio    MiB  ratio")
    first: tuple[float, float] | None = None
    for work in WORK:
        command = [sys.executable, "-m", "tests.benchmarks.bench_curvature", target, work]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            print(f"{work:<24} failed: {done.stderr.strip().splitlines()[-1]}")
            continue
        seconds, mebibytes = (float(value) for value in done.stdout.split()[-2:])
        first = first or (seconds, mebibytes)
        print(
            f"{work:<24} {seconds:7.2f} {seconds / first[0]:6.2f} "
            f"{mebibytes:7.0f} {mebibytes / first[1]:6.2f}"
        )


if __name__ == "__main__":
    main()

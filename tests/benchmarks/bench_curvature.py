"""Time and peak memory of a curvature product against one gradient of the same microbatch.

    python -m tests.benchmarks.bench_curvature [module:function]

The function returns (model, per-sample loss, batch); the default is DeepRx at full size. Every
kind of work has a process of its own: its peak memory first, then pairs of one gradient and one
product in turn, so that the ratio holds while the machine's speed drifts. By FLOPs a Hessian
product by forward over reverse is 3 gradients, a Gauss-Newton product 5/3. Where curvlinops is
installed its Hessian product of the same mean loss is measured in the same way.
"""

import resource
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from statistics import median
from time import perf_counter

import torch
from torch import Tensor, nn

from distinf.numerics.capture import flat_gradients
from distinf.numerics.curvature import hessian_product
from distinf.numerics.losses import Loss, sum_gradient
from distinf.numerics.parameters import Layout
from distinf.runtime.worker import keep_freed_memory

DEFAULT = "tests.benchmarks.bench_curvature:deeprx"
WORK = (
    "gradient",
    "hessian",
    "hessian-double-backward",
    "gauss-newton",
    "per-sample loop",
    "per-sample vmap",
    "curvlinops hessian",
)
PAIRS = 4


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


def prepare(
    work: str, model: nn.Module, loss: Loss, batch: dict[str, Tensor], layout: Layout
) -> Callable[[], object]:
    """One call of the named work."""
    vector = torch.randn(layout.size) / layout.size**0.5
    if work == "gradient":
        return lambda: sum_gradient(model, loss, batch, layout)
    if work == "curvlinops hessian":
        from curvlinops import HessianLinearOperator

        class MeanLoss(nn.Module):
            reduction = "mean"

            def forward(self, outputs: Tensor, bits: Tensor) -> Tensor:
                return loss.from_outputs(outputs, {**batch, "bits": bits}).mean()  # type: ignore[attr-defined]

        parameters = [p for p in model.parameters() if p.requires_grad]
        data = [(batch["inputs"], batch["bits"])]
        operator = HessianLinearOperator(
            model.eval(), MeanLoss(), parameters, data, check_deterministic=False
        )
        return lambda: operator @ vector
    if work.startswith("per-sample"):
        method = "vmap" if work.endswith("vmap") else "loop"
        return lambda: flat_gradients(model, loss, batch, layout, method=method)  # type: ignore[arg-type]
    product = hessian_product(model, loss, [batch], layout, work)  # type: ignore[arg-type]
    return lambda: product(vector)


def seconds(call: Callable[[], object]) -> float:
    began = perf_counter()
    call()
    return perf_counter() - began


def measure(target: str, work: str) -> tuple[float, float, float]:
    """(median seconds, median ratio to a gradient, peak MiB above model and batch)."""
    module, _, function = target.partition(":")
    model, loss, batch = getattr(import_module(module), function)()
    layout = Layout.of(model)
    call = prepare(work, model, loss, batch, layout)
    gradient = prepare("gradient", model, loss, batch, layout)
    with torch.no_grad():  # one small forward, so that library start-up is in the baseline
        loss(model.eval(), {name: value[:1] for name, value in batch.items()})
    baseline = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    call()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pairs = [(seconds(gradient), seconds(call)) for _ in range(PAIRS)]
    times, ratios = [w for _, w in pairs], [w / g for g, w in pairs]
    return median(times), median(ratios), (peak - baseline) / 1024


def main() -> None:
    """A line per kind of work."""
    torch.set_num_threads(1)
    keep_freed_memory()
    target = sys.argv[1] if len(sys.argv) > 1 else DEFAULT
    if len(sys.argv) > 2:
        print(*measure(target, sys.argv[2]))
        return
    print(f"{target}: {'work':<24} seconds  ratio    MiB  ratio")
    first = 0.0
    for work in WORK:
        if work.startswith("curvlinops") and find_spec("curvlinops") is None:
            continue
        command = [sys.executable, "-m", "tests.benchmarks.bench_curvature", target, work]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{work:<24} failed: {done.stderr.strip().splitlines()[-1]}")
            continue
        taken, ratio, mebibytes = (float(value) for value in done.stdout.split()[-3:])
        first = first or mebibytes
        print(f"{work:<24} {taken:7.2f} {ratio:6.2f} {mebibytes:7.0f} {mebibytes / first:6.2f}")


if __name__ == "__main__":
    main()

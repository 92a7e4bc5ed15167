"""What spreading the work costs and gains: Ray against this process, two ranks against one.

python -m tests.benchmarks.bench_runtime [--units 10] [--samples 16]
"""

import argparse
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from distinf.collective import Collective
from distinf.numerics.curvature import hessian_product, sharded_mean_product
from distinf.numerics.parameters import Layout
from distinf.runtime import Ledger, RuntimeSettings, Unit, Work, open_runtime
from distinf.store import open_root
from distinf.studies.receiver.deeprx import DeepRx, DeepRxConfig
from distinf.studies.receiver.losses import CapacityBce

SHARDS = 8


def prepare(context: Mapping[str, Any], device: torch.device) -> Mapping[str, Any]:
    return {**context, "blobs": open_root(context["root"])}


def multiply(state: Mapping[str, Any], unit: Unit, attempt: str) -> dict[str, Any]:
    """A unit of fixed arithmetic, about 2 s on one core."""
    x = torch.full((1_200, 1_200), 1e-4)
    for _ in range(state["rounds"]):
        x = (x @ x).clamp(-1, 1)
    return Ledger(state["blobs"], unit.stage).commit(unit, 1, {"sum": float(x.sum())})


def batch(rows: int, prbs: int) -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(rows)
    inputs = torch.randn(rows, 10, 14, 12 * prbs, generator=random)
    return {
        "inputs": inputs.contiguous(memory_format=torch.channels_last),
        "bits": torch.randint(0, 2, (rows, 4, 14, 12 * prbs), generator=random).byte(),
        "mask": torch.ones(rows, 14, 12 * prbs, dtype=torch.bool),
        "snr_db": torch.full((rows,), 10.0),
    }


def product(state: Mapping[str, Any], collective: Collective, attempt: str) -> float:
    """Seconds of one mean Hessian product of full-width DeepRx, after a first one."""
    model = DeepRx(DeepRxConfig(), 4, 2).eval()
    layout = Layout.of(model)
    rows = state["samples"] // SHARDS
    shards = {
        shard: hessian_product(model, CapacityBce(), [batch(rows, state["prbs"])], layout)
        for shard in collective.owned(SHARDS)
    }
    matvec = sharded_mean_product(shards, count=state["samples"], collective=collective)
    v = torch.ones(layout.size)
    matvec(v)
    collective.barrier()
    began = time.perf_counter()
    for _ in range(state["repeats"]):
        matvec(v)
    collective.barrier()
    return (time.perf_counter() - began) / state["repeats"]


def work(body: str, root: str, **context: Any) -> Work:
    module = "tests.benchmarks.bench_runtime"
    return Work(f"{module}:{body}", f"{module}:prepare", {"root": root, **context})


def pool_seconds(kind: str, units: int, rounds: int) -> float:
    runtime = open_runtime(RuntimeSettings(kind=kind, workers=1, dashboard=False))
    with tempfile.TemporaryDirectory() as root:
        ledger = Ledger(open_root(root), "bench")
        runtime.pool(work("multiply", root, rounds=rounds), [Unit("bench", "warm")], ledger)
        wanted = [Unit("bench", "b", i, i + 1) for i in range(units)]
        began = time.perf_counter()
        runtime.pool(work("multiply", root, rounds=rounds), wanted, ledger)
        seconds = time.perf_counter() - began
    runtime.close()
    return seconds


def product_seconds(ranks: int, samples: int, prbs: int, repeats: int) -> float:
    runtime = open_runtime(RuntimeSettings(kind="ray", workers=ranks, dashboard=False))
    with tempfile.TemporaryDirectory() as root:
        context = {"samples": samples, "prbs": prbs, "repeats": repeats}
        seconds = runtime.gang(work("product", root, **context), ranks)
    runtime.close()
    return float(seconds)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--units", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=58)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--prbs", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--only", choices=["overhead", "ranks"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.only != "ranks":
        overhead(options)
    if options.only != "overhead":
        ranks(options)


def overhead(options: argparse.Namespace) -> None:
    """Ray against this process on the same units, in turn, start-up aside."""
    local, ray = [], []
    for _ in range(3):
        local.append(pool_seconds("local", options.units, options.rounds) / options.units)
        ray.append(pool_seconds("ray", options.units, options.rounds) / options.units)
    ratios = sorted(b / a for a, b in zip(local, ray, strict=True))
    print(f"seconds a unit: in process {sorted(local)[1]:.3f}, Ray {sorted(ray)[1]:.3f}")
    print(f"Ray / in process, three pairs: {', '.join(f'{r:.3f}' for r in ratios)}")


def ranks(options: argparse.Namespace) -> None:
    """One product by one rank and by two, a torch thread each."""
    one = product_seconds(1, options.samples, options.prbs, options.repeats)
    two = product_seconds(2, options.samples, options.prbs, options.repeats)
    print(f"product over {options.samples} slots: 1 rank {one:.2f} s, 2 ranks {two:.2f} s")
    print(f"speed of two ranks over one: {one / two:.2f}")


if __name__ == "__main__":
    main()

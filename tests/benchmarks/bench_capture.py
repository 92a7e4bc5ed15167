"""Per-sample gradients projected on 40 vectors, and what reduced precision does to scores.

    python -m tests.benchmarks.bench_capture [work …]

DeepRx at full size, 4 slots of 26 PRB, one torch thread. Every kind of work has a process of its
own: its peak memory first, then pairs of one forward and backward pass and one call in turn, of
which the median ratio is printed. Seconds are of this process alone (CPU time), so that a busy
machine changes them little. Last, "spearman": scores of 192 slots for 16 targets on a small DeepRx
after some training, in bfloat16 against float32. The aim: at most 1.6 passes.
"""

import resource
import subprocess
import sys
from collections.abc import Callable
from contextlib import nullcontext
from statistics import median
from time import process_time

import torch
from torch import Tensor, nn

from distinf.numerics.capture import flat_gradients
from distinf.numerics.curvature import hessian_product
from distinf.numerics.hooks import projected_gradients
from distinf.numerics.krylov import arnoldi
from distinf.numerics.losses import Loss, sum_gradient
from distinf.numerics.metrics import spearman
from distinf.numerics.parameters import Layout
from distinf.numerics.precision import precision
from distinf.numerics.variants import Coordinates, scores, spectrum
from distinf.runtime.worker import keep_freed_memory
from tests.benchmarks.bench_curvature import deeprx

DIRECTIONS = 40
PAIRS = 3
WORK = ("one pass", "loop", "vmap", "hooks, flat", "hooks", "hooks, bfloat16", "spearman")
CPU = torch.device("cpu")


def prepare(
    work: str, model: nn.Module, loss: Loss, batch: dict[str, Tensor], layout: Layout
) -> Callable[[], object]:
    """One call of the named work."""
    directions_KP = torch.randn(DIRECTIONS, layout.size).div_(layout.size**0.5)  # no second copy
    if work == "one pass":
        return lambda: sum_gradient(model, loss, batch, layout)
    if work in ("hooks", "hooks, bfloat16"):

        def projected() -> object:
            with precision("bfloat16", CPU) if work.endswith("bfloat16") else nullcontext():
                return projected_gradients(model, loss, batch, layout, directions_KP)

        return projected
    method = "hooks" if work == "hooks, flat" else work

    def flat() -> object:
        grads_NP = flat_gradients(model, loss, batch, layout, method=method)  # type: ignore[arg-type]
        return grads_NP @ directions_KP.T, grads_NP.double().square().sum(1)

    return flat


def seconds(call: Callable[[], object]) -> float:
    began = process_time()
    call()
    return process_time() - began


def measure(work: str) -> tuple[float, float, float]:
    """(median seconds, median ratio to one pass, peak MiB above model, batch and directions)."""
    model, loss, batch = deeprx()
    layout = Layout.of(model)
    call = prepare(work, model, loss, batch, layout)
    one_pass = prepare("one pass", model, loss, batch, layout)
    with torch.no_grad():  # one small forward, so that library start-up is in the baseline
        loss(model.eval(), {name: value[:1] for name, value in batch.items()})
    baseline = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    call()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pairs = [(seconds(one_pass), seconds(call)) for _ in range(PAIRS)]
    times, ratios = [w for _, w in pairs], [w / p for p, w in pairs]
    return median(times), median(ratios), (peak - baseline) / 1024


def slots(count: int, seed: int) -> dict[str, Tensor]:
    """16QAM over two flat fading antennas, one pilot symbol, 2 PRB, SNR of 0 to 25 dB."""
    from distinf.studies.receiver.deeprx import deeprx_inputs
    from distinf.studies.receiver.qam import constellation

    random = torch.Generator().manual_seed(seed)
    bits = torch.randint(0, 2, (count, 4, 14, 24), generator=random)
    weights = torch.tensor([8, 4, 2, 1]).view(1, 4, 1, 1)
    sent = constellation(4)[(bits * weights).sum(1)]
    pilots = torch.zeros(count, 14, 24, dtype=torch.complex64)
    pilots[:, 2] = sent[:, 2] / sent[:, 2].abs()
    sent[:, 2] = pilots[:, 2]
    snr_db = 25 * torch.rand(count, generator=random)

    def noise(*shape: int) -> Tensor:
        return torch.view_as_complex(torch.randn(*shape, 2, generator=random)) / 2**0.5

    scale = 10 ** (-snr_db / 20)
    received = noise(count, 2, 1, 1) * sent[:, None]
    received += scale.view(-1, 1, 1, 1) * noise(count, 2, 14, 24)
    mask = torch.ones(count, 14, 24, dtype=torch.bool)
    mask[:, 2] = False
    inputs = deeprx_inputs(torch.view_as_real(received), pilots)
    return {"inputs": inputs, "bits": bits.float(), "mask": mask, "snr_db": snr_db}


def trained(train: dict[str, Tensor], loss: Loss, steps: int = 150) -> nn.Module:
    """A small DeepRx after some steps of Adam."""
    from distinf.studies.receiver.deeprx import DeepRx, DeepRxConfig

    torch.manual_seed(0)
    model = DeepRx(DeepRxConfig(widths=(12, 16, 12)))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(steps):
        rows = torch.arange(32 * step, 32 * step + 32) % len(train["bits"])
        values = loss(model, {name: value[rows] for name, value in train.items()})
        optimizer.zero_grad()
        values.mean().backward()
        optimizer.step()
    print(f"loss {float(values.detach().mean()):.3f} after {steps} steps")
    return model.eval()


def finite_spearman(first_N: Tensor, second_N: Tensor) -> float:
    """Over the samples that have both scores (newfluence leaves some out)."""
    both_N = torch.isfinite(first_N) & torch.isfinite(second_N)
    return spearman(first_N[both_N], second_N[both_N])


def agreements() -> None:
    """Rank correlation of bfloat16 scores with float32 ones, by what is in bfloat16."""
    from distinf.studies.receiver.losses import CapacityBce

    loss = CapacityBce()
    train, targets = slots(192, 0), slots(16, 1)
    model = trained(train, loss)
    layout = Layout.of(model)
    product = hessian_product(model, loss, [train], layout)

    def found(gradients: str, products: str) -> dict[str, Tensor]:
        """Score kind -> [Q, N] with training gradients and curvature at these precisions."""

        def matvec(vector_P: Tensor) -> Tensor:
            with precision(products, CPU):  # type: ignore[arg-type]
                return product(vector_P) / len(train["bits"])

        pairs = arnoldi(matvec, layout.size, steps=20, keep=10, seed=0, probes=3)
        with precision(gradients, CPU):  # type: ignore[arg-type]
            train_NP = flat_gradients(model, loss, train, layout, method="hooks")
        query_QP = flat_gradients(model, loss, targets, layout)
        placed = Coordinates.of(train_NP, query_QP, pairs.vectors)
        damped = spectrum(pairs.values, 1e-2, dim=layout.size, trace=pairs.trace, policy="absolute")
        by_variant = {
            variant: scores(placed, damped, variant).scores_QN  # type: ignore[arg-type]
            for variant in ("classic", "theta-relative", "ell-relative", "newfluence")
        }
        return {"dot products": placed.dots_QN, "coordinates": placed.train_NK.T, **by_variant}

    exact = found("float32", "float32")
    for gradients, products in (
        ("bfloat16", "float32"), ("float32", "bfloat16"), ("bfloat16", "bfloat16"),
    ):  # fmt: skip
        low = found(gradients, products)
        print(f"gradients {gradients}, products {products}")
        for kind, rows in exact.items():
            # A Ritz vector's sign is arbitrary.
            pairs = zip(low[kind].contiguous(), rows.contiguous(), strict=True)
            values = [finite_spearman(a, b) for a, b in pairs]
            values = [abs(v) for v in values] if kind == "coordinates" else values
            print(f"  {kind:<16} mean {sum(values) / len(values):.4f}  least {min(values):.4f}")


def main() -> None:
    """A line per kind of work."""
    torch.set_num_threads(1)
    keep_freed_memory()
    if sys.argv[1:2] == ["--one"]:
        print(*measure(sys.argv[2]))
        return
    print(f"{'work':<20} seconds  ratio    MiB")
    for work in sys.argv[1:] or WORK:
        if work == "spearman":
            agreements()
            continue
        command = [sys.executable, "-m", "tests.benchmarks.bench_capture", "--one", work]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        taken, ratio, mebibytes = (float(value) for value in done.stdout.split()[-3:])
        print(f"{work:<20} {taken:7.2f} {ratio:6.2f} {mebibytes:6.0f}", flush=True)


if __name__ == "__main__":
    main()

"""Named GPUs, and a roofline estimate of what they take. Nothing here was measured on them.

Peaks are dense (without 2:4 sparsity) and from the makers' data sheets. A primitive takes the
longer of its arithmetic and of the traffic of its activations (Williams et al. 2009), each at a
share of the peak, and a launch overhead for each batch.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from distinf.errors import InputError
from distinf.planning.speeds import BANDWIDTH, Rate


@dataclass(frozen=True)
class Device:
    """One GPU: FLOP/s by precision, bytes/s of its memory, and its bytes."""

    name: str
    sheet: str
    float64: float
    float32: float
    tf32: float
    bfloat16: float
    bandwidth: float
    memory: float

    def peak(self, precision: str) -> float:
        """FLOP/s; InputError for a precision that this GPU has no units for."""
        peak: float = getattr(self, precision)
        if not peak:
            raise InputError(
                f"--gpu {self.name} has no {precision} arithmetic; set train.precision, "
                "curvature.precision and gradients.precision to float32"
            )
        return peak


def _device(name: str, sheet: str, tera: tuple[float, ...], gbs: float, gb: int) -> Device:
    float64, float32, tf32, bfloat16 = (1e12 * rate for rate in tera)
    return Device(name, sheet, float64, float32, tf32, bfloat16, 1e9 * gbs, 1e9 * gb)


# TFLOP/s in float64, float32, TF32 and bfloat16; GB/s; GB. Where a sheet gives rates with sparsity
# only, the dense one is half of it. A GPU without TF32 computes such products in float32. Of those
# whose sheet has no float64 (L40S, L4, T4) it is as their architecture's papers say, 1/64 or 1/32
# of float32.
DEVICES: Mapping[str, Device] = {
    device.name: device
    for device in (
        _device("h200", "NVIDIA H200 data sheet, SXM", (67, 67, 494.5, 989.5), 4_800, 141),
        _device("h100", "NVIDIA H100 data sheet, SXM5", (67, 67, 494.5, 989.5), 3_350, 80),
        _device("h100-pcie", "NVIDIA H100 data sheet, PCIe", (51, 51, 378, 756), 2_000, 80),
        _device("a100", "NVIDIA A100 data sheet, SXM 80 GB", (19.5, 19.5, 156, 312), 2_039, 80),
        _device("a100-40gb", "NVIDIA A100 data sheet, 40 GB", (19.5, 19.5, 156, 312), 1_555, 40),
        _device("l40s", "NVIDIA L40S data sheet", (1.43, 91.6, 183, 362), 864, 48),
        _device("l4", "NVIDIA L4 data sheet", (0.47, 30.3, 60, 121), 300, 24),
        _device("v100", "NVIDIA V100 data sheet, SXM2 32 GB", (7.8, 15.7, 15.7, 0), 900, 32),
        _device("t4", "NVIDIA T4 data sheet", (0.25, 8.1, 8.1, 0), 320, 16),
    )
}

# Assumed, not measured. Unfused convolutional networks reach about half of the arithmetic peak in
# their matrix products, and less of the bandwidth in depthwise convolutions and norms.
COMPUTE_SHARE = 0.5
BANDWIDTH_SHARE = 0.4
FORWARDS = {"forward": 1.0, "train": 3.0, "gradient": 3.0, "product": 9.0}  # arithmetic, in passes
# Bytes moved per byte of activations kept: a forward pass writes and reads each once, a backward
# pass twice more; a Hessian product by forward over reverse is three gradients.
TRAFFIC = {"forward": 2.0, "train": 6.0, "gradient": 6.0, "product": 18.0}
VMAP_TRAFFIC = 2.0  # vectorised per-sample gradients against a gradient of the batch's sum
LAUNCH_S = {"forward": 2e-3, "train": 15e-3, "gradient": 8e-3, "product": 25e-3}  # a batch


def device(name: str) -> Device:
    """The GPU of this name, in any case; InputError with the nearest one, and all of them."""
    found = DEVICES.get(name.lower())
    if found is None:
        near = difflib.get_close_matches(name.lower(), DEVICES, n=1, cutoff=0.4)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise InputError(f"--gpu {name}: unknown; {hint}known: {', '.join(DEVICES)}")
    return found


def roofline(
    gpu: Device,
    flops_per_sample: float,
    activation_bytes: float,
    precisions: Mapping[str, str],
    batches: Mapping[str, float],
    method: str = "vmap",
    forwards: Mapping[str, float] = FORWARDS,
) -> dict[str, Rate]:
    """Primitive -> its rate. `flops_per_sample` and `activation_bytes` (float32) are of one
    forward pass; `batches` says how many samples of a primitive come in one call."""
    found = {}
    for name, passes in forwards.items():
        precision = precisions.get(name, "float32")
        arithmetic = passes * flops_per_sample / (gpu.peak(precision) * COMPUTE_SHARE)
        moved = TRAFFIC[name] * activation_bytes
        if name == "gradient" and method == "vmap":
            moved *= VMAP_TRAFFIC
        if precision == "bfloat16":
            moved /= 2
        through = moved / (gpu.bandwidth * BANDWIDTH_SHARE)
        found[name] = longer(LAUNCH_S[name], arithmetic, through, batches.get(name, 1.0))
    return found


def longer(call: float, arithmetic: float, through: float, batch: float = 1.0) -> Rate:
    """The rate of arithmetic, or of the way through memory if that takes longer."""
    parts = {BANDWIDTH: through} if through > arithmetic else {}
    return Rate(call, max(arithmetic, through), batch, parts=parts)


def too_small(rates: Mapping[str, Rate]) -> list[str]:
    """A line for each primitive whose batches take longer to launch than to compute."""
    knobs = {
        "train": "train.batch_size",
        "product": "curvature.memory_mb",
        "gradient": "gradients.chunk",
    }
    return [
        f"{knob} makes batches of {rates[name].batch:.0f} rows, too few for a GPU: raise it"
        for name, knob in knobs.items()
        if rates[name].call > rates[name].batch * rates[name].sample
    ]


def assumptions(gpu: Device) -> str:
    """One line for people: what the estimate rests on."""
    return (
        f"estimate for {gpu.name} ({gpu.sheet}): roofline at {COMPUTE_SHARE:.0%} of peak FLOP/s "
        f"and {BANDWIDTH_SHARE:.0%} of memory bandwidth; activations are moved "
        f"{TRAFFIC['forward']:.0f} times in a forward pass, {TRAFFIC['train']:.0f} in a training "
        f"step, {TRAFFIC['product']:.0f} in a curvature product; not measured on this GPU"
    )

"""What a resumed run must agree on, and what a run's folder records of where it was carried out."""

import os
import platform
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from distinf import __version__
from distinf.config import BasisConfig, RunConfig
from distinf.runtime.units import flatten
from distinf.tasks.checkpoint import content_digest
from distinf.tasks.identity import stated

NOT_FINGERPRINTED = (
    "runtime", "out", "provenance", "data.cache_mb", "report", "train.checkpoint", "gradients.check"
)  # fmt: skip
BITWISE = {  # by route: another version, other last bits
    "basis": ("torch", "numpy", "sionna-no-rt", "sionna"),
    "gram": ("torch", "numpy", "transformers", "peft", "accelerate", "bitsandbytes"),
}
PACKAGES = ("torch", "numpy", "zarr", "ray", "sionna-no-rt", "transformers", "peft")


def fingerprint(config: RunConfig) -> dict[str, Any]:
    """What a resumed run must agree on, by dotted key: config, data, model and code."""
    plain = config.stored_form()
    keys = {
        key: value
        for key, value in flatten(plain).items()
        if not any(key == name or key.startswith(f"{name}.") for name in NOT_FINGERPRINTED)
    }
    keys |= {f"digest.{name}": value for name, value in stated(config.identity).items()}
    if isinstance(config, BasisConfig) and config.train.checkpoint:
        keys["digest.checkpoint"] = content_digest(config.train.checkpoint)
    keys["runtime.threads"] = config.runtime.threads
    keys["runtime.device"] = "cuda" if config.runtime.num_gpus else "cpu"
    keys |= {f"version.{name}": _version(name) for name in BITWISE[config.ROUTE]}
    return keys | {f"code.{name}": digest for name, digest in config.sources.items()}


def provenance(config: RunConfig, accepted: Sequence[str] = ()) -> dict[str, Any]:
    """What config.yaml records beside the settings."""
    found = {name: version for name in PACKAGES if (version := _version(name))}
    return {
        "versions": {"distinf": __version__, "python": platform.python_version()} | found,
        "machine": {"system": platform.platform(), "cpus": os.cpu_count()},
        "fingerprint": fingerprint(config),
        "decided": config.decisions,
        "accepted": list(accepted),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None

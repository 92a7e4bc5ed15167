"""What a resumed run must agree on, and what a run's folder records of where it was carried out."""

import os
import platform
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from distinf import __version__
from distinf.config import RunConfig
from distinf.engine.format import FORMAT
from distinf.runtime.units import flatten
from distinf.tasks.checkpoint import content_digest
from distinf.tasks.identity import stated

NOT_FINGERPRINTED = ("runtime", "out", "provenance", "report")
PACKAGES = ("torch", "numpy", "zarr", "ray", "sionna-no-rt", "transformers", "peft")


def fingerprint(config: RunConfig) -> dict[str, Any]:
    """What a resumed run must agree on, by dotted key: config, data, model and code."""
    plain, recipe = config.stored_form(), config.RECIPE
    left_out = (*NOT_FINGERPRINTED, *recipe.unread, *recipe.files)
    keys = {
        key: value
        for key, value in flatten(plain).items()
        if not any(key == name or key.startswith(f"{name}.") for name in left_out)
    }
    keys |= {f"digest.{name}": value for name, value in stated(config.identity).items()}
    for name in recipe.files:
        section, key = name.split(".")
        path = getattr(getattr(config, section), key)
        keys |= {f"digest.{key}": content_digest(path)} if path else {}
    keys["runtime.threads"] = config.runtime.threads
    keys["runtime.device"] = "cuda" if config.runtime.num_gpus else "cpu"
    keys |= {f"version.{name}": _version(name) for name in recipe.packages}
    return keys | {f"code.{name}": digest for name, digest in config.sources.items()}


def provenance(config: RunConfig, accepted: Sequence[str] = ()) -> dict[str, Any]:
    """What config.yaml records beside the settings."""
    found = {name: version for name in PACKAGES if (version := _version(name))}
    return {
        "format": FORMAT,
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

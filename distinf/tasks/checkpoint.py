"""Weights as a safetensors file: what training may start from, and what it leaves behind.

A path is a file or a URL (s3://, gs://). Every worker reads it, so on a cluster it must be one
that all nodes see.
"""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from distinf.digest import sha256
from distinf.errors import CorruptionError, InputError
from distinf.store import open_root

OURS = "distinf"  # the one metadata key: safetensors writes several in no fixed order


def read(path: str) -> bytes:
    """The file's bytes, links followed; InputError if there is none."""
    local = "://" not in path
    folder, _, name = ("/", "", os.path.abspath(path)) if local else path.rpartition("/")
    try:
        return open_root(folder).get(name)
    except KeyError:
        reason = "there is no such file"
    except CorruptionError:
        reason = "this is no regular file"
    except OSError as error:
        reason = str(error.strerror)
    raise InputError(
        f"train.checkpoint: {path}: {reason}; give a safetensors file that every worker sees"
    )


def content_digest(path: str) -> str:
    """sha256 of the file's bytes."""
    return sha256(read(path))


def load_checked(path: str, model: nn.Module, settings: Mapping[str, Any] | None = None) -> None:
    """Put the file's weights into the model, in place; a quantised one keeps its frozen ones.

    Raises InputError, in one line, for a file that is not safetensors, for other tensors or shapes
    than the model's, and for weights that are not finite. `settings` are the task's, to name those
    that the shapes come from.
    """
    try:
        tensors = load(read(path))
    except (SafetensorError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0][:120]
        raise InputError(
            f"train.checkpoint: {path} is not a safetensors file ({reason}); save the weights with "
            "safetensors.torch.save_file(model.state_dict(), path)"
        ) from None
    wanted, needed = model.state_dict(), whole(model)
    _check_tensors(path, tensors, wanted, needed, _remedy(settings or {}))
    model.load_state_dict(tensors, strict=False)


def unfrozen(model: nn.Module) -> dict[str, Tensor]:
    """Of the model's state what training can change: all but its frozen parameters, and what is
    beside their bits where they are quantised."""
    frozen = tuple(f"{name}." for name, p in model.named_parameters() if not p.requires_grad)
    state = model.state_dict().items()
    return {name: values for name, values in state if not f"{name}.".startswith(frozen)}


def whole(model: nn.Module) -> dict[str, Tensor]:
    """What a file of the model holds: another model's frozen parameters may be others. Those that
    are quantised come from the model that they were made of, and are left out."""
    return unfrozen(model) if getattr(model, "is_quantized", False) else model.state_dict()


def _check_tensors(
    path: str, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor],
    needed: Iterable[str], remedy: str,
) -> None:  # fmt: skip
    for name, values in wanted.items():
        if name in found and found[name].shape != values.shape:
            raise InputError(
                f"train.checkpoint: '{name}' has shape {_shape(found[name])} in {path} but "
                f"{_shape(values)} here; {remedy}"
            )
    missing = [name for name in needed if name not in found]
    if missing:
        raise InputError(f"train.checkpoint: {path} has no {_names(missing)}; {remedy}")
    extra = sorted(found.keys() - wanted.keys())
    if extra:
        raise InputError(
            f"train.checkpoint: {path} has {_names(extra)}, which this model has not; {remedy}"
        )
    for name, values in found.items():
        if _kind(values) != _kind(wanted[name]):  # quantised: without its scale it is no weight
            kinds = f"{values.dtype} in {path} but {wanted[name].dtype} here".replace("torch.", "")
            raise InputError(f"train.checkpoint: '{name}' is {kinds}; {remedy}")
        wide = values.float() if values.itemsize == 1 and values.is_floating_point() else values
        bad = int((~torch.isfinite(wide)).sum())
        if bad:
            raise InputError(
                f"train.checkpoint: {bad} of {values.numel()} values of '{name}' in {path} are not "
                "finite; give a checkpoint from before training diverged"
            )


def _kind(values: Tensor) -> tuple[bool, bool]:
    return values.is_floating_point(), values.is_complex()


def _shape(values: Tensor) -> str:
    return f"({', '.join(map(str, values.shape))})"


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def _remedy(settings: Mapping[str, Any]) -> str:
    model = settings.get("model")
    names: Iterable[str] = model if isinstance(model, Mapping) else ()
    keys = ", ".join(f"settings.model.{name}" for name in names) or "settings"
    return f"make the model the one that was saved ({keys}) or give another file"


def encoded(tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> bytes:
    """A safetensors file of the tensors, with `about` as JSON in its metadata; the same bytes for
    the same content."""
    own = {name: values.detach().cpu().contiguous().clone() for name, values in tensors.items()}
    return save(own, metadata={OURS: json.dumps(dict(about), sort_keys=True)})


def about(data: bytes) -> dict[str, Any]:
    """What `encoded` was told about the tensors; empty for a file that is not whole, or not ours.

    Layout: 8 bytes of header length, the header as JSON, the tensors.
    """
    try:
        end = 8 + int.from_bytes(data[:8], "little")
        header = json.loads(data[8:end])
        size = max((entry["data_offsets"][1] for key, entry in header.items() if key[:2] != "__"))
        return json.loads(header["__metadata__"][OURS]) if len(data) == end + size else {}
    except (ValueError, KeyError, TypeError):
        return {}

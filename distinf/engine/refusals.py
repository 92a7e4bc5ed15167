"""What no run begins with: a secret that is not known, a GPU or a folder that is not there."""

import uuid
from typing import Any

import torch

from distinf.config import RunConfig
from distinf.engine.session import Session
from distinf.errors import InputError
from distinf.masking import variable


def refuse_unknown_secrets(config: RunConfig) -> None:
    for key in config.unknown_secrets:
        raise InputError(
            f"{key}: a run's folder does not keep secrets; give it in the environment, as "
            f"{variable(key)}, or run the configuration that it was in"
        )


def refuse_without_gpu(config: RunConfig) -> None:
    gpus = config.runtime.num_gpus
    if gpus and config.runtime.kind == "local" and not torch.cuda.is_available():
        raise InputError(
            f"runtime.num_gpus: {gpus:g}, but torch sees no GPU here; set it to 0, or name a "
            "cluster that has some (runtime.address)"
        )
    for each in (config, *config.varied.values()):
        needs = getattr(each.decided, "needs_gpu", "")
        if needs and not gpus:
            raise InputError(f"{needs} needs a GPU: set runtime.num_gpus, or choose another")


def refuse_unseen_folder(session: Session, runtime: Any) -> None:
    """A folder of this machine alone would lose what other nodes write."""
    probe = f".probe-{uuid.uuid4().hex}"
    session.blobs.put(probe, b"")
    try:
        blind = runtime.blind_nodes(f"{session.blobs.root}/{probe}")
    finally:
        session.blobs.delete(probe)
    if blind:
        raise InputError(
            f"out: {session.blobs.root} is not seen by {', '.join(blind)}; "
            "put it on a folder that all nodes share, or on s3:// or gs://"
        )

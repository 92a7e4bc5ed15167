"""A DeepSpeed configuration file, held against the run's own settings; nothing of it is imported.

What both of them could say, the run's settings say: a file that says otherwise is refused. "auto"
is what DeepSpeed files have for a value that is set elsewhere.
"""

import importlib.util
import json
from collections.abc import Iterator, Mapping
from typing import Any

from distinf.errors import InputError, install_command
from distinf.store.regular import read_given

Config = Mapping[str, Any]
AUTO = "auto"
MICRO = "train_micro_batch_size_per_gpu"
ACCUMULATED = "gradient_accumulation_steps"
OPTIMIZER = {"type": "AdamW", "params.betas": [0.9, 0.999], "params.eps": 1e-8}
OURS = ("train_batch_size", MICRO, ACCUMULATED, "gradient_clipping", "optimizer", "scheduler",
        "bf16", "fp16", "torch_autocast")  # fmt: skip


def read(path: str) -> dict[str, Any]:
    """ValueError, in one line, for what is no JSON object with a ZeRO stage."""
    try:
        found = json.loads(read_given(path))
    except OSError as error:
        raise ValueError(f"deepspeed: {path}: {error.strerror}; name a JSON file") from None
    except ValueError as error:
        raise ValueError(f"deepspeed: {path} is not JSON ({error})") from None
    if not isinstance(found, dict):
        raise ValueError(f"deepspeed: {path} holds no JSON object")
    return found


def refuse_contradictions(train: Any) -> None:
    """ValueError for a value of the file that the settings `train` set otherwise, or that cannot
    be had."""
    config = train.deepspeed
    zero = config.get("zero_optimization")
    if not isinstance(zero, Mapping) or zero.get("stage") not in (2, 3):
        raise ValueError("deepspeed: zero_optimization.stage must be 2 or 3")
    for name in ("offload_optimizer", "offload_param"):
        if offloaded(config, name) not in (None, "cpu"):
            raise ValueError(f"deepspeed: zero_optimization.{name}.device must be cpu or none")
    if zero["stage"] < 3 and offloaded(config, "offload_param"):
        raise ValueError("deepspeed: offload_param needs zero_optimization.stage 3")
    if train.batch_size < train.devices:
        raise ValueError(f"devices: {train.devices} are more than batch_size ({train.batch_size})")
    for key, wanted, setting in _set_by_us(config, train):
        found = _at(config, key)
        if found not in (None, AUTO, wanted):
            raise ValueError(
                f"deepspeed: {key} is {json.dumps(found)} where {setting} gives "
                f'{json.dumps(wanted)}; leave it out, or "{AUTO}"'
            )
    for key in ("scheduler", "torch_autocast"):
        if config.get(key) not in (None, AUTO):
            way = "train.schedule" if key == "scheduler" else "train.precision"
            raise ValueError(f"deepspeed: {key} is set by {way}; leave it out")


def _set_by_us(config: Config, train: Any) -> Iterator[tuple[str, Any, str]]:
    """(key in the file, our value, the setting that it comes from)."""
    micro = rows_at_once(train)
    yield "train_batch_size", train.batch_size, "train.batch_size"
    yield MICRO, micro, "train.batch_size / train.devices"
    steps = -(-train.batch_size // (micro * train.devices))
    yield ACCUMULATED, steps, "train.batch_size"
    yield "gradient_clipping", train.clip, "train.clip"
    yield "optimizer.params.lr", train.lr, "train.lr"
    yield "optimizer.params.weight_decay", train.weight_decay, "train.weight_decay"
    yield "bf16.enabled", train.precision == "bfloat16", f"train.precision={train.precision}"
    yield "fp16.enabled", False, f"train.precision={train.precision}"
    for key, value in OPTIMIZER.items():
        yield f"optimizer.{key}", value, "the run's AdamW"


def rows_at_once(train: Any) -> int:
    """Rows of one pass on one device: the file's, or a device's whole share of a batch."""
    share: int = -(-train.batch_size // train.devices)
    micro = train.deepspeed.get(MICRO)
    return micro if isinstance(micro, int) and 0 < micro <= share else share


def offloaded(config: Config, name: str) -> str | None:
    """Where to: of offload_optimizer or offload_param; None where it stays."""
    found = config["zero_optimization"].get(name)
    device = found.get("device", "cpu") if isinstance(found, Mapping) else None
    return None if device == "none" else device


def shared_bytes(
    train: Any, model: float, trained: float
) -> tuple[dict[str, float], dict[str, float]]:
    """Of one rank by part: (host, device) for `model` bytes of weights, and of `trained` parameters
    the gradients, a copy and two moments (Rajbhandari et al. 2020, section 3.1, in fp32)."""
    stage, ranks = train.deepspeed["zero_optimization"]["stage"], train.devices
    weights = model / ranks if stage == 3 else model
    host, device = dict[str, float](), {"gradients": 4.0 * trained / ranks}
    for name, size, setting in (
        ("weights", weights, "offload_param"),
        ("optimizer", 12.0 * trained / ranks, "offload_optimizer"),
    ):
        (host if offloaded(train.deepspeed, setting) else device)[name] = size
    return host, device


def summed_bytes(train: Any, model: float, trained: float, rows: int, evaluated: int) -> float:
    """Cost.summed of a training on `rows` rows an epoch, with `evaluated` rows after each: of a
    step the gradients summed and the parameters gathered; in stage 3 all weights are gathered in
    both passes over each piece instead (Rajbhandari et al. 2020, section 7)."""
    steps, together = -(-rows // train.batch_size), rows_at_once(train) * train.devices
    pieces = steps * -(-train.batch_size // together)
    if train.deepspeed["zero_optimization"]["stage"] < 3:
        return train.epochs * steps * 2.0 * 4.0 * trained
    pieces = 2 * pieces - (-evaluated // (train.evaluation_batch * train.devices))
    return train.epochs * (steps * 4.0 * trained + pieces * model)


def refuse_missing() -> None:
    """InputError where DeepSpeed is not installed."""
    if importlib.util.find_spec("deepspeed") is None:
        raise InputError(
            f"train.deepspeed: DeepSpeed is not installed here: {install_command('deepspeed')}"
        )


def for_engine(train: Any) -> dict[str, Any]:
    """What `deepspeed.initialize` takes: the file's, with what is ours in it."""
    own = _without_auto({key: value for key, value in train.deepspeed.items() if key not in OURS})
    return {
        **own,
        MICRO: 1,  # nothing but its loader, which is not used, goes by these two
        ACCUMULATED: 1,
        "gradient_clipping": train.clip,
        "bf16": {"enabled": train.precision == "bfloat16"},
        "steps_per_print": 1 << 30,
    }


def _without_auto(value: Any) -> Any:
    """DeepSpeed's own default for each."""
    if not isinstance(value, Mapping):
        return value
    return {k: _without_auto(v) for k, v in value.items() if v != AUTO}


def _at(config: Any, key: str) -> Any:
    for part in key.split("."):
        config = config.get(part) if isinstance(config, Mapping) else None
    return config

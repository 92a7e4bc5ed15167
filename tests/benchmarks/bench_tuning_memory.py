"""Peak memory of fine-tuning on a row, of a Phi-3-shaped model of random weights, beside the plan.

    python -m tests.benchmarks.bench_tuning_memory [--width 1024] [--layers 8] [--set KEY=VALUE …]

Runs the base stage and the first unit of the tuning stage as a worker does, in this process, and
prints JSON: the resident bytes that were added at the peak, those of the plan (without a worker
that holds nothing), and the model's in float32.
"""

import argparse
import json
import tempfile
from multiprocessing import get_context
from pathlib import Path

import torch
import yaml
from transformers import Phi3Config, Phi3ForCausalLM

from distinf.config import resolve
from distinf.empirical import base, tuning
from distinf.engine.session import prepare
from distinf.naming import CONFIG
from distinf.runtime.worker import Worker
from distinf.store import open_root
from tests.support.causal import write_causal
from tests.support.runs import merged


def resident(which: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(which)).split()[1])


def write_phi(folder: Path, width: int, layers: int) -> None:
    write_causal(folder)  # for its tokenizer
    torch.manual_seed(0)
    config = Phi3Config(
        vocab_size=8 * width, hidden_size=width, intermediate_size=8 * width // 3,
        num_hidden_layers=layers, num_attention_heads=8, num_key_value_heads=8,
        max_position_embeddings=512, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    Phi3ForCausalLM(config).save_pretrained(folder)


def compared(raw: dict[str, object], out: Path) -> dict[str, float]:
    config = resolve({**raw, "out": str(out)})
    open_root(str(out)).put(CONFIG, b"")  # a folder without one is no run's
    worker = Worker(1)
    worker.ready()
    before = resident("VmRSS")  # preparing, a worker loads the model to see whose it is
    session = prepare(config.context(str(out)), worker.device())
    units = [stage.units(session.outline)[0] for stage in (base, tuning)]
    for stage, (unit, _) in zip((base, tuning), units, strict=True):
        stage.body(session, unit, "1-probe")
    return {
        "measured": resident("VmHWM") - before,
        "planned": max(cost.host_bytes + cost.device_bytes for _, cost in units),
        "model": 4.0 * session.outline.shapes.parameters,
    }


def main() -> None:
    asked = argparse.ArgumentParser()
    asked.add_argument("--width", type=int, default=1024)
    asked.add_argument("--layers", type=int, default=8)
    asked.add_argument("--set", action="append", default=[], dest="changes")
    given = asked.parse_args()
    raw = {
        "task": "knowledge", "recipe": "empirical", "runtime": {"kind": "local"},
        "settings": {"draws": 1, "domains": ["squares"]},
        "tune": {"optimizer": "adamw", "lr": 1e-4, "first_order": True, "rows_per_unit": 1},
    }  # fmt: skip
    for change in given.changes:
        (section, key), value = change.partition("=")[0].split("."), change.partition("=")[2]
        raw = merged(raw, {section: {key: yaml.safe_load(value)}})
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        size = (model, given.width, given.layers)
        writing = get_context("spawn").Process(target=write_phi, args=size)
        writing.start()
        writing.join()  # what it took is given back
        raw = merged(raw, {"settings": {"model": str(model)}})
        print(json.dumps(compared(raw, Path(folder) / "run")))


if __name__ == "__main__":
    main()

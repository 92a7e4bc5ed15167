"""Trainings by gangs with DeepSpeed: what is refused, what is saved, and which weights come out."""

import json
import os
import random
import signal
import threading
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from distinf.config import resolve
from distinf.engine.run import open_session
from distinf.errors import CorruptionError, InputError
from distinf.gram import deepspeed, train
from distinf.gram.settings import StageSettings, TrainSettings
from distinf.planning.room import Asked, refuse_few
from distinf.runtime import Node, Resources, RuntimeSettings, open_runtime
from distinf.store import open_root
from distinf.studies.language.saving import Saved
from tests.support.runs import ROOT, workers_of

FILES = ROOT / "configs" / "deepspeed"
ZERO2 = {"zero_optimization": {"stage": 2}}
NVME = {"zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}}


def settings(config, **more):
    return TrainSettings(**{"batch_size": 8, "devices": 2, "deepspeed": config, **more})


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ({}, "devices: several share a training by train.deepspeed; name its file"),
        ({"zero_optimization": {}}, "zero_optimization.stage must be 2 or 3"),
        (
            {**ZERO2, "train_batch_size": 32},
            "train_batch_size is 32 where train.batch_size gives 8",
        ),
        ({**ZERO2, deepspeed.MICRO: 5}, "is 5 where train.batch_size / train.devices gives 4"),
        ({**ZERO2, deepspeed.MICRO: 2, deepspeed.ACCUMULATED: 4}, "steps is 4 where"),
        ({**ZERO2, "optimizer": {"type": "Lamb"}}, 'type is "Lamb" where the run\'s AdamW gives'),
        ({**ZERO2, "optimizer": {"params": {"lr": 1.0}}}, "lr is 1.0 where train.lr gives 0.0003"),
        (
            {**ZERO2, "gradient_clipping": 5.0},
            "gradient_clipping is 5.0 where train.clip gives 1.0",
        ),
        ({**ZERO2, "bf16": {"enabled": True}}, "where train.precision=float32 gives false"),
        ({**ZERO2, "scheduler": {"type": "WarmupLR"}}, "scheduler is set by train.schedule"),
        (NVME, "zero_optimization.offload_param.device must be cpu or none"),
        ({"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}}, "needs zero_opt"),
    ],
)
def test_a_file_that_contradicts_the_settings_is_refused_in_one_line(config, told):
    with pytest.raises(ValueError) as refused:
        settings(config)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def test_values_that_agree_and_those_left_to_us_are_taken():
    config = {
        **ZERO2, "train_batch_size": 8, deepspeed.MICRO: 2, deepspeed.ACCUMULATED: 2,
        "optimizer": {"type": "AdamW", "params": {"lr": "auto", "weight_decay": 0.0}},
        "gradient_clipping": "auto", "reduce": {"bucket": "auto", "kept": 1},
    }  # fmt: skip
    made = settings(config)
    assert deepspeed.rows_at_once(made) == 2
    given = deepspeed.for_engine(made)
    assert given["gradient_clipping"] == 1.0
    assert given["reduce"] == {"kept": 1}
    assert "optimizer" not in given


def test_a_file_is_read_once_and_its_content_kept(tmp_path):
    path = tmp_path / "zero.json"
    path.write_text(json.dumps(ZERO2))
    assert settings(str(path)).deepspeed == ZERO2
    for content, told in (("{", "is not JSON"), ("[]", "holds no JSON object")):
        path.write_text(content)
        with pytest.raises(ValueError, match=told):
            settings(str(path))
    with pytest.raises(ValueError, match="No such file or directory; name a JSON file"):
        settings(str(tmp_path / "none.json"))
    for each in FILES.glob("*.json"):
        settings(str(each))


def test_who_has_no_deepspeed_is_told_what_installs_it(monkeypatch):
    monkeypatch.setattr(deepspeed.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r'not installed here: pip install "deepspeed') as refused:
        deepspeed.refuse_missing()
    assert "\n" not in str(refused.value)


def test_what_a_gang_cannot_train_is_refused_before_the_run(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "refuse_missing", lambda: None)
    made = resolve({
        "task": "sft", "out": str(tmp_path / "run"), "runtime": {"kind": "ray", "workers": 2},
        "data": {"path": str(tiny / "train.jsonl"), "queries": str(tiny / "asked.jsonl")},
        "model": {"name": str(tiny / "model"), "quantise": "4bit"},
        "train": {"batch_size": 4, "devices": 2, "deepspeed": ZERO2},
    })  # fmt: skip
    session = made.session(str(tmp_path / "run"), torch.device("cpu"))
    with pytest.raises(InputError, match=r"does not share quantised weights; set model.quantise"):
        train.check(session)
    with pytest.raises(ValueError, match="name train_micro_batch_size_per_gpu in its file"):
        settings(ZERO2, accumulation=2)
    assert settings(ZERO2, checkpointing=True).checkpointing


def test_more_ranks_than_there_is_room_for_are_refused():
    nodes = [Node("a", 2.0, 1e9, ()), Node("b", 1.0, 1e9, ())]
    asked = Asked(
        "train", 4, Resources(1.0), "runtime.num_gpus", (), least=4, sharing="train.devices"
    )
    with pytest.raises(InputError, match=r"train.devices=4 workers .* there is room for 3 "):
        refuse_few([asked], RuntimeSettings(), nodes)
    with pytest.raises(InputError, match="there is room for 1 "):
        refuse_few([asked], RuntimeSettings(kind="local"), nodes)
    with pytest.raises(InputError, match="there is room for 2 "):
        refuse_few([asked], RuntimeSettings(workers=2), nodes)
    refuse_few([asked], RuntimeSettings(), [*nodes, nodes[0]])
    made = StageSettings(train=settings(ZERO2))
    assert [stage.ranks(made) for stage in (train.STAGE,)] == [2]
    assert train.STAGE.ranks(StageSettings()) is None


def test_parts_of_a_rank_are_those_of_the_stage():
    state = {"weights": 40.0, "gradients": 40.0, "optimizer": 120.0}
    for each in (ZERO2, {"zero_optimization": {"stage": 3}}):
        assert deepspeed.shared_bytes(settings(each, devices=1), 40.0, 10.0) == ({}, state)
    halves = {"weights": 40.0, "gradients": 20.0, "optimizer": 60.0}
    assert deepspeed.shared_bytes(settings(ZERO2), 40.0, 10.0) == ({}, halves)
    offload = str(FILES / "zero3-offload.json")
    moved = {"weights": 20.0, "optimizer": 60.0}
    assert deepspeed.shared_bytes(settings(offload), 40.0, 10.0) == (moved, {"gradients": 20.0})


def test_bytes_that_ranks_send_are_those_of_the_paper():
    # 20 rows in batches of 8 are 3 steps, of 2 ranks with 4 rows each; 2 epochs.
    whole = {"model": 40.0, "trained": 10.0, "rows": 20, "evaluated": 10}
    assert deepspeed.summed_bytes(settings(ZERO2, epochs=2), **whole) == 2 * 3 * 2 * 40.0
    zero3 = {"zero_optimization": {"stage": 3}}
    made = settings({**zero3, deepspeed.MICRO: 2}, epochs=2, evaluation_batch=2)
    # Two pieces a step, forward and backward; 10 rows evaluated are 3 pieces.
    assert deepspeed.summed_bytes(made, **whole) == 2 * (3 * 40.0 + (3 * 2 * 2 + 3) * 40.0)


def test_what_is_saved_comes_back_and_damage_is_told_with_a_remedy_that_helps(
    tmp_path, monkeypatch
):
    monkeypatch.setattr("distinf.studies.language.saving.FILE_BYTES", 100)
    tensors = [(f"t{k}", torch.full((5, 5), float(k))) for k in range(3)]
    saved = Saved(open_root(str(tmp_path)), "checkpoints/unit")
    assert saved.index() == (0, {})
    saved.put(3, iter(tensors[:1]), {})
    saved.put(6, iter(tensors), {"history": [1.5]})
    assert saved.index() == (6, {"history": [1.5]})
    for (name, values), (wanted, expected) in zip(saved.tensors(), tensors, strict=True):
        assert name == wanted
        assert torch.equal(values, expected)
    files = sorted(path for path in tmp_path.rglob("*") if path.is_file())
    kinds = [path.suffix for path in files]
    assert kinds == [".safetensors"] * 3 + [".json"]
    files[1].write_bytes(files[1].read_bytes()[:-1])
    with pytest.raises(CorruptionError, match=r"delete checkpoints/unit there"):
        list(saved.tensors())
    files[-1].write_text("{")
    with pytest.raises(CorruptionError, match=r"index.json is not what was saved; delete"):
        saved.index()
    saved.clear()  # what deleting the folder does
    assert saved.index() == (0, {})


# -- with DeepSpeed ----------------------------------------------------------------------------

ROWS = [{"prompt": f"{k} and ", "completion": "ab" * (1 + k % 3)} for k in range(21)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    from tests.support.chats import write_tuned_on

    return write_tuned_on(tmp_path_factory.mktemp("tiny"), ROWS)


def config(tiny, out, stage, **more):
    """21 rows by 4: a last batch of one row leaves a rank without any."""
    by_gang = {"deepspeed": str(FILES / f"{stage}.json"), "devices": 2, "checkpoint_every": 2}
    return resolve({
        "task": "sft", "trained": "all", "out": str(out),
        "data": {"path": str(tiny / "train.jsonl"), "queries": str(tiny / "asked.jsonl")},
        "model": {"name": str(tiny / "model")},
        "runtime": {"kind": "ray", "workers": 2, "dashboard": False, "timeout_s": 600},
        "train": {"epochs": 3, "batch_size": 4, "lr": 1e-3, "weight_decay": 0.01,
                  "selected_epoch": "last", **(by_gang if stage else {}), **more},
    })  # fmt: skip


@pytest.fixture(scope="module")
def cluster():
    """One for all: its workers train one model after another."""
    runtime = open_runtime(RuntimeSettings(workers=2, dashboard=False, timeout_s=900, silent_s=900))
    try:
        yield runtime
    finally:
        runtime.close()


def trained(cluster, configuration, killed_after=None):
    """The stage train -> its arrays, and the step that was saved when a rank was killed."""
    session, killed_at = open_session(configuration), []
    stop = threading.Event()
    killer = threading.Thread(target=lambda: killed_at.append(_kill(session, killed_after, stop)))
    killer.start()
    try:
        train.run(session, cluster)
    finally:
        stop.set()
        killer.join()
    assert not session.blobs.names(train.CHECKPOINTS)
    return session.arrays(train.units(session.outline)[0][0]), killed_at[0]


def _kill(session, step, stop):
    """A SIGKILL for the last rank, once `step` is saved, -> the step that was."""
    while step is not None and not stop.is_set():
        for path in Path(session.blobs.root, train.CHECKPOINTS).glob("*/index.json"):
            try:
                found = json.loads(path.read_text())["step"]
            except (OSError, ValueError):
                continue
            if found >= step:
                os.kill(workers_of(os.getpid())[-1], signal.SIGKILL)
                return found
        time.sleep(0.01)
    return None


@pytest.fixture(scope="module")
def alone(tiny, tmp_path_factory):
    """What one process makes of it, without DeepSpeed."""
    configuration = config(tiny, tmp_path_factory.mktemp("alone"), "")
    fit = configuration.identity.fit(np.arange(21), configuration.train, torch.device("cpu"))
    weights = {f"weight.{name}": values for name, values in fit.weights.items()}
    return {**weights, "query_loss": np.array(fit.history["query_loss"]), "rows": fit.row_losses}


def relative(found, wanted):
    names = [name for name in wanted if name.startswith("weight.")]
    assert names
    change = sum(float(np.square(found[n] - wanted[n]).sum()) for n in names)
    return (change / sum(float(np.square(wanted[n]).sum()) for n in names)) ** 0.5


def needs_deepspeed(test):
    lacks = find_spec("deepspeed") is None
    why = "needs distinf[deepspeed], ninja and a C++ compiler"
    return pytest.mark.ray(pytest.mark.slow(pytest.mark.skipif(lacks, reason=why)(test)))


@needs_deepspeed
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("stage", ["zero2", "zero3", "zero3-offload"])
def test_a_gang_killed_at_a_random_step_ends_in_the_bits_of_one_that_was_not(
    tiny, alone, cluster, tmp_path, stage
):
    whole, _ = trained(cluster, config(tiny, tmp_path / "whole", stage))
    step = random.SystemRandom().randrange(2, 14)
    killed, step = trained(cluster, config(tiny, tmp_path / "killed", stage), step)
    print(f"{stage}: killed after step {step}; from one process {relative(whole, alone):.1e}")
    assert step is not None
    assert all(np.array_equal(killed[n], whole[n], equal_nan=True) for n in whole)
    assert relative(whole, alone) < 1e-5
    assert np.allclose(whole["query_loss"], alone["query_loss"], rtol=1e-5)
    assert np.allclose(whole["row_losses"], alone["rows"], rtol=1e-4)


@needs_deepspeed
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("stage", ["zero2", "zero3"])
def test_activations_that_are_computed_again_change_no_weight(
    tiny, alone, cluster, tmp_path, stage
):
    found, _ = trained(cluster, config(tiny, tmp_path / "run", stage, checkpointing=True))
    print(f"{stage}, recomputed: from one process {relative(found, alone):.1e}")
    assert relative(found, alone) < 1e-5

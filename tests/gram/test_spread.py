"""A model spread over two processes: the same bits as on one, each with its part of the layers."""

import json
import shutil
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("peft", reason="needs distinf[llm]")
import transformers

from distinf.cli import main
from distinf.config import resolve
from distinf.engine.run import execute, open_session
from distinf.engine.session import session_of
from distinf.errors import InputError
from distinf.gram import data, gradients, spread, train
from distinf.gram.settings import GradientSettings
from distinf.numerics.checkpointing import layers_alike
from distinf.planning import room
from distinf.runtime import Node, Resources, RuntimeSettings, open_runtime
from distinf.runtime.process_group import join_group
from distinf.runtime.worker import free_address
from distinf.studies.language.causal import CausalModel
from distinf.studies.sft.settings import CausalSettings
from tests.support.chats import write_rows, write_tuned_on
from tests.support.noisy import tiny_model, write_classes
from tests.support.runs import silent

ROWS = [{"prompt": f"{k} and ", "completion": "ab" * (1 + k % 7)} for k in range(13)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tuned_on(tmp_path_factory.mktemp("tiny"), ROWS)


def config(tiny, out, devices, workers=2, **more):
    """13 rows in units of 8, of which the second has an odd number of batches."""
    return resolve({
        "task": "sft", "out": str(out), "trained": more.pop("trained", "lora"),
        "data": {"path": str(tiny / "train.jsonl"), "queries": str(tiny / "asked.jsonl")},
        "model": {"name": str(tiny / "model"), "dtype": "float32", **more.pop("model", {})},
        "runtime": {"kind": "ray", "workers": workers, "num_cpus": 0.5, "timeout_s": 600},
        "train": {"epochs": 1, "batch_size": 4, "lr": 1e-2, "selected_epoch": "last"},
        "gradients": {"rows_per_unit": 8, "rows_per_batch": 2, "tokens_per_batch": 48,
                      "method": "hooks", "embeddings": True, "devices": devices, **more},
    })  # fmt: skip


def rank_of(rank, address, context):
    """The gang's units; then what this rank holds of the model, before and after a pass."""
    torch.set_num_threads(1)
    session = session_of(context, torch.device("cpu"))
    collective = join_group(rank, 2, address, backend="gloo", timeout_s=60.0)
    gradients.gang(session, collective, f"g-{rank}")
    with spread.shared(session, collective):
        model, held, open_ones = train.trained_model(session, ""), [], []
        first, second = layers_alike(model)
        second.register_forward_pre_hook(lambda *_: open_ones.append(local(first)))
        held.append(local(model))
        gradients._gradients(session, "", "train", np.arange(2))
        held.append(local(model))
    assert session.kept_model() is None
    return held, open_ones, model.config.tie_word_embeddings


def local(model):
    """Numbers that this process holds of a model's frozen layers."""
    frozen = [p for n, p in model.named_parameters() if ".lora_" not in n]
    return sum((p.to_local() if hasattr(p, "to_local") else p).numel() for p in frozen)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_store_the_bits_of_one(tiny, tmp_path):
    alone = open_session(config(tiny, tmp_path / "alone", 1))
    apart = open_session(config(tiny, tmp_path / "apart", 2))
    assert alone.keys["gradients"] == apart.keys["gradients"]
    runtime = open_runtime(RuntimeSettings(kind="local"))
    train.run(alone, runtime)
    for each in Path(tmp_path / "alone").iterdir():
        if "train" in each.name or each.name in ("ledger", "units"):
            shutil.copytree(each, tmp_path / "apart" / each.name, dirs_exist_ok=True)
    gradients.run(alone, runtime)
    address = free_address("127.0.0.1")
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        calls = [pool.submit(rank_of, rank, address, apart.context) for rank in range(2)]
        told = [call.result(timeout=500) for call in calls]
    wanted = [unit for unit, _ in gradients.units(alone.outline)]
    assert len(wanted) == 3
    for unit in wanted:
        one, two = alone.arrays(unit), apart.arrays(unit)
        assert one.keys() == two.keys()
        assert all(one[name].tobytes() == two[name].tobytes() for name in one)
        assert np.abs(one["dense.000"]).min(0).max() > 0
        assert apart.record(unit)["summary"]["ranks"] == 2
    model = alone.task("").model()
    whole, layers = local(model), sum(local(layer) for layer in layers_alike(model))
    for held, open_ones, _ in told:
        assert held == [whole - layers // 2] * 2
        assert set(open_ones) == {layers // 4}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_tell_classes_and_right_answers_as_one_does(tmp_path):
    def opened(devices):
        return open_session(resolve({
            "task": "noisy_labels", "out": str(tmp_path / f"{devices}"), "seeds": 1,
            "data": {"path": write_classes(tmp_path / "rows.csv", ("good", "bad"), rows=48),
                     "train_rows": 13, "query_rows": 5, "test_rows": 12},
            "model": {"name": tiny_model(tmp_path / "model"), "max_length": 12},
            "runtime": {"kind": "ray", "workers": 2, "num_cpus": 0.5},
            "train": {"epochs": 1, "batch_size": 8, "lr": 1e-2},
            "gradients": {"rows_per_unit": 8, "rows_per_batch": 2, "tokens_per_batch": 24,
                          "checkpointing": True, "devices": devices},
        }))  # fmt: skip

    alone, apart = opened(1), opened(2)
    runtime = open_runtime(RuntimeSettings(kind="local"))
    for session in (alone, apart):
        data.run(session, runtime)
        train.run(session, runtime)
    gradients.run(alone, runtime)
    address = free_address("127.0.0.1")
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        calls = [pool.submit(units_of, rank, address, apart.context) for rank in range(2)]
        for call in calls:
            call.result(timeout=500)
    wanted = [unit for unit, _ in gradients.units(alone.outline)]
    names = set()
    for unit in wanted:
        one, two = alone.arrays(unit), apart.arrays(unit)
        assert {n: x.tobytes() for n, x in one.items()} == {n: x.tobytes() for n, x in two.items()}
        names |= one.keys()
    assert {gradients.PREDICTED, "correct"} <= names


def units_of(rank, address, context):
    torch.set_num_threads(1)
    collective = join_group(rank, 2, address, backend="gloo", timeout_s=60.0)
    gradients.gang(session_of(context, torch.device("cpu")), collective, f"g-{rank}")


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_of_gangs_side_by_side_ends_in_the_scores_of_one_without(tiny, tmp_path):
    """And candidates are scored so, too."""
    write_rows(tiny / "more.jsonl", ROWS[:5])
    scores = []
    for devices, workers in ((1, 1), (2, 4)):
        configuration = config(tiny, tmp_path / f"{devices}", devices, workers=workers)
        execute(configuration, silent)
        session = open_session(configuration)
        units = [unit for unit, _ in gradients.units(session.outline)]
        assert {session.record(unit)["summary"].get("ranks", 1) for unit in units} == {devices}
        arrays = [session.arrays(unit) for unit in units]
        scores.append([{name: x.tobytes() for name, x in each.items()} for each in arrays])
        out = str(tmp_path / f"{devices}")
        assert main(["query", out, "--candidates", str(tiny / "more.jsonl")]) == 0
    assert scores[0] == scores[1]
    late = [[np.load(f) for f in (tmp_path / n).rglob("queries/*/scores*.npy")] for n in "12"]
    assert [len(each) for each in late] == [1, 1]
    assert late[0][0].shape == (3, 5)
    assert np.array_equal(late[0][0], late[1][0])


# -- what is planned, and what is refused ----------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"trained": "all"}, "this model has none (all of it is trained, or it is quantised)"),
        ({"model": {"quantise": "4bit"}}, "frozen weights of 16 or 32 bits, and this model has"),
    ],
)
def test_what_cannot_be_spread_is_refused_in_one_line(tiny, tmp_path, changes, told):
    more = {"embeddings": False, **changes}
    session = config(tiny, tmp_path / "run", 2, **more).session(str(tmp_path), torch.device("cpu"))
    with pytest.raises(InputError) as refused:
        spread.check(session)
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_worker_too_small_for_the_model_is_told_of_as_many_as_are_enough(tiny, tmp_path):
    folder = shutil.copytree(tiny / "model", tmp_path / "deep")
    about = json.loads((folder / "config.json").read_text()) | {"num_hidden_layers": 16}
    (folder / "config.json").write_text(json.dumps({**about, "layer_types": None}))
    made_of = transformers.AutoConfig.from_pretrained(folder)
    transformers.AutoModelForCausalLM.from_config(made_of).save_pretrained(folder)

    def asked(devices, limit=1e12):
        """What a GPU of so many bytes is told of the largest unit, and what that takes of it."""
        more = {"workers": 0, "tokens_per_batch": 600, "model": {"name": str(folder)}}
        made = config(tiny, tmp_path / "run", devices, **more)
        outline = made.session(str(tmp_path), torch.device("cpu")).outline
        cost = max(
            (cost for _, cost in gradients.units(outline)), key=lambda cost: cost.device_bytes
        )
        demand = room.demand(cost, 0.0, (), on_gpu=True)
        stage = room.Asked("gradients", 8, Resources(1.0, 1.0), "runtime.num_gpus", (demand,))
        node = Node("a server", 64, 1e12, (limit / room.GPU_SHARE,) * 8)
        try:
            room.refuse_overfull([stage], RuntimeSettings(num_gpus=1), [node])
        except InputError as error:
            return str(error), demand.gpu
        return "", demand.gpu

    layer = 4.0 * local(layers_alike(CausalModel(CausalSettings(name=str(folder))).skeleton())[0])
    whole, halves, quarters = (asked(devices)[1] for devices in (1, 2, 4))
    assert whole - halves == pytest.approx((16 / 2 - spread.GATHERED) * layer)
    assert whole - quarters == pytest.approx((16 * 3 / 4 - spread.GATHERED) * layer)
    assert "set gradients.devices=4" in asked(1, quarters + 1)[0]
    assert "set gradients.devices=4" in asked(2, quarters + 1)[0]
    assert asked(4, quarters + 1)[0] == ""
    assert "gradients.devices" not in asked(1, whole - 13.1 * layer)[0]  # 3 are whole on any


def test_methods_other_than_hooks_are_refused():
    with pytest.raises(ValueError, match="devices: parts of a model are for hooks"):
        GradientSettings(devices=2, method="loop")


def test_more_devices_than_workers_are_refused(tiny, tmp_path):
    wanted = r"gradients.devices=3 workers share a unit, and there is room for 2 .* lower gradients"
    with pytest.raises(InputError, match=wanted):
        open_session(config(tiny, tmp_path / "run", 3))

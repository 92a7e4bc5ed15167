"""Configuration: what is wrong is said in one line that names the key and the way out."""

import dataclasses
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distinf.config import config_class, load, resolve
from distinf.engine.recipe import RECIPES
from distinf.errors import InputError
from distinf.runtime.units import differences, flatten
from distinf.spectral.settings import TrainSettings
from tests.support.runs import POINTS, ROOT

BAD = [
    ({"tasks": "receiver"}, r"unknown key 'tasks'; did you mean 'task'\?"),
    ({"train": {"step": 3}}, r"unknown key 'train.step'; did you mean 'steps'\?"),
    ({"curvature": {"kept": 3}}, r"unknown key 'curvature.kept'; did you mean 'keep'\?"),
    ({"settings": {"scenario": {"prb": 4}}}, r"unknown key 'settings.scenario.prb'.*'prbs'"),
    ({"settings": {"modell": {}}}, r"unknown key 'settings.modell'; did you mean 'model'\?"),
    ({"settings": {"scenario": {"snr_db": [20, 0]}}}, r"snr_db=\(20, 0\) is reversed"),
    ({"settings": {"scenario": {"prbs": 400}}}, r"prbs=400.*allows 1 to 270 PRBs"),
    ({"settings": {"scenario": {"train_slots": 100}}}, r"train_slots=100.*nearest is 96"),
    ({"settings": {"scenario": {"train_models": ["TDL-F"]}}}, r"TDL-F"),
    ({"curvature": {"steps": 5, "keep": 10}}, r"keep: 10 Ritz pairs cannot come from 5 steps"),
    ({"curvature": {"kind": "fisher"}}, r"curvature.kind: .*'hessian', .*'gauss-newton'"),
    ({"train": {"lr": "fast"}}, r"train.lr: .*number"),
    ({"train": {"lr": -1}}, r"lr: -1(.0)? must be more than 0"),
    ({"train": {"batch_size": 7, "shards": 2}}, r"batch_size: 7 is not a multiple"),
    ({"scores": {"damping": float("nan")}}, r"damping: nan must be 0 or more"),
    ({"actions": {"pool": 10, "batch_size": 24}}, r"cannot be drawn from a pool of 10"),
    ({"runtime": {"kind": "slurm"}}, r"'slurm' is neither 'ray' nor 'local'"),
    ({"runtime": {"num_gpus": -0.5}}, r"num_gpus: -0.5 must be 0 or more"),
    ({"curvature": {"refine_steps": 0}}, r"refine_steps: 0 must be at least 1"),
    (
        {"curvature": {"fresh": True, "residuals": "relation"}},
        r"set curvature.residuals to products",
    ),
    ({"actions": {"weight_decay": float("nan")}}, r"weight_decay: nan must be 0 or more"),
    ({"report": {"bins": 0}}, r"bins: 0 must be at least 1"),
    ({3: 4}, r"unknown key '3'"),
    ({"task": ":x"}, r"task: ':x' is neither"),
    ({"task": "json:loads"}, r"task: json:loads is no task factory"),
    ({"seed": -1}, r"seed: .*greater than or equal to 0"),
    (
        {"task": "reciever"},
        r"'reciever' is neither a study \(digits, .*, knowledge, .*, receiver, .*, sft\) ",
    ),
    ({"task": "reciever"}, r"; did you mean 'receiver'\?"),
    ({"task": "mine"}, r"; write it as in mine:task"),
    (
        {"task": "tests.engine.test_run:hopeless", "trained": True},
        r"unknown key 'trained'; did you mean 'train'\?; a setting of the task's own is set",
    ),
    (
        {"task": "tests.support.blobs_task:task", "trained": True},
        r"unknown key 'trained'; did you mean 'train'\?$",
    ),
    ({"train": 3}, r"train: holds keys and is no value; set one of them, as in train.steps"),
    (
        {"variations": {"a": 3}},
        r"variations.a: holds keys and is no value; .* as in variations.a.key",
    ),
    ({"task": "no_such_module:task"}, r"task: no module 'no_such_module'"),
    ({"task": "tests.support.blobs_task:absent"}, r"has no 'absent' \(it has .*task"),
    ({"train": {"steps": 10**22}}, r"train: steps: 1\d* in pieces of checkpoint_every 50 are more"),
    ({**POINTS, "settings": {"rows": 3}}, r"rows: 3 must be at least 40"),
]


@pytest.mark.parametrize(("raw", "message"), BAD, ids=[m[:30] for _, m in BAD])
def test_bad_input_is_one_line(raw, message):
    with pytest.raises(InputError) as caught:
        resolve(raw if "tasks" in raw else {"task": "receiver", **raw})
    assert re.search(message, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)


def test_scientific_notation_that_yaml_reads_as_text_is_a_number(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("task: receiver\ntrain: {lr: 1e-3}\n")
    assert load(str(file)).train.lr == 1e-3


@pytest.mark.parametrize(
    "changed",
    ["train.lr=yes", "train.steps=true", "seed=off", "settings.scenario.snr_db=[no, 9]",
     "settings.scenario.prbs=on", "variations={fast: {train.steps: true}}"],
)  # fmt: skip
def test_a_truth_value_is_no_number(tmp_path, changed):
    (tmp_path / "c.yaml").write_text("task: receiver\n")
    with pytest.raises(InputError, match="is no number; give one"):
        load(str(tmp_path / "c.yaml"), [changed])
    kept = load(str(tmp_path / "c.yaml"), ["curvature.fresh=yes"])
    assert kept.curvature.fresh is True


def test_overrides_reach_nested_and_task_keys(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text("task: receiver\nseed: 1\n")
    config = load(str(file), ["seed=5", "train.steps=7", "settings.scenario.snr_db=[0, 9]"])
    assert (config.seed, config.train.steps) == (5, 7)
    assert config.settings["scenario"]["snr_db"] == [0.0, 9.0]


def test_a_python_file_in_the_place_of_a_config_is_told_how_its_task_is_named(tmp_path):
    (tmp_path / "digits.py").write_text("def task(settings, seed): ...")
    with pytest.raises(InputError, match=r"is Python; name .*digits:task"):
        load(str(tmp_path / "digits.py"))


@pytest.mark.parametrize("override", ["seed", "=3", "seed.x=3", "train=[", "nothing.at.all=1"])
def test_a_bad_override_is_one_line(tmp_path, override):
    file = tmp_path / "c.yaml"
    file.write_text("task: receiver\nseed: 1\n")
    with pytest.raises(InputError):
        load(str(file), [override])


@pytest.mark.parametrize("text", ["a: [", "- 1\n", "", "a: b: c", "a: !!int ''", "a: !!bool maybe"])
def test_a_broken_file_is_one_line(tmp_path, text):
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=r"c\.yaml"):
        load(str(file))


def test_a_config_can_extend_another(tmp_path):
    (tmp_path / "base.yaml").write_text(
        "train: {steps: 7, lr: 0.5}\nbeside: {small: {train.rows: 9}}\ntask: receiver\n"
    )
    (tmp_path / "own.yaml").write_text("extends: base.yaml\ntrain: {lr: 0.1}\nbeside: {}\n")
    config = load(str(tmp_path / "own.yaml"), ["train.weight_decay=0.2"])
    assert (config.train.steps, config.train.lr, config.train.weight_decay) == (7, 0.1, 0.2)
    assert config.variations == {}
    assert config.out == "runs/own"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("extends: nowhere.yaml", r"nowhere.yaml: No such file"),
        ("extends: own.yaml", r"own.yaml: extends itself"),
        ("extends: [a]", r"own.yaml: extends names one file"),
    ],
)
def test_a_wrong_base_is_one_line(tmp_path, text, message):
    (tmp_path / "own.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        load(str(tmp_path / "own.yaml"))


def test_a_missing_file_is_one_line():
    with pytest.raises(InputError, match=r"nowhere.yaml: No such file.*give the path"):
        load("nowhere.yaml")
    with pytest.raises(InputError, match=r"mine: No such file .*, or a task, as in mine:task"):
        load("mine")


def test_task_settings_are_resolved_to_their_defaults():
    config = resolve({"task": "receiver"})
    assert config.settings["scenario"]["prbs"] == 26
    assert resolve(config.model_dump(mode="json")) == config


RUNS = sorted(p for p in (ROOT / "configs").rglob("*.yaml") if not p.name.startswith("import-"))


@pytest.mark.parametrize("path", RUNS, ids=lambda p: p.name)
def test_every_config_we_ship_is_valid(path, tmp_path):
    (tmp_path / "rows.csv").write_text("text,label\na b,0\n")
    own = ["data.path=" + str(tmp_path / "rows.csv")] if "your-file" in path.read_text() else []
    if path.parent.name == "benchmarks":  # of digits in files
        for split, row in (("train", "0,255,3\n"), ("evaluation", "255,0,3\n")):
            (tmp_path / f"{split}.csv").write_text(row)
            own += [f"settings.{split}={tmp_path / f'{split}.csv'}", f"settings.{split}_rows=1"]
    if path.stem in ("vision", "yardstick"):
        image = ",".join(["0"] * 28**2)
        (tmp_path / "images.csv").write_text("".join(f"{image},{k}\n" for k in range(10)))
        own = [f"settings.{name}={tmp_path / 'images.csv'}" for name in ("clothes", "digits")]
        own.append("settings.per_class=1")
    if path.parent.name == "sft":
        (tmp_path / "rows.jsonl").write_text('{"text": "a"}\n')
        data = "settings.data" if "recipe: spectral" in path.read_text() else "data"
        own = [f"{data}.{name}={tmp_path / 'rows.jsonl'}" for name in ("path", "queries")]
    if path.name in ("smollm.yaml", "phi-3.yaml"):
        causal = pytest.importorskip("tests.support.causal", reason="needs distinf[llm]")
        place = "model.name" if path.parent.name == "sft" else "settings.model"
        own.append(f"{place}={causal.write_causal(tmp_path / 'model')}")
    config = load(str(path), own)
    keys = config.context("memory://x")["keys"]
    assert "report" in keys[""]
    first = config.RECIPE.stages[0].name
    assert any(first in cell for cell in keys.values())


def test_the_key_of_a_stage_covers_what_it_depends_on_and_no_more():
    def keys(**changes):
        return resolve({**POINTS, **changes}).context("x")["keys"][""]

    def changed(**changes):
        before, after = keys(), keys(**changes)
        return [stage for stage in before if before[stage] != after[stage]]

    factors = ["factors", "gradients", "scores"]
    whole = ["data", "train", "evaluate", "targets", "curvature", "queries", *factors]
    rest = ["trajectory", "tracin", "attribution", "actions", "retrain", "report"]
    assert changed(seed=1) == [*whole, *rest]
    # A fine-tuning job's own id says how it is done: the stage's key covers the rest.
    assert changed(actions={**POINTS["actions"], "lr": 1.0}) == ["report"]
    assert changed(actions={**POINTS["actions"], "non_targets": 9}) == ["actions", "report"]
    assert changed(targets={"count": 1}) == ["targets", "queries", *factors, *rest]
    ekfac = {**POINTS["scores"], "ekfac": True}
    assert changed(scores=ekfac) == [*factors, "attribution", "actions", "report"]
    assert changed(variations={"other": {"train.steps": 3}}) == ["report"]
    assert changed(runtime={"kind": "ray", "workers": 7}) == []
    assert changed(data={"cache_mb": 1}) == []


def test_differences_name_dotted_keys():
    one, two = flatten({"a": {"b": 1, "c": [1, 2]}}), flatten({"a": {"b": 2, "c": (1, 2)}, "d": 3})
    assert differences(one, two) == ["a.b", "d"]


def test_every_stage_setting_is_a_key_of_the_config():
    for config in map(config_class, RECIPES):
        stages = {field.name for field in dataclasses.fields(config.RECIPE.settings)}
        assert stages <= set(config.model_fields)


@settings(max_examples=40, deadline=None)
@given(steps=st.integers(1, 500), warmup=st.floats(0, 0.4), constant=st.floats(0.4, 1))
def test_the_rate_rises_holds_and_falls_within_its_bounds(steps, warmup, constant):
    train = TrainSettings(steps=steps, warmup=warmup, constant=constant, lr=0.5)
    rates = [train.rate(step) for step in range(steps)]
    assert all(0 < rate <= 0.5 for rate in rates)
    peak = rates.index(max(rates))
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


@pytest.mark.parametrize("text", ["010", "1:30", "-0_7", "22:22", "1:30.5"])
def test_a_number_that_yaml_reads_to_another_base_is_refused(tmp_path, text):
    """Of 010 it makes 8, of 1:30 it makes 90."""
    file = tmp_path / "c.yaml"
    file.write_text(f"task: receiver\ntrain: {{steps: {text}}}\n")
    for path, changes in ((str(file), []), ("receiver:task", [f"train.steps={text}"])):
        with pytest.raises(InputError, match="a number to another base in YAML; write it without"):
            load(path, changes)
    file.write_text(f"task: receiver\nout: '{text}'\ntrain: {{lr: 0.10, steps: 0x0A}}\n")
    kept = load(str(file))
    assert (kept.out, kept.train.lr, kept.train.steps) == (text, 0.1, 10)

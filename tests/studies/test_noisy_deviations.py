"""Where a run is not what Vitel and Chhabra did: said where settings make it so, and only there."""

import re
from dataclasses import replace

import pytest

from distinf.config import load
from distinf.gram.settings import ScoreSettings, StageSettings, TrainSettings
from distinf.studies.noisy_labels.deviations import ALWAYS, deviations
from distinf.studies.noisy_labels.known import paper_name
from distinf.studies.noisy_labels.settings import DataSettings, ModelSettings, NoisyLabelSettings
from tests.support.runs import ROOT


def published_settings(**changes):
    data = DataSettings(datasets=("qnli",))
    model = ModelSettings(name="FacebookAI/roberta-large", dtype="bfloat16")
    return replace(NoisyLabelSettings(data=data, model=model), **changes)


def published_stages(**changes):
    train = TrainSettings(weight_decay=0.01, clip=0.0)
    return replace(StageSettings(train=train), **changes)


def said(ours=None, stages=None, model="roberta-large", entries=None):
    found = (ours or published_settings(), stages or published_stages(), model, entries or {})
    return "\n".join(deviations(*found))


def test_a_run_with_the_published_settings_deviates_only_where_every_run_does():
    assert said().splitlines() == list(ALWAYS)


@pytest.mark.parametrize(
    ("train", "line"),
    [
        ({"weight_decay": 0.0}, "Weight decay is 0; .* default of 0.01"),
        ({"clip": 2.5}, "clipped at norm 2.5"),
        ({"selected_epoch": "last"}, "epoch that comes last is scored"),
        ({"selected_epoch": "best_query_accuracy"}, "epoch of highest query accuracy is scored"),
        ({"lr": 1e-4}, r"train.lr of qnli 0.0001 \(0.0003\)"),
        ({"epochs": 3}, r"\): train.epochs 3 \(10\)"),
    ],
)
def test_a_setting_of_training_is_a_deviation_only_when_it_is_one(train, line):
    ours = published_stages(train=replace(published_stages().train, **train))
    assert re.search(line, said(stages=ours))
    assert not re.search(line, said())


def test_datainf_of_a_large_tensor_is_a_deviation():
    entries = {"classifier.dense.weight": 1024**2, "layer.0.lora_A": 4096}
    assert "DataInf is also taken of classifier.dense.weight; " in said(entries=entries)
    other = published_stages(scores=ScoreSettings(estimators=("tracin",)))
    assert "DataInf" not in said(stages=other, entries=entries)
    assert "DataInf" not in said(entries={"layer.0.lora_A": 4096})


def test_deviations_of_the_data_and_of_the_model_are_told():
    assert "277 rows" in said(published_settings(data=DataSettings(datasets=("rte", "qnli"))))
    mine = published_settings(data=DataSettings(path="a.tsv"), seeds=2)
    text = said(mine, model="")
    assert "The data are a file" in text
    assert "277 rows" not in text
    assert "seeds 2 (10)" in text
    assert "none of the four of Vitel and Chhabra" in text


def test_the_paper_configurations_deviate_in_no_number():
    for path in sorted((ROOT / "configs" / "noisy_labels").glob("*.yaml")):
        config = load(str(path))
        if config.identity.settings.data.path:
            continue
        name = paper_name(config.identity.settings.model.name)
        stages = StageSettings(train=config.train, scores=config.scores, actions=config.actions,
                               gradients=config.gradients)  # fmt: skip
        told = said(config.identity.settings, stages, name)
        assert "Settings beside" not in told, path
        assert "Weight decay" not in told
        assert "clipped" not in told

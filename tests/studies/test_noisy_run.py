"""A file of five named classes through the whole study: trained, ranked, told by name."""

import csv
import io
import json
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch

pytest.importorskip("peft", reason="needs distinf[llm]")

import peft
import transformers
from safetensors.torch import load, load_file, save

from distinf.config import resolve
from distinf.engine.run import execute
from distinf.errors import InputError
from distinf.gram import train
from distinf.progress import summary
from distinf.studies.language.adapters import trained_weights
from distinf.studies.language.peft_files import peft_files
from distinf.studies.language.settings import LoraSettings
from distinf.studies.noisy_labels.models import load_model
from distinf.studies.noisy_labels.outputs import logits_of
from distinf.studies.noisy_labels.settings import ModelSettings
from distinf.studies.noisy_labels.task import NoisyCell
from distinf.terminal import Terminal
from tests.support.noisy import tiny_model, write_classes

QUEUES = ("billing", "delivery", "other", "praise", "returns")


def test_five_named_classes_from_a_csv_to_a_ranking(tmp_path):
    raw = {
        "task": "noisy_labels", "out": str(tmp_path / "run"), "seeds": 1,
        "data": {"path": write_classes(tmp_path / "queues.csv", QUEUES, rows=100),
                 "train_rows": 60, "query_rows": 20, "test_rows": 20, "flips": 0.1},
        "model": {"name": tiny_model(tmp_path / "model"), "max_length": 12},
        "runtime": {"kind": "local"},
        "train": {"epochs": 4, "batch_size": 10, "lr": 0.05},
        "scores": {"estimators": ["tracin"]},
        "actions": {"configurations": ["random"], "adapters": True},
    }  # fmt: skip
    session = execute(resolve(raw), lambda *_: nullcontext())
    with (tmp_path / "run" / "report" / "ranked_rows-queues-0.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 60
    assert {row["label"] for row in rows} | {row["clean_label"] for row in rows} == set(QUEUES)
    wrong = [row for row in rows if row["flipped"] == "True"]
    assert wrong == [row for row in rows if row["label"] != row["clean_label"]]
    assert len(wrong) == 6
    assert all(row["suggested_label"] in set(QUEUES) - {row["label"]} for row in rows)
    assert np.isfinite([float(row["own_loss"]) for row in rows]).all()
    out = io.StringIO()
    summary(session, 1.0, Terminal(file=out, width=100))
    told = out.getvalue()
    assert "The most detrimental training rows" in told
    assert rows[0]["text"][:20] in told
    assert "of 60 labels are wrong." in told
    assert "own loss" in told.partition("Beside it: ")[2]
    page = (tmp_path / "run" / "report" / "index.html").read_text()
    assert "suggested label" in page
    assert all(name in page for name in QUEUES)
    assert "Weight decay is 0; the text names none" in page
    assert "train.epochs 4 (10)" in page
    assert "277 rows" not in page  # of RTE, which this is not
    check_kept(tmp_path, session)


def check_kept(folder, session):
    """The adapters, read by PEFT and by this program, are the trained models; rows those kept."""
    index = json.loads((folder / "run" / "adapters" / "index.json").read_text())
    kept = {name: folder / "run" / path for name, path in index["queues-0"].items()}
    assert [*kept] == ["scored", "random"]
    rows = {name: (each / "rows.jsonl").read_text().splitlines() for name, each in kept.items()}
    assert {name: len(lines) for name, lines in rows.items()} == {"scored": 60, "random": 42}
    assert {*rows["random"]} < {*rows["scored"]}
    assert {*json.loads(rows["random"][0])} >= {"row", "text", "label", "clean_label"}

    cell = session.task("queues-0")
    batch = cell.batch("evaluation", np.arange(20))
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder / "model", num_labels=len(QUEUES)
    )
    peft_model = peft.PeftModel.from_pretrained(plain, str(kept["scored"])).eval()
    with torch.no_grad():
        wanted = logits_of(train.trained_model(session, "queues-0"), batch)
        found = peft_model(**{k: v for k, v in batch.items() if k != "labels"}).logits
    torch.testing.assert_close(found, wanted)

    settings = replace(cell.settings, lora=LoraSettings(adapter=str(kept["random"])))
    begun = NoisyCell(settings, cell.cell)
    begun.attach(cell.prepare())
    weights = trained_weights(begun.model())
    drawn = trained_weights(cell.model())
    assert weights.keys() == drawn.keys()
    assert not all(np.array_equal(weights[name], drawn[name]) for name in weights)
    saved = load_file(kept["random"] / "adapter_model.safetensors")
    for name, values in weights.items():
        saved_as = "base_model.model." + name.replace(".default.", ".")
        np.testing.assert_array_equal(values, saved[saved_as].numpy())
    assert begun.digests()["model"] != cell.digests()["model"]


MISMATCHES = [
    ({"r": 8}, {}, "has r=8; set lora.rank=8"),
    ({"lora_alpha": 16}, {}, "has lora_alpha=16; set lora.alpha=16"),
    ({"base_model_name_or_path": "org/other"}, {}, "is of the model org/other, not of model.name="),
    ({}, {"base_model.model.odd.lora_A.weight": torch.ones(4, 16)}, "has base_model.model.odd"),
    ({}, {"LORA_A": torch.ones(4, 17)}, r"is \[4, 17\], where .* has \[4, 16\]"),
    ({}, {"LORA_A": None}, "lacks base_model.model.bert.*is adapted in"),
]


@pytest.mark.parametrize(("config", "tensors", "message"), MISMATCHES)
def test_an_adapter_that_is_not_the_models_is_refused_in_one_line(
    tmp_path, config, tensors, message
):
    name = tiny_model(tmp_path / "model")
    made = load_model(ModelSettings(name=name, max_length=12), LoraSettings(), 0, pad=1)
    files = peft_files(trained_weights(made), LoraSettings(), name, "SEQ_CLS")
    folder = tmp_path / "adapter"
    folder.mkdir()
    whole = json.loads(files["adapter_config.json"]) | config
    (folder / "adapter_config.json").write_text(json.dumps(whole))
    saved = load(files["adapter_model.safetensors"])
    first = next(key for key in saved if "lora_A" in key)
    saved |= {key.replace("LORA_A", first): values for key, values in tensors.items()}
    kept = {key: values for key, values in saved.items() if values is not None}
    (folder / "adapter_model.safetensors").write_bytes(save(kept))
    with pytest.raises(InputError, match=message) as caught:
        load_model(
            ModelSettings(name=name, max_length=12), LoraSettings(adapter=str(folder)), 0, pad=1
        )
    assert "\n" not in str(caught.value)
    (folder / "adapter_model.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match="is no adapter of PEFT"):
        load_model(
            ModelSettings(name=name, max_length=12), LoraSettings(adapter=str(folder)), 0, pad=1
        )
    with pytest.raises(InputError, match=r"absent.*No such file.*give a folder with adapter_con"):
        load_model(
            ModelSettings(name=name, max_length=12),
            LoraSettings(adapter=str(tmp_path / "absent")),
            0,
            1,
        )

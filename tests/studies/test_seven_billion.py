"""Mistral-7B: what is planned of it by hand, and the way that it goes, by a tiny one."""

import json
import tempfile

import numpy as np
import pytest
import torch

pytest.importorskip("peft", reason="needs distinf[llm]")
pytest.importorskip("bitsandbytes", reason="needs distinf[llm]")

from distinf.config import load
from distinf.engine.run import execute
from distinf.errors import InputError
from distinf.planning import plan, plans
from distinf.spectral.curvature import stored_pairs
from tests.support.chats import write_tuned_on
from tests.support.runs import ROOT, all_scores, silent

SFT, NOISY = ROOT / "configs" / "sft", ROOT / "configs" / "noisy_labels" / "mistral-7b.yaml"
ONE_CELL = ("seeds=1", "data.datasets=[rte]")
ADAPTERS = ("gradients.embeddings=false", "gradients.exclude=score")
TERA, GIGA = 1e12, 1e9


def planned(config):
    """(outline, {stage: plan}) without a network."""
    session = config.session(tempfile.gettempdir(), torch.device("cpu"))
    found = plans.quick_plans(session, config.runtime)
    return session.outline, {stage.asked.stage: stage for stage in found}


def flops(outline, stage, **job):
    """Of the stage's units of such a job."""
    return sum(
        cost.flops for unit, cost in stage.units(outline)
        if all(unit.job.get(key) == value for key, value in job.items())
    )  # fmt: skip


def test_the_layer_study_is_planned_as_it_was_worked_out_by_hand():
    from distinf.gram import gram

    outline, stages = planned(load(str(NOISY), [*ONE_CELL, *ADAPTERS]))
    (cell,) = outline.cells.values()
    assert cell.shapes.trained == 1_712_128
    assert cell.shapes.parameters == 7_113_814_016 + 1_703_936
    assert sum(block.entries for block in cell.blocks.dense) == 1_703_936
    assert {len(members) for members in cell.groups.values()} == {128, 32}  # all, and four groups
    group = next(members for name, members in cell.groups.items() if len(members) == 32)
    entries = {block.name: block.entries for block in cell.blocks.dense}
    assert sum(entries[name] for name in group) == 425_984
    # 16-bit gradients of 4,500 and 500 rows; products of queries with rows, of rows with rows.
    stored = stages["gradients"].bytes
    assert stored == pytest.approx((15.3 + 1.7) * GIGA, rel=0.01)
    assert flops(outline, gram, phase="cross") == pytest.approx(7.7 * TERA, rel=0.01)
    both = 2 * flops(outline, gram, phase="self")  # of the symmetric matrix half is made
    assert both == pytest.approx(69 * TERA, rel=0.3)  # in tiles, those on the diagonal whole


def test_longer_rows_of_more_adapters_are_planned_as_it_was_worked_out_by_hand():
    longer = ("lora.rank=8", "model.max_length=1023", "data.train_rows=4500")  # 512 on average
    outline, stages = planned(load(str(NOISY), [*ONE_CELL, *ADAPTERS, *longer]))
    (cell,) = outline.cells.values()
    assert cell.shapes.tokens_per_row == 512
    assert sum(block.entries for block in cell.blocks.dense) == 3_407_872
    found = stages["gradients"]
    assert found.flops == pytest.approx(5_000 * 512 * 4 * 7.24e9, rel=0.05)  # 4 N a token
    assert found.bytes == pytest.approx(68 * GIGA / 2, rel=0.01)  # of 5,000 rows; 68 GB in float32
    minutes = found.flops / (0.4 * 989 * TERA) / 60
    assert minutes == pytest.approx(3.1, rel=0.05)


@pytest.fixture
def rows(tmp_path):
    """Overrides that name files of 512 tokens a row, as four letters a token make them."""
    path = tmp_path / "rows.jsonl"
    texts = [f"{k:03d}" + "word " * 407 for k in range(512)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path, f"out={tmp_path / 'run'}"


def sft(name, path, *changes):
    """A configuration; of the spectral recipe `data` is a section of its own."""
    key = "settings.data" if name.endswith("arnoldi") else "data"
    files = [f"{key}.path={path}", f"{key}.queries={path}"]
    return load(str(SFT / f"{name}.yaml"), [*files, *changes])


def test_arnoldi_on_the_adapters_is_planned_without_a_network(rows):
    config = sft("mistral-7b-arnoldi", *rows)
    outline, stages = planned(config)
    assert outline.entries == 3_407_872
    assert outline.shapes.tokens_per_row == pytest.approx(512, abs=2)
    curvature = stages["curvature"]
    steps = config.curvature.steps + config.curvature.keep + config.curvature.probes
    product = 512 * 512 * 8 * 7.24e9  # 8 N a token of an exact product through frozen weights
    assert curvature.flops == pytest.approx(steps * product, rel=0.05)
    assert curvature.gpu_parts["directions"] < 2 * GIGA
    assert curvature.gpu_memory < 72 * GIGA
    found = plan(config, gpu="h100", gpus=8)
    assert found.gpus == 8
    assert any("a token for 4 letters" in note for note in found.notes)
    assert plan(sft("mistral-7b", *rows), gpu="h100", gpus=8).seconds > 0


def test_a_basis_of_all_seven_billion_is_refused_with_what_to_set(rows):
    whole = ["train.steps=0", "trained=all", "curvature.blocks=all", "curvature.steps=200",
             "model.quantise=none", "model.double_quantise=false"]  # fmt: skip
    config = sft("mistral-7b-arnoldi", *rows, *whole)
    outline, stages = planned(config)
    assert 200 * outline.vector == pytest.approx(5.8 * TERA, rel=0.01)
    assert stages["curvature"].gpu_parts["directions"] > 5.8 * TERA
    with pytest.raises(InputError, match=r"^curvature: .* name fewer parameters in curv"):
        plan(config, gpu="h200", gpus=64)


# -- the same configurations, of a tiny model ----------------------------------------------------


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    texts = [{"prompt": f"{k} and ", "completion": "ab" * (1 + k % 3)} for k in range(24)]
    return write_tuned_on(tmp_path_factory.mktemp("tiny"), texts)


def of_tiny(tiny, out, name, *changes):
    key = "settings.data" if name.endswith("arnoldi") else "data"
    return sft(
        name, tiny / "train.jsonl", f"{key}.queries={tiny / 'asked.jsonl'}", f"out={out}",
        f"model.name={tiny / 'model'}", "runtime={kind: local, num_gpus: 0}", *changes,
    )  # fmt: skip


SMALL = (
    "train.steps=6", "train.batch_size=8", "train.checkpoint_every=3", "curvature.steps=8",
    "curvature.keep=4", "curvature.samples=16", "curvature.shards=2", "curvature.probes=2",
    "targets.count=3", "actions.pool=8",
)  # fmt: skip


@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", ["4bit", pytest.param("none", marks=pytest.mark.slow)])
def test_arnoldi_on_adapters_through_frozen_weights(tiny, tmp_path, kind):
    changes = [f"model.quantise={kind}", f"model.double_quantise={str(kind != 'none').lower()}"]
    session = execute(of_tiny(tiny, tmp_path, "mistral-7b-arnoldi", *SMALL, *changes), silent)
    pairs = stored_pairs(session)
    assert pairs.vectors.shape == (4, session.outline.entries)
    assert (pairs.residuals < 0.5 * pairs.values.abs().max()).any()
    for name, scores in all_scores(session).items():
        assert np.isfinite(scores).all(), name
        assert scores.std() > 0
    kept = {name.partition(".")[0] for name in session.arrays(_last_checkpoint(session))}
    assert kept == {"model", "optimizer", "loss"}
    names = [n for n in session.arrays(_last_checkpoint(session)) if n.startswith("model.")]
    assert all(".lora_" in name for name in names)


def _last_checkpoint(session):
    from distinf.spectral import train

    return train.units(session.outline)[-1][0]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ekfac_on_adapters_through_4_bits(tiny, tmp_path):
    few = ("train.epochs=2", "train.batch_size=8")
    session = execute(of_tiny(tiny, tmp_path, "mistral-7b", *few), silent)
    table = json.loads(session.blobs.get("report/by_query.json"))
    assert {row["query_row"] for row in table} == {0, 1, 2}
    assert session.settings.scores.estimators == ("tracin", "cosine", "datainf", "ekfac")

"""What a report says of carrying its run out again works as it is printed, wherever one is."""

import html
import re

import pytest

from tests.support.pages import Block, play

MINE = """
import torch
import distinf


def loss(model, batch):
    return torch.nn.functional.cross_entropy(model(batch["x"]), batch["y"], reduction="none")


def task(settings: dict, seed: int):
    x = torch.randn(90, 4, generator=torch.Generator().manual_seed(1))
    y = (x[:, 0] > 0).long()
    data = {"train": {"x": x[:60], "y": y[:60]}, "evaluation": {"x": x[60:], "y": y[60:]}}

    def model():
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            return torch.nn.Linear(4, 2)

    return distinf.TensorTask(model, data, {"loss": loss}, seed=seed)
"""
BASIS = """
task: mine:task
runtime: {kind: local}
train: {steps: 5, batch_size: 10}
curvature: {steps: 3, keep: 2, samples: 20, probes: 1}
scores: {damping: 0.1, negative: absolute}
targets: {count: 1}
actions: {lr: 0.01, non_targets: 5, steps: 1, seeds: 1, pool: 10, batch_size: 5}
"""
GRAM = "{task: mine:task, runtime: {kind: local}}"


@pytest.mark.parametrize(
    ("verb", "config", "table"),
    [
        ("score", GRAM, "ranked_rows.csv"),
        pytest.param("run", BASIS, "trials.csv", marks=pytest.mark.slow),
    ],
)
@pytest.mark.timeout(600)
def test_the_command_on_a_page_carries_its_run_out_again(tmp_path, verb, config, table):
    folder, elsewhere = tmp_path / "my [" / "runs]", tmp_path / "elsewhere"
    for each in (folder, elsewhere):
        each.mkdir(parents=True)
    (folder / "mine.py").write_text(MINE)
    (folder / "own.yaml").write_text(config)
    printed = play(folder, [Block("own", 1, "bash", f"distinf {verb} own.yaml --out 'it is'")], {})
    assert f"{folder}/it is/report/index.html" in printed
    page = (folder / "it is" / "report" / "index.html").read_text()
    command = html.unescape(re.search(r"<pre>([^<]*distinf run [^<]*)</pre>", page)[1])
    play(elsewhere, [Block("the page", 1, "bash", command)], {})
    found = [folder / name / "report" / table for name in ("it is", "it is-again")]
    assert found[0].read_bytes() == found[1].read_bytes()

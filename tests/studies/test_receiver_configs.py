"""The receiver's configurations load, and docs/receiver.md says of them what they say."""

import re
from pathlib import Path

import pytest
import yaml

from distinf.config import load

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "configs" / "receiver"
ROW = re.compile(r"^\| `([\w.]+)` \| `([^`]+)` \| (.+) \|$", re.MULTILINE)
RUNS = sorted(path for path in CONFIGS.glob("*.yaml") if not path.name.startswith("import"))


def value(config, key):
    """What a dotted key comes to; below `variations.<name>` keys are dotted as they stand."""
    if key.startswith("variations."):
        _, name, inner = key.split(".", 2)
        return config.variations[name][inner]
    found = config.model_dump(mode="json")
    for part in key.split("."):
        found = found[part]
    return found


def plain(found):
    return (
        [float(x) if isinstance(x, int) else x for x in found] if isinstance(found, list) else found
    )


def test_each_documented_number_is_the_configurations():
    rows = ROW.findall((ROOT / "docs" / "receiver.md").read_text(encoding="utf-8"))
    config = load(str(CONFIGS / "paper-800k.yaml"))
    assert len(rows) > 40
    for key, text, source in rows:
        assert plain(value(config, key)) == plain(yaml.safe_load(text)), key
        assert re.search(r"Tuononen et al|DeepRx|ours", source), key


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_it_loads_with_every_experiment_and_is_documented(path):
    config = load(str(path))
    assert config.varied.keys() == config.variations.keys()
    assert f"`{path.name}`" in (ROOT / "docs" / "receiver.md").read_text(encoding="utf-8")


def test_the_papers_sizes_are_whole_frames_and_both_rates_are_offered():
    full, reduced = (load(str(CONFIGS / f"paper-{size}.yaml")) for size in ("800k", "200k"))
    slots = full.settings["scenario"]["train_slots"]
    assert slots == 33_332 * 24
    assert reduced.settings["scenario"]["train_slots"] == full.varied["reduced"].train.rows
    assert full.curvature.samples == 545 * 22
    assert 2.39e6 < full.curvature.samples * full.curvature.steps < 2.41e6
    for size, config in (("800k", full), ("200k", reduced)):
        other = load(str(CONFIGS / f"paper-{size}-deeprx.yaml"))
        assert config.train.lr == 50 * config.actions.lr
        assert other.train.lr == 0.01
        assert other.train.rate(799) == pytest.approx(0.01)
        assert other.train.rate(400) < other.train.rate(8_999) == 0.01 > other.train.rate(9_100)


def test_the_reduced_set_alone_is_the_first_slots_of_the_full_one():
    link = pytest.importorskip("distinf.studies.receiver.link")
    pytest.importorskip("sionna", reason="generating slots needs distinf[wireless]")
    made = []
    for slots in (48, 96):
        task = load(
            str(CONFIGS / "paper-800k.yaml"),
            ["settings.scenario.prbs=1", f"settings.scenario.train_slots={slots}", "variations={}"],
        ).identity
        made.append(link.generate(task.settings.scenario, 0, "train", 24, 48))
    assert all((made[0][name] == made[1][name]).all() for name in made[0])

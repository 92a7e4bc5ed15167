"""Every key is explained, in a configuration to begin with and in the reference of all keys."""

import dataclasses
import sys
import typing

import pytest
import yaml

from distinf import keys
from distinf.cli import main
from distinf.config import config_class, load, resolve
from distinf.engine.recipe import RECIPES
from distinf.tasks.task import STUDIES, settings_type
from tests.support.runs import ROOT, distinf

SETTINGS = [
    *map(config_class, RECIPES),
    *(settings_type(study) for study in STUDIES),
]


def with_all_within(kind: type) -> set[type]:
    hints = typing.get_type_hints(kind).values()
    inner = [h for h in hints if isinstance(h, type) and dataclasses.is_dataclass(h)]
    return {kind}.union(*map(with_all_within, inner))


@pytest.mark.parametrize(
    "kind",
    sorted(set().union(*map(with_all_within, SETTINGS)), key=str),
    ids=lambda kind: f"{kind.__module__}.{kind.__name__}",
)
def test_every_setting_has_a_line_on_what_it_means(kind):
    lacking = [key.name for key in keys.keys_of(kind) if not key.inner and not key.meaning]
    assert not lacking, f"a line 'name   meaning' in the docstring of {kind.__name__}"


def test_the_reference_is_what_the_settings_say():
    page = (ROOT / "docs" / "configuration.md").read_text()
    assert page == keys.reference(), "python -m distinf.keys > docs/configuration.md"


def test_the_reference_has_every_key_once_with_its_default():
    page = keys.reference()
    for name in ("train.steps", "runtime.kind", "settings.model.widths", "settings.data.flips"):
        assert page.count(f"| `{name}` |") == 1
    scale = "| `settings.features.grid.scale` | number | `1.0` | stored is value * scale + offset |"
    assert scale in page
    assert "| `settings.scenario.prbs` | whole number | needed |" in page


@dataclasses.dataclass(frozen=True)
class Odd:
    """What a docstring may look like, and what
    size: is not a size when it begins a line of prose.

    one, two  both of them,
              on two lines; three is another
    three     has a colon: in it
    four: at once. five: not
        at all; six: nothing.

    seven is not explained here
    """

    one: int = 1
    two: int = 2
    three: str = "a: b # c"
    four: tuple[int, ...] = (1, 2)
    five: float = 1e-5
    six: None = None
    seven: dict = dataclasses.field(default_factory=dict)


def test_meanings_are_read_from_both_forms():
    assert keys.meanings(Odd) == {
        "one": "both of them, on two lines; three is another",
        "two": "both of them, on two lines; three is another",
        "three": "has a colon: in it",
        "four": "at once",
        "five": "not at all",
        "six": "nothing",
    }
    assert keys.meanings(dataclasses.make_dataclass("Bare", [("one", int, 1)])) == {}


MINE = '''
import dataclasses

import torch

import distinf
from tests.support.blobs_task import Points, task as points


@dataclasses.dataclass(frozen=True)
class Mine:
    """rows: of the training split. note: shown: as # it is."""

    rows: int = 240
    note: str = "a: b # c"
    more: tuple[float, ...] = (1e-5, 2.0)


@dataclasses.dataclass(frozen=True)
class Needy:
    """rows: of the training split."""

    rows: int


def task(settings: Mine, seed: int):
    return points(Points(rows=settings.rows), seed)


def needy(settings: Needy, seed: int):
    return points(Points(rows=settings.rows), seed)


def loss(model, batch):
    return torch.nn.functional.cross_entropy(model(batch["x"]), batch["y"], reduction="none")


def line(settings: dict, seed: int):
    x = torch.randn(90, 2, generator=torch.Generator().manual_seed(1))
    y = (x[:, 0] > 0).long()
    data = {"train": {"x": x[:60], "y": y[:60]}, "evaluation": {"x": x[60:], "y": y[60:]}}
    return distinf.TensorTask(lambda: torch.nn.Linear(2, 2), data, {"loss": loss}, seed=seed)
'''


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "mine_with_keys.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mine_with_keys", raising=False)
    monkeypatch.setattr("tests.support.runs.ROOT", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("task", "recipe"),
    [("receiver", ""), ("noisy_labels", ""), ("mine_with_keys:task", "gram")],
)
def test_a_written_configuration_is_the_defaults(folder, task, recipe):
    assert main(["init", task, "made.yaml", *(["--recipe", recipe] if recipe else [])]) == 0
    made = load("made.yaml", ["out=x"])
    assert made == resolve({"task": task, "recipe": recipe, "out": "x"})


def test_every_key_of_a_written_configuration_is_explained(folder, capsys):
    assert main(["init", "mine_with_keys:task"]) == 0
    assert "next: distinf run mine_with_keys.yaml" in capsys.readouterr().out
    text = (folder / "mine_with_keys.yaml").read_text()
    assert "  rows: 240  # of the training split\n" in text
    assert "  note: 'a: b # c'  # shown: as # it is\n" in text
    assert yaml.safe_load(text)["settings"]["more"] == [1e-5, 2.0]
    assert all(len(line) <= 110 for line in text.splitlines())


def test_what_is_there_is_not_written_over(folder, capsys):
    (folder / "mine_with_keys.yaml").write_text("precious")
    assert main(["init", "mine_with_keys:task"]) == 2
    assert "is there already; name another FILE, or give --force" in capsys.readouterr().err
    assert (folder / "mine_with_keys.yaml").read_text() == "precious"
    assert main(["init", "mine_with_keys:task", "--force"]) == 0
    assert (folder / "mine_with_keys.yaml").read_text().startswith("task: mine_with_keys:task\n")
    assert main(["init", "mine_with_keys:task", "no/such/folder.yaml"]) == 2
    assert main(["init", "mine_with_keys:absent"]) == 2
    assert main(["init", "reciever"]) == 2


def test_a_setting_without_a_default_is_named_where_it_has_to_be_given(folder, capsys):
    assert main(["init", "mine_with_keys:needy", "-"]) == 0
    text = capsys.readouterr().out
    assert "  # rows: needed; of the training split\n" in text
    (folder / "needy.yaml").write_text(text)
    assert main(["run", "needy.yaml"]) == 2
    assert "settings.rows: Field required" in capsys.readouterr().err


def test_a_written_configuration_runs_as_it_is(folder):
    """But for the time that it takes: fewer steps, seeds and products, in this process."""
    assert main(["init", "mine_with_keys:line"]) == 0
    assert "keep: 6  # Krylov steps" in (folder / "mine_with_keys-line.yaml").read_text()
    quick = ["runtime.kind=local", "train.steps=20", "actions.seeds=1", "curvature.probes=2"]
    done = distinf("run", "mine_with_keys-line.yaml", *(f"--set={change}" for change in quick))
    assert done.returncode == 0, done.stderr

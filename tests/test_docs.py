"""What docs/noisy-labels.md shows works as it is written."""

import csv
import re
import subprocess
import sys

import pytest

from tests.support.runs import ROOT

PAGE = (ROOT / "docs" / "noisy-labels.md").read_text()


def test_ten_lines_find_suspicious_rows(tmp_path):
    transformers = pytest.importorskip("transformers", reason="needs distinf[llm]")
    from tests.support.noisy import WORDS, tiny_model

    code = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)[1]
    statements = [line for line in code.splitlines() if line and line[0] not in " )"]
    assert len([s for s in statements if not s.startswith(("import", "from"))]) <= 10
    tiny_model(tmp_path / "my-classifier")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "my-classifier", num_labels=2
    )
    model.save_pretrained(tmp_path / "my-classifier")
    rows = [(f"{WORDS[k % 60]} {WORDS[(7 * k) % 60]}", k % 2) for k in range(130)]
    with open(tmp_path / "reviews.csv", "w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *rows])
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = eval(done.stdout)
    assert len(found) == 20
    assert all(text == rows[row][0] for row, text in found)


@pytest.mark.parametrize(
    "key", sorted(set(re.findall(r"^\| `([a-z]+\.[a-z_]+)`", PAGE, re.MULTILINE)))
)
def test_every_key_of_the_table_is_a_setting(key):
    from distinf.config import GramConfig
    from distinf.studies.noisy_labels.settings import NoisyLabelSettings

    part, name = key.split(".")
    fields = GramConfig.model_fields
    owner = fields[part].annotation if part in fields else None
    if owner is None:
        owner = type(getattr(NoisyLabelSettings(), part))
    assert name in owner.__dataclass_fields__

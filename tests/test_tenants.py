"""What is a study's own stands in its folder: the rest of the package names none of it."""

import re

import pytest

from tests.support.runs import ROOT

RECEIVERS = re.compile(r"genie|pilot|deeprx|receiver|(?<!\w)slots(?!\w)", re.IGNORECASE)
TEXTS = (".py", ".yaml", ".jinja", ".css", ".js")
EXCEPT = {"distinf/report/gram/retraining.py"}  # slots: the rows of a published table


def test_no_general_file_names_what_is_the_receivers():
    files = [path for path in (ROOT / "distinf").rglob("*") if path.suffix in TEXTS]
    found = {str(path.relative_to(ROOT)): RECEIVERS.findall(path.read_text()) for path in files}
    naming = {path: words for path, words in found.items() if words}
    general = {k: v for k, v in naming.items() if not k.startswith("distinf/studies/receiver/")}
    assert general.keys() == EXCEPT, general
    assert len(naming) > len(general) + 10  # the study's own are found


@pytest.mark.parametrize("text", ["# the Genie's", "pilots", "DeepRx", "a receiver", "400 slots"])
def test_such_a_name_is_found(text):
    assert RECEIVERS.search(text)

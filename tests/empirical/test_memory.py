"""What a fine-tune takes of memory, measured, beside what a plan says."""

import json
import subprocess
import sys

import pytest

from tests.support.runs import ROOT

pytest.importorskip("transformers", reason="needs distinf[llm]")


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [(), ("tune.optimizer=sgd",), ("settings.in_turn=true",),
     ("tune.optimizer=prompt", "tune.first_order=false")],
)  # fmt: skip
def test_a_plan_of_a_fine_tune_is_what_it_takes(changes):
    size = ("--width", "768", "--layers", "6")
    given = [argument for change in changes for argument in ("--set", change)]
    done = subprocess.run(
        [sys.executable, "-m", "tests.benchmarks.bench_tuning_memory", *size, *given],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["measured"] == pytest.approx(found["planned"], rel=0.2)

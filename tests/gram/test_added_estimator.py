"""CONTRIBUTING's way to add an estimator, followed into a run: in a process of its own, where the
register has it before anything reads it, as it has a file of numerics/estimators/."""

import subprocess
import sys

RUN = """
import sys
from pathlib import Path
from distinf.numerics.estimators import ESTIMATORS
from tests.numerics.test_register import ESTIMATOR
ESTIMATORS["ridge"] = ESTIMATOR

import torch
from distinf import keys
from distinf.gram.scores import block_totals
from tests.gram.test_gram_route import agree, dense, scored, session_of

scores = {"estimators": ["ridge", "tracin"], "damping": {"ridge": 0.5}}
session = scored(session_of(Path(sys.argv[1]) / "run", settings={"double": True}, scores=scores))
for name, cell in session.outline.cells.items():
    train_of, query_of = dense(session, name)
    for block, train_NP in train_of.items():
        damped = train_NP @ train_NP.T + 0.5 * torch.eye(len(train_NP)).double()
        wanted = torch.linalg.solve(damped, train_NP @ query_of[block].T).T.mean(0)
        agree(block_totals(session, cell)["ridge", block][0], wanted.numpy())
        print("equal in", block)
print(next(k.values for k in keys.keys_of(type(session.settings.scores))))
"""


def test_a_run_takes_an_estimator_that_was_added_to_the_register(tmp_path):
    command = [sys.executable, "-c", RUN, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2_000:]
    *blocks, names = done.stdout.splitlines()
    assert len(blocks) == 10
    assert "ridge" in names.removeprefix("list of ").split(", ")

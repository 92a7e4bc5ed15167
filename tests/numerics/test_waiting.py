import sys
import time

import pytest
import torch

from distinf.numerics import waiting
from distinf.numerics.capture import per_sample_gradients


class Terminal:
    def __init__(self, live):
        self.live, self.text = live, ""

    def isatty(self):
        return self.live

    def write(self, text):
        self.text += text

    def flush(self):
        pass


@pytest.mark.parametrize(
    ("live", "progress", "shown"),
    [(True, None, True), (True, False, False), (False, None, False), (False, True, True)],
)
def test_long_work_is_told_where_someone_waits(live, progress, shown, monkeypatch):
    screen = Terminal(live)
    monkeypatch.setattr(sys, "stderr", screen)
    clock = iter(range(0, 1000, 2))
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))  # two seconds a part
    parts = list(torch.arange(20).split(4))
    assert list(waiting.told(parts, 20, progress)) == parts
    assert ("per-sample gradients: 8 of 20 rows, about 6 s left" in screen.text) == shown
    assert screen.text.endswith("\r" if live and shown else "\n" if shown else "")


def test_short_work_says_nothing(capsys):
    assert len(list(waiting.told([torch.ones(2)] * 3, 6, True))) == 3
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("progress", [True, False])
def test_gradients_tell_how_many_rows_are_done(progress, monkeypatch, capsys):
    monkeypatch.setattr(waiting, "TERMINAL_S", 0.0)
    model, x = torch.nn.Linear(4, 2), torch.randn(6, 4)
    per_sample_gradients(
        model, lambda model, batch: model(batch).sum(1), x, chunk=2, progress=progress
    )
    told = [line.partition(",")[0] for line in capsys.readouterr().err.splitlines()]
    rows = ["2 of 6 rows", "4 of 6 rows"] if progress else []
    assert told == [f"per-sample gradients: {done}" for done in rows]

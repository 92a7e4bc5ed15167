import sys
import time

import pytest
import torch

from distinf.numerics import waiting


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

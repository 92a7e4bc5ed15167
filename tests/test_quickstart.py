"""The quickstart as the README gives it: its promises, at its real size. Slow: minutes each."""

import csv
import os
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest

from distinf.engine.run import reopen
from tests.support.runs import ROOT, all_scores, distinf, same_bits, start, workers_of

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(1_500)]
pytest.importorskip("sionna", reason="the quickstart needs distinf[wireless]")

CONFIG = str(ROOT / "configs" / "quickstart.yaml")


def quickstart(out: Path, seed: int = 0) -> float:
    """Carry it out -> seconds."""
    began = time.monotonic()
    finished = distinf(
        "run", CONFIG, "--out", str(out), "--set", f"seed={seed}", timeout_s=600
    )  # fmt: skip
    assert finished.returncode == 0, finished.stderr
    return time.monotonic() - began


def mean_reduction(out: Path) -> dict[str, float]:
    with open(out / "report" / "summary.csv", encoding="utf-8") as file:
        return {row["selection"]: float(row["mean_pct"]) for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def golden(tmp_path_factory):
    out = tmp_path_factory.mktemp("quickstart") / "seed0"
    print(f"\nquickstart: {quickstart(out):.0f} s")
    return out


def test_guided_beats_random_as_a_mean_over_three_seeds(golden, tmp_path):
    found = [mean_reduction(golden)]
    for seed in (1, 2):
        print(f"seed {seed}: {quickstart(tmp_path / str(seed), seed):.0f} s")
        found.append(mean_reduction(tmp_path / str(seed)))
    print(found)
    means = {name: np.mean([one[name] for one in found]) for name in found[0]}
    assert means["helpful"] > means["random"]
    assert means["helpful"] > 0 > means["harmful"]


def test_killed_at_random_points_it_ends_in_the_same_bits(golden, tmp_path):
    """SIGKILL of the driver twice and of a worker twice, each at a random moment."""
    out, moments = tmp_path / "killed", random.Random(time.time_ns())
    for victim in ("driver", "worker", "driver", "worker"):
        process = start("run", CONFIG, "--out", str(out))
        moment = moments.uniform(12, 60)
        print(f"SIGKILL of a {victim} after {moment:.1f} s")
        try:
            process.wait(timeout=moment)
        except subprocess.TimeoutExpired:
            if victim == "driver":
                process.kill()
                process.wait()
                continue
            for pid in workers_of(process.pid)[:1]:
                os.kill(pid, signal.SIGKILL)
            time.sleep(20)
            process.kill()
            process.wait()
    assert start("run", CONFIG, "--out", str(out)).wait(timeout=600) == 0
    assert same_bits(all_scores(reopen(str(out))), all_scores(reopen(str(golden))))
    assert distinf("verify", str(out)).returncode == 0


def test_a_finished_run_is_seen_to_be_finished_in_seconds(golden):
    seconds = quickstart(golden)
    print(f"finished run: {seconds:.1f} s")
    assert distinf("verify", str(golden)).stdout.startswith("intact: ")


def test_its_report_opens_in_a_browser_without_complaint(golden, tmp_path):
    browser = shutil.which("chromium")
    if browser is None:
        pytest.skip("no chromium on PATH to open the page in")
    quiet = ["gpu", "quic", "sync", "background-networking", "component-update"]
    flags = ["--headless", "--no-sandbox", "--no-first-run", "--enable-logging=stderr", "--v=0"]
    flags += [f"--disable-{feature}" for feature in quiet]
    page = (golden / "report" / "index.html").as_uri()
    opened = subprocess.run(
        [browser, *flags, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert "CONSOLE" not in opened.stderr
    assert len(re.findall(r"<svg", opened.stdout)) >= 7

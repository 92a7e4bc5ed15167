"""What users' scripts call by the place that it had before."""

import subprocess
import sys
from importlib import import_module

import pytest

NAMES = {
    "distinf.numerics.curvature": (
        "dense_embeddings",
        "hessian_product",
        "sample_losses",
        "sum_gradient",
    ),
    "distinf.numerics.variants": ("scores", "spectrum", "unrolled"),
    "distinf.gram.gradients": ("as_stored", "as_tensor"),
    "distinf.tasks.task": ("Shapes", "Task", "Wording", "build_task"),
}


@pytest.mark.parametrize("place", NAMES)
def test_names_are_found_where_they_were(place):
    module = import_module(place)
    assert [name for name in NAMES[place] if not hasattr(module, name)] == []


@pytest.mark.parametrize("module", ["distinf", "distinf.cli"])
def test_both_modules_run_the_command_line(module):
    words = [sys.executable, "-m", module, "--version"]
    made = subprocess.run(words, capture_output=True, text=True, check=True)
    assert made.stdout.startswith("distinf ")

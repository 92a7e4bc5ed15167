"""Labels of a figure that would run into each other."""

import pytest
from matplotlib.figure import Figure

from distinf.report.fitting import fit


@pytest.mark.parametrize(
    ("ticks", "kept"),
    [
        ([-0.0025, 0.0, 0.0025], [-0.0025, 0.0025]),  # 0 alone would be no scale
        ([-0.005, -0.0025, 0.0, 0.0025, 0.005], [-0.005, 0.0, 0.005]),
    ],
)
def test_ticks_are_thinned_to_two_at_least(ticks, kept):
    canvas = Figure(figsize=(0.35 * len(ticks), 1.5), layout="constrained")
    axes = canvas.subplots()
    axes.set(xlim=(1.05 * ticks[0], 1.05 * ticks[-1]), xticks=ticks, yticks=[])
    assert not fit(canvas)
    assert axes.get_xticks().tolist() == kept

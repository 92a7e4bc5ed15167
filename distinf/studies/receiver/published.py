"""Gap reductions as Tuononen et al. published them: to compare a run's with, not to meet.

Source: Tuononen, Penttinen and Hautamäki, "Targeted fine-tuning of DNN-based receivers via
influence functions", Table 1 (percent, mean and sd over 10 seeds; first order, the 50 most helpful
slots, 3 steps, the target of largest gap), and section 4.2 for random slots.
"""

from distinf.tasks.task import Published

SOURCE = "Tuononen et al., Table 1 and section 4.2"
# training set of Tuononen et al. -> the run it stands beside ("": this one)
COLUMNS = {"200k": "reduced", "800k": ""}
TABLE_1 = (
    ("ber", "classic", 16.3, 11.5, 25.2, 14.5),
    ("ber", "newfluence", 50.2, 10.6, 13.5, 17.9),
    ("ber", "theta-relative", 57.5, 10.1, 37.4, 13.9),
    ("ber", "ell-relative", 64.4, 13.1, 35.2, 10.1),
    ("bce", "classic", 68.3, 7.3, 11.3, 41.9),
    ("bce", "newfluence", 46.4, 16.2, 22.2, 6.9),
    ("bce", "theta-relative", 58.9, 8.3, 10.4, 13.6),
    ("bce", "ell-relative", 65.6, 13.5, 47.8, 8.5),
)
RANDOM_800K = (13.9, 19.5)


def published() -> tuple[Published, ...]:
    """Every number above, reduced training set first."""
    rows = [
        Published(
            SOURCE, loss, variant, "helpful", numbers[2 * place], numbers[2 * place + 1],
            column=column, run=run,
        )
        for place, (column, run) in enumerate(COLUMNS.items())
        for loss, variant, *numbers in TABLE_1
    ]  # fmt: skip
    random = Published(
        SOURCE, "", "", "random", RANDOM_800K[0], RANDOM_800K[1], column="800k", run=COLUMNS["800k"]
    )
    return (*rows, random)

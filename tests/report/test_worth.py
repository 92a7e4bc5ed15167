"""What the page and the terminal say of an evaluation's numbers."""

import io

from distinf.engine.evaluating import Evaluation
from distinf.progress import evaluation_table
from distinf.report.worth import remark, sentence, too_noisy
from distinf.terminal import Terminal


def row(ranking, value, ceiling):
    return {"measure": "LDS, half left out", "cell": "", "ranking": ranking, "value": value,
            "low": 0.0, "high": 1.0, "ceiling": ceiling}  # fmt: skip


def test_the_sentence_has_the_own_loss_beside_the_best():
    told = sentence([row("own loss", 0.22, 0.84), row("classic", 0.71, 0.84)])
    assert (
        told == "Held against training again: LDS 0.71 of a possible 0.84 (classic); own loss 0.22."
    )


def test_trainings_that_hardly_agree_are_told_of():
    assert too_noisy([row("classic", 0.7, 0.84), {"ceiling": None}, {}]) == ""
    noisy = [row("classic", 0.02, 0.06)]
    assert "nothing can be measured by them; raise --repeats" in too_noisy(noisy)
    out = io.StringIO()
    evaluation_table(Evaluation("root", noisy, 20), Terminal(file=out))
    assert "nothing can be measured" in out.getvalue()


def test_a_table_tells_how_its_ceiling_is_known_and_what_it_took():
    rows = [
        row("classic", 0.7, 1.0) | {"ceiling_by": "unknown, since so", "gradients_trained": 2.5e6}
    ]
    told = "What was possible: unknown, since so. Trainings and steps behind it: 2.50·10⁶ gradients"
    assert remark(rows).startswith(told)
    rows[0]["gradients"] = 1200.0
    for width in (80, 100):  # a narrow terminal has room for the rankings' names alone
        out = io.StringIO()
        evaluation_table(Evaluation("root", rows, 20), Terminal(file=out, width=width))
        assert told in out.getvalue().replace("\n", " ")
        assert ("1,200" in out.getvalue()) == (width == 100)
    assert remark([row("classic", 0.7, 0.9)]) == ""

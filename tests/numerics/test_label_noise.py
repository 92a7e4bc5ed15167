"""What predictions say of labels: the likeliest other class, and how many labels are wrong."""

import pytest
import torch

from distinf.errors import InputError
from distinf.numerics.label_noise import check_probabilities, likeliest_other, wrong_labels


def blobs(classes: int, rows: int = 3_000, apart: float = 3.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Gaussian classes around corners [rows, classes], and the true class of each row."""
    draw = torch.Generator().manual_seed(classes)
    true = torch.arange(rows) % classes
    points = torch.randn(rows, classes, generator=draw)
    points[torch.arange(rows), true] += apart
    return points, true


def flipped(true: torch.Tensor, classes: int, rate: float) -> torch.Tensor:
    draw = torch.Generator().manual_seed(1)
    wrong = torch.rand(len(true), generator=draw) < rate
    further = torch.randint(1, classes, (len(true),), generator=draw)
    return torch.where(wrong, (true + further) % classes, true)


def predictions(points: torch.Tensor, labels: torch.Tensor, classes: int) -> torch.Tensor:
    """In-sample probabilities of a regression that was fitted to the noisy labels."""
    layer = torch.nn.Linear(points.shape[1], classes)
    torch.nn.init.zeros_(layer.weight)
    torch.nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=100)

    def closure():
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(layer(points), labels)
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        return layer(points).softmax(1)


@pytest.mark.parametrize("classes", [2, 5])
@pytest.mark.parametrize("rate", [0.05, 0.1, 0.2])
def test_the_count_is_near_a_known_rate(classes, rate):
    points, true = blobs(classes)
    labels = flipped(true, classes, rate)
    wrong = int((labels != true).sum())
    found = wrong_labels(predictions(points, labels, classes), labels)
    assert abs(found - wrong) < 0.25 * wrong + 0.01 * len(true)


@pytest.mark.parametrize("classes", [2, 5])
def test_clean_labels_are_counted_as_few_wrong_ones(classes):
    points, true = blobs(classes, apart=5.0)
    assert wrong_labels(predictions(points, true, classes), true) < 0.02 * len(true)


def test_the_count_by_hand():
    labels = torch.tensor([0, 0, 0, 1, 1])
    sure = torch.tensor([0.9, 0.8, 0.1, 0.2, 0.3])  # of class 0
    probabilities = torch.stack([sure, 1 - sure], 1)
    # Means: class 0 .6, class 1 .75. Rows 0, 1 speak for 0, row 2 (.9) for 1, row 3 (.8) for 1, row
    # 4 (.7) for none. So a third of the three labelled 0 are wrong.
    assert wrong_labels(probabilities, labels) == pytest.approx(1.0)
    unknown = probabilities.clone()
    unknown[2] = torch.nan
    assert wrong_labels(unknown, labels) == 0.0


def test_a_class_without_labels_is_no_alternative_to_count():
    probabilities = torch.tensor([[0.6, 0.1, 0.3], [0.2, 0.7, 0.1]])
    assert wrong_labels(probabilities, torch.tensor([0, 1])) == 0.0


def test_the_suggestion_is_the_true_class_of_nearly_all_flipped_rows():
    points, true = blobs(5)
    labels = flipped(true, 5, 0.1)
    found = likeliest_other(predictions(points, labels, 5), labels)
    assert (found != labels).all()
    wrong = labels != true
    assert (found == true)[wrong].float().mean() > 0.9  # chance .25


@pytest.mark.parametrize(
    ("values", "labels", "said"),
    [
        ([[2.0, 1.0]], [0], "row 0 sum to 3 or are negative; give the softmax"),
        ([[1.5, -0.5]], [0], "row 0 sum to 1 or are negative"),
        ([[0.5, 0.5]], [2], "labels reach from 2 to 2, where there are probabilities of 2 classes"),
        ([0.5, 0.5], [0, 1], "must be [2, classes], not (2,)"),
    ],
)
def test_what_are_no_probabilities_is_refused(values, labels, said):
    with pytest.raises(InputError) as error:
        check_probabilities(torch.tensor(values), torch.tensor(labels))
    assert said in str(error.value)

"""LAMB against pytorch-optimizer's, step for step where the two define the same update."""

import pytest
import torch

from distinf.studies.receiver.lamb import Lamb

STEPS = 25


def problem() -> tuple[list[torch.nn.Parameter], list[list[torch.Tensor]]]:
    """Matrices, a kernel and a vector, and gradients for every step."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(4, 3), (5,), (2, 1, 3, 3)]

    def draw(shape):
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    return (
        [torch.nn.Parameter(draw(shape)) for shape in shapes],
        [[draw(shape) for shape in shapes] for _ in range(STEPS)],
    )


def trajectory(make) -> torch.Tensor:
    parameters, gradients = problem()
    optimizer = make(parameters)
    path = []
    for step in gradients:
        for parameter, gradient in zip(parameters, step):
            parameter.grad = gradient.clone()
        optimizer.step()
        path.append(torch.cat([p.detach().flatten().clone() for p in parameters]))
    return torch.stack(path)


@pytest.mark.parametrize(
    ("betas", "decay"),
    [
        # That one does not correct the moments' bias. Without decay the trust ratio cancels the
        # difference; without momentum nothing is to correct. Its clamp of |w| at 10 is not met.
        ((0.9, 0.999), 0.0),
        ((0.0, 0.0), 0.1),
    ],
)
def test_agrees_with_pytorch_optimizer(betas, decay):
    theirs = pytest.importorskip("pytorch_optimizer").Lamb
    options = {"lr": 0.02, "betas": betas, "weight_decay": decay, "eps": 1e-12}
    # There, weight_decouple=False puts the decay inside the trust ratio (as the paper does) and
    # adam_debias=True keeps the step size from being divided by 1 - beta1^t.
    expected = trajectory(lambda p: theirs(p, weight_decouple=False, adam_debias=True, **options))
    torch.testing.assert_close(
        trajectory(lambda p: Lamb(p, adapt_vectors=True, **options)), expected, rtol=1e-8, atol=0
    )


@pytest.mark.parametrize("adapt_vectors", [False, True])
def test_agrees_with_algorithm_2_written_out(adapt_vectors):
    lr, beta1, beta2, eps, decay = 0.02, 0.9, 0.99, 1e-6, 0.1
    parameters, gradients = problem()
    weights = [p.detach().clone() for p in parameters]
    for index, weight in enumerate(weights):
        for step in range(1, STEPS + 1):
            past = [g[index] for g in gradients[:step]]
            mean = sum((1 - beta1) * beta1 ** (step - 1 - k) * g for k, g in enumerate(past))
            square = sum((1 - beta2) * beta2 ** (step - 1 - k) * g**2 for k, g in enumerate(past))
            update = mean / (1 - beta1**step) / ((square / (1 - beta2**step)).sqrt() + eps)
            update = update + decay * weight
            adapted = adapt_vectors or weight.ndim > 1
            ratio = weight.norm() / update.norm() if adapted else 1.0
            weight -= lr * ratio * update
    path = trajectory(
        lambda p: Lamb(p, lr, (beta1, beta2), eps, weight_decay=decay, adapt_vectors=adapt_vectors)
    )
    torch.testing.assert_close(path[-1], torch.cat([w.flatten() for w in weights]))


def test_zero_weights_and_zero_gradients_take_a_plain_step():
    moved, still = (torch.nn.Parameter(torch.full((2, 2), x)) for x in (0.0, 1.0))
    moved.grad, still.grad = torch.full((2, 2), 3.0), torch.zeros(2, 2)
    Lamb([moved, still], lr=0.1).step()
    torch.testing.assert_close(moved.detach(), torch.full((2, 2), -0.1))
    torch.testing.assert_close(still.detach(), torch.ones(2, 2))


def test_bad_options_are_refused():
    parameter = torch.nn.Parameter(torch.ones(1))
    with pytest.raises(ValueError, match=r"lr=-1"):
        Lamb([parameter], lr=-1)
    with pytest.raises(ValueError, match=r"betas=\(1\.0, 0\.9\)"):
        Lamb([parameter], betas=(1.0, 0.9))

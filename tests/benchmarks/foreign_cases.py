"""Cases of other libraries' tests, as models, per-sample losses and batches.

They are imported from unpacked source distributions, none is copied: opacus' grad_samples tests are
run as they are, with what they would check replaced; backpack's and curvlinops' are lists of
settings. kronfluence's source distribution cannot be unpacked by pip and its wheel has no tests, so
the kinds of case of its tests are written anew, with others that no library's tests have.

Shape legend: N samples, T positions, D features.
"""

import sys
import unittest
from collections import UserDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence
from torch.utils._pytree import tree_map

Loss = Callable[[nn.Module, Any], Tensor]
GradientsByName = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """model and batch in float64; theirs: the library's own answer, summed over nothing."""

    source: str
    kind: str
    model: nn.Module
    loss: Loss
    batch: Any
    theirs: Callable[[], GradientsByName] | None = None


@dataclass(frozen=True)
class Curved:
    """A curvature case. batches: of (x, y); `loss` is of outputs and targets, one value a sample,
    of which the sum over all is the library's loss. theirs: {"hessian" or "gauss-newton": v -> Av}.
    """

    source: str
    kind: str
    model: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    batches: list[Any]
    inverse: bool
    theirs: Callable[[], dict[str, Callable[[Tensor], Tensor]]]


def double(value: Any) -> Any:
    if isinstance(value, UserDict):
        return UserDict(double(value.data))
    return tree_map(
        lambda x: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x, value
    )


def _imported_from(folder: Path) -> None:
    """Put a library's sources first, and forget the modules of the one before."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "test"]:
        del sys.modules[name]
    sys.path.insert(0, str(folder))


# -- opacus ------------------------------------------------------------------------------------


def opacus(folder: Path, examples: int) -> Iterator[Case]:
    """Every input of opacus/tests/grad_samples, `examples` at most that hypothesis draws of each.

    The loss is theirs: the sum over a sample's outputs of their size.
    """
    _imported_from(folder)
    import hypothesis
    from opacus.tests.grad_samples import common

    found: list[Case] = []

    def noted(self: Any, x: Any, module: nn.Module, batch_first: bool = True, **_: Any) -> None:
        found.append(_opacus_case(x, module, batch_first))

    common.GradSampleHooks_test.run_test = noted
    files = sorted((folder / "opacus/tests/grad_samples").glob("*_test.py"))
    names = [f"opacus.tests.grad_samples.{path.stem}" for path in files]
    settings = hypothesis.settings(
        max_examples=examples, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    for test in _tests(unittest.defaultTestLoader.loadTestsFromNames(names)):
        function = getattr(type(test), test._testMethodName, None)
        if hasattr(function, "hypothesis"):
            function._hypothesis_internal_use_settings = settings
            torch.manual_seed(0)
            getattr(test, test._testMethodName)()
    yield from found


def _tests(suite: Any) -> Iterator[Any]:
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from _tests(test)
        else:
            yield test


def _opacus_answer(x: Tensor, module: nn.Module, batch_first: bool) -> GradientsByName:
    from opacus.utils.per_sample_gradients_utils import compute_opacus_grad_sample

    module.train()  # in evaluation mode its hooks keep nothing
    found: GradientsByName = compute_opacus_grad_sample(
        x, module, batch_first=batch_first, loss_reduction="sum"
    )
    return found


def _opacus_case(x: Any, module: nn.Module, batch_first: bool) -> Case:
    module, kind = module.double(), type(module).__name__
    theirs = None
    if isinstance(x, Tensor) and x.numel():
        theirs = partial(_opacus_answer, double(x), module, batch_first)
    if isinstance(x, PackedSequence):
        padded, lengths = pad_packed_sequence(x, batch_first=True)
        return Case("opacus", kind, module, _packed_loss(batch_first), (padded.double(), lengths))
    if isinstance(x, tuple):  # a bag's ids one behind the other, and where each bag begins
        ids, offsets = x
        bags = torch.tensor_split(ids, offsets[1:])
        padded = nn.utils.rnn.pad_sequence(bags, batch_first=True, padding_value=-1)
        return Case("opacus", kind, module, _bag_loss, padded)
    if not batch_first:
        kind, x = f"{kind}, batch second", x.transpose(0, 1)
    return Case("opacus", kind, module, _sized(batch_first), double(x), theirs)


def _sized(batch_first: bool) -> Loss:
    def loss(model: nn.Module, x: Tensor) -> Tensor:
        out = model(x) if batch_first else model(x.transpose(0, 1)).transpose(0, 1)
        return out.abs().flatten(1).sum(1)

    return loss


def _packed_loss(batch_first: bool) -> Loss:
    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        x_NTD, lengths_N = batch
        x = x_NTD if batch_first else x_NTD.transpose(0, 1)
        packed = pack_padded_sequence(x, lengths_N, batch_first, enforce_sorted=False)
        out_NTH, _ = pad_packed_sequence(model(packed), batch_first=True)
        return out_NTH.abs().flatten(1).sum(1)

    return loss


def _bag_loss(model: nn.Module, ids_NT: Tensor) -> Tensor:
    there_NT = ids_NT >= 0
    sizes_N = there_NT.sum(1)
    out_ND = model(ids_NT[there_NT], torch.cumsum(sizes_N, 0) - sizes_N)
    return out_ND.abs().sum(1)


# -- backpack ----------------------------------------------------------------------------------


def backpack(folder: Path) -> Iterator[Case | Curved]:
    """Per-sample gradients of its first-order settings, Hessian and Gauss-Newton of its second."""
    _imported_from(folder)
    with_torchvision()
    from test.extensions.firstorder.batch_grad.batch_grad_settings import BATCH_GRAD_SETTINGS
    from test.extensions.problem import make_test_problems
    from test.extensions.secondorder.diag_hessian.diagh_settings import DiagHESSIAN_SETTINGS

    for problem in make_test_problems(BATCH_GRAD_SETTINGS):
        problem.set_up()
        model, loss = problem.model.double(), within_samples(problem.loss_function)
        batch = double((problem.input, problem.target))
        yield Case("backpack", _kind(model), model, _supervised(loss), batch, _batch_grad(problem))
    for problem in make_test_problems(DiagHESSIAN_SETTINGS):
        problem.set_up()
        model, loss = problem.model.double(), within_samples(problem.loss_function)
        batch = double((problem.input, problem.target))
        yield Curved("backpack", _kind(model), model, loss, [batch], False, dict)


def _kind(model: nn.Module) -> str:
    return "-".join(dict.fromkeys(type(m).__name__ for m in model.modules() if not [*m.children()]))


def _supervised(loss: Callable[[Tensor, Tensor], Tensor]) -> Loss:
    return lambda model, batch: loss(model(batch[0]), batch[1])


def within_samples(loss: Any, samples: int = 1) -> Callable[[Tensor, Tensor], Tensor]:
    """A loss module's values summed within each sample; of one that takes the mean, their mean,
    divided by `samples`."""
    mean, loss = loss.reduction == "mean", type(loss)(reduction="none")

    def values(out: Tensor, target: Tensor) -> Tensor:
        each = loss(out, target).reshape(len(out), -1)
        return each.mean(1) / samples if mean else each.sum(1)

    return values


def _batch_grad(problem: Any) -> Callable[[], GradientsByName]:
    def theirs() -> GradientsByName:
        from backpack import backpack, extend
        from backpack.extensions import BatchGrad

        factor = 1.0
        if problem.loss_function.reduction == "mean":
            factor = float(len(problem.input))
        model, loss = extend(problem.model), extend(problem.loss_function)
        with backpack(BatchGrad()):
            loss(model(double(problem.input)), double(problem.target)).backward()
        return {n: factor * p.grad_batch for n, p in model.named_parameters() if p.requires_grad}

    return theirs


def with_torchvision() -> None:
    """Where torch has no GPU, the package of torchvision on PyPI misses operators that none of
    these cases calls."""
    library = torch.library.Library("torchvision", "FRAGMENT")
    _KEPT.append(library)
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


_KEPT: list[Any] = []


# -- curvlinops --------------------------------------------------------------------------------


def curvlinops(folder: Path) -> Iterator[Curved]:
    """Its cases of Hessian and Gauss-Newton; of those for inverses, the damped inverse too."""
    _imported_from(folder)
    from test import cases
    from test.conftest import initialize_case

    inverse = {id(case["model_func"]) for case in cases.INV_CASES}
    for case in [*cases.CASES, *cases.CNN_CASES, *cases.NON_DETERMINISTIC_CASES]:
        model, loss, _, data, size_of = initialize_case(case)
        data = [(double(x), double(y)) for x, y in data]
        model = model.double().eval()
        samples = sum(len(y) for _, y in data)
        yield Curved(
            "curvlinops", _kind(model), model, within_samples(loss, samples), data,
            id(case["model_func"]) in inverse, partial(_operators, model, loss, data, size_of),
        )  # fmt: skip


def _operators(model: nn.Module, loss: Any, data: Any, size_of: Any) -> dict[str, Any]:
    from curvlinops import GGNLinearOperator, HessianLinearOperator

    kinds = {"hessian": HessianLinearOperator, "gauss-newton": GGNLinearOperator}
    parameters = [p for p in model.parameters() if p.requires_grad]
    made = {
        name: kind(model, loss, parameters, data, batch_size_fn=size_of, check_deterministic=False)
        for name, kind in kinds.items()
    }
    return {name: partial(lambda a, v: a @ v, operator) for name, operator in made.items()}

"""Other libraries' cases of per-sample gradients and curvature, run against ours.

    python -m tests.benchmarks.bench_foreign --sources DIR [--examples 20] [--only NAME] [--each]

DIR has the unpacked source distributions of opacus, backpack-for-pytorch and curvlinops-for-pytorch
(`pip download --no-deps --no-binary NAME NAME`, then `tar xf`); the environment, kept apart from
ours, has those packages, and torchvision and pytorch_memlab, which their tests import. Of each case
per_sample_gradients is held against plain autograd of one row at a time in float64, by the method
it chooses, by each of its methods, and by hooks without the check; where the library has its own
answer, that is held against it too. Curvature products are held against torch.autograd.functional,
and inverses against a dense solve.

A case is passed, refused (an InputError: one line), wrong (another number, in silence), or failed
(any other exception). --each prints every case that is not passed.
"""

import argparse
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map

import distinf
from distinf.errors import InputError
from distinf.numerics.curvature import hessian_product
from distinf.numerics.parameters import Layout
from distinf.numerics.solve import conjugate_gradients
from tests.benchmarks import foreign_cases, foreign_kinds
from tests.benchmarks.foreign_cases import Case, Curved

WAYS: dict[str, dict[str, Any]] = {
    "chosen": {},
    "hooks": {"method": "hooks"},
    "vmap": {"method": "vmap"},
    "loop": {"method": "loop"},
    "hooks, unchecked": {"method": "hooks", "check": False},
}
KINDS = ("hessian", "hessian-double-backward", "gauss-newton", "gauss-newton-double-backward")
DAMPING, CLOSE = 1e-2, 1e-8
LARGEST = 400  # parameters for a dense inverse
PASSED = "passed"


def close(found: Tensor, expected: Tensor) -> bool:
    size = float(expected.abs().max()) if expected.numel() else 0.0
    return found.shape == expected.shape and bool(
        ((found - expected).abs() <= CLOSE * max(size, 1e-3)).all()
    )


def outcome(answer: Callable[[], bool]) -> str:
    try:
        return PASSED if answer() else "wrong"
    except InputError as error:
        return f"refused: {str(error).splitlines()[0]}"
    except Exception as error:  # a traceback is a defect, to be counted
        return f"failed: {type(error).__name__}: {str(error).splitlines()[0][:150]}"


# -- per-sample gradients ----------------------------------------------------------------------


def one_row_at_a_time(case: Case) -> dict[str, Tensor]:
    """{name: [N, entries]} by torch.autograd.grad alone."""
    case.model.eval()
    named = {n: p for n, p in case.model.named_parameters() if p.requires_grad}
    whole, rows = [*named.values()], []
    for i in range(samples(case.batch)):
        one = tree_map(lambda x, i=i: x[i : i + 1], case.batch)
        found = torch.autograd.grad(case.loss(case.model, one).sum(), whole, allow_unused=True)
        rows.append([torch.zeros_like(p) if g is None else g.to_dense() if g.is_sparse else g
                     for g, p in zip(found, whole, strict=True)])  # fmt: skip
    return {
        name: torch.stack([row[k].flatten() for row in rows]) if rows else p.new_zeros(0, p.numel())
        for k, (name, p) in enumerate(named.items())
    }


def samples(batch: Any) -> int:
    return len(batch[0] if isinstance(batch, tuple) else batch)


def gradients(case: Case) -> dict[str, str]:
    """Each way's outcome, and "theirs": whether the library's own answer is ours."""
    expected = one_row_at_a_time(case)

    def agrees(settings: dict[str, Any]) -> bool:
        found = distinf.per_sample_gradients(case.model, case.loss, case.batch, **settings)
        dense = {n: g if isinstance(g, Tensor) else g.dense() for n, g in found.items()}
        return dense.keys() == expected.keys() and all(
            close(dense[name].flatten(1), expected[name]) for name in expected
        )

    found = {way: outcome(lambda s=settings: agrees(s)) for way, settings in WAYS.items()}
    if case.theirs is not None:
        theirs = case.theirs
        found["theirs"] = outcome(lambda: _same(theirs(), expected))
    return found


def _same(theirs: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return all(close(theirs[name].flatten(1).detach(), expected[name]) for name in expected)


# -- curvature ---------------------------------------------------------------------------------


class Split:
    """A SplitLoss of (x, y) batches."""

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.loss = loss

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        return self.loss(self.outputs(model, batch), batch[1])

    def outputs(self, model: nn.Module, batch: Any) -> Tensor:
        out: Tensor = model(batch[0])
        return out

    def from_outputs(self, outputs: Tensor, batch: Any) -> Tensor:
        return self.loss(outputs, batch[1])


def reference(case: Curved, kind: str, vector_P: Tensor) -> Tensor:
    """The product by torch.autograd.functional, of all batches."""
    case.model.eval()
    named = {n: p.detach() for n, p in case.model.named_parameters() if p.requires_grad}
    flat_P = torch.cat([p.flatten() for p in named.values()])

    def outputs(flat: Tensor, x: Any) -> Tensor:
        pieces = flat.split([p.numel() for p in named.values()])
        swapped = {n: v.view_as(p) for (n, p), v in zip(named.items(), pieces, strict=True)}
        out: Tensor = functional_call(case.model, swapped, (x,))
        return out

    total_P, by = torch.zeros_like(flat_P), torch.autograd.functional
    for x, y in case.batches:
        if kind == "hessian":
            total_P += by.hvp(
                lambda f, x=x, y=y: case.loss(outputs(f, x), y).sum(), flat_P, vector_P
            )[1]
            continue
        out, pushed = by.jvp(lambda f, x=x: outputs(f, x), flat_P, vector_P)
        curved = by.hvp(lambda o, y=y: case.loss(o, y).sum(), out, pushed)[1]
        total_P += by.vjp(lambda f, x=x: outputs(f, x), flat_P, curved)[1]
    return total_P


def curvature(case: Curved) -> dict[str, str]:
    layout, loss = Layout.of(case.model), Split(case.loss)
    vectors = torch.randn(3, layout.size, dtype=torch.float64)
    found, theirs = {}, outcome_of(case.theirs)
    for kind in KINDS:
        plain = kind.removesuffix("-double-backward")
        expected = torch.stack([reference(case, plain, v) for v in vectors])
        product = hessian_product(case.model, loss, case.batches, layout, kind)
        found[kind] = outcome(
            lambda p=product, e=expected: close(torch.stack([p(v) for v in vectors]), e)
        )
        if plain == kind and kind in theirs:
            operator = theirs[kind]
            found[f"theirs, {kind}"] = outcome(
                lambda o=operator, e=expected: close(
                    torch.stack([o(v) for v in vectors]).detach(), e
                )
            )
    if case.inverse and layout.size <= LARGEST:
        found["inverse"] = outcome(lambda: _inverts(case, loss, layout, vectors))
    return found


def outcome_of(theirs: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    try:
        return theirs()
    except Exception as error:
        print(f"their operator: {type(error).__name__}: {error}")
        return {}


def _inverts(case: Curved, loss: Split, layout: Layout, vectors: Tensor) -> bool:
    """Conjugate gradients, and the exact estimator's scores, against a dense solve."""
    eye = torch.eye(layout.size, dtype=torch.float64)
    dense = torch.stack([reference(case, "gauss-newton", e) for e in eye])
    expected = torch.linalg.solve(dense + DAMPING * eye, vectors.T).T
    product = hessian_product(case.model, loss, case.batches, layout, "gauss-newton")
    by_steps = [conjugate_gradients(product, v, DAMPING, tolerance=1e-12, steps=10 * layout.size)
                for v in vectors]  # fmt: skip
    scores = distinf.influence(vectors, vectors, "exact", damping=DAMPING, curvature=product)
    return close(torch.stack(by_steps), expected) and close(scores, vectors @ expected.T)


# -- the table ---------------------------------------------------------------------------------


def everything(sources: Path, examples: int) -> dict[str, Callable[[], Iterable[Case | Curved]]]:
    def folder(name: str) -> Path:
        found = sorted(path for path in sources.glob(f"{name}*") if path.is_dir())
        if not found:
            raise SystemExit(f"{sources}: has no folder {name}*; unpack its source distribution")
        return found[-1]

    return {
        "opacus": lambda: foreign_cases.opacus(folder("opacus"), examples),
        "backpack": lambda: foreign_cases.backpack(folder("backpack")),
        "curvlinops": lambda: foreign_cases.curvlinops(folder("curvlinops")),
        "kronfluence's kinds": foreign_kinds.kronfluence,
        "others": foreign_kinds.odd,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sources", type=Path, required=True)
    parser.add_argument("--examples", type=int, default=20)
    parser.add_argument("--only")
    parser.add_argument("--each", action="store_true")
    parser.add_argument("--but", choices=("refused",), help="with --each: leave these out")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    counts: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    for source, cases in everything(options.sources, options.examples).items():
        if options.only not in (None, source):
            continue
        torch.manual_seed(0)
        for case in cases():
            ways = gradients(case) if isinstance(case, Case) else curvature(case)
            for way, found in ways.items():
                counts[source, way][found.partition(":")[0]] += 1
                if options.each and found.partition(":")[0] not in (PASSED, options.but):
                    print(f"{source} | {case.kind} | {way} | {found}", flush=True)
    shown = (PASSED, "refused", "wrong", "failed")
    print(
        "| cases of | way | cases | "
        + " | ".join(shown)
        + " |\n|---|---|---|"
        + "---|" * len(shown)
    )
    for (source, way), count in counts.items():
        numbers = [count.total(), *(count[name] for name in shown)]
        print(f"| {source} | {way} | " + " | ".join(map(str, numbers)) + " |")


if __name__ == "__main__":
    main()

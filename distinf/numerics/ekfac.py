"""EK-FAC: a Fisher matrix per layer in a Kronecker-factored eigenbasis, and its damped inverse.

(F + lambda)^-1 V = Q_G [(Q_G^T V Q_A) / (Lambda + lambda)] Q_A^T for each layer's V, Lambda being
the corrected eigenvalues (George et al., Fast Approximate Natural Gradient Descent in a
Kronecker-factored Eigenbasis; Grosse et al., Studying Large Language Model Generalization with
Influence Functions, section 2). What is summed for it, and which layers have factors: kronecker.py.

Shape legend: N rows, C classes, L positions; B groups, O outputs and I inputs of a layer's group.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distinf.errors import InputError
from distinf.numerics.batches import Batch, as_tensors
from distinf.numerics.curvature import Batches
from distinf.numerics.kronecker import (
    Form,
    Sums,
    bias_of,
    eigenbases,
    eigenvalue_sums,
    factor_sums,
    forms_of,
    in_eigenbases,
    no_eigenvalues,
    no_factors,
    out_of_eigenbases,
)
from distinf.numerics.layer_uses import wanted_layers
from distinf.numerics.losses import Loss, refuse_unusable
from distinf.numerics.parameters import Layout
from distinf.numerics.randomness import uniform
from distinf.numerics.sparse import SparseRows

Block = Tensor | SparseRows
DAMPING_SHARE = 0.1  # of a layer's mean eigenvalue (Grosse et al.)


@dataclass(frozen=True)
class EkFac:
    """forms and eigenbases of the weights with factors; eigenvalues: their corrected ones
    [B, O, I] and every other parameter's mean squared gradient [entries], by name; all fp64."""

    forms: Mapping[str, Form]
    bases: Mapping[str, Tensor]
    eigenvalues: Mapping[str, Tensor]

    @classmethod
    def of(
        cls, model: nn.Module, layout: Layout, bases: Mapping[str, Tensor], squares: Sums
    ) -> "EkFac":
        """From eigenbases and all rows' eigenvalue sums; InputError if these are not finite."""
        if not squares.rows:
            raise InputError("the batches hold no rows; EK-FAC is a mean over them")
        values = {}
        for name, array in squares.arrays.items():
            if not bool(torch.isfinite(array).all()):
                raise InputError(f"the {name} are not finite; leave out the rows that make them so")
            values[name.removeprefix("eigenvalues.")] = array / squares.rows
        return cls(forms_of(wanted_layers(model, layout)), bases, values)

    def arrays(self) -> dict[str, Tensor]:
        """All of it as plain arrays, to be stored and read by from_arrays."""
        forms = {
            f"form.{name}": torch.tensor([form.inputs_first, form.with_bias])
            for name, form in self.forms.items()
        }
        values = {f"eigenvalues.{name}": array for name, array in self.eigenvalues.items()}
        return {**forms, **self.bases, **values}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Tensor]) -> "EkFac":
        """What `arrays()` made."""
        values, flags = (
            {
                name.removeprefix(f"{kind}."): array
                for name, array in arrays.items()
                if name.startswith(f"{kind}.")
            }
            for kind in ("eigenvalues", "form")
        )
        bases = {n: a for n, a in arrays.items() if n.startswith(("inputs.", "outputs."))}
        forms = {name: Form(*values[name].shape, *two.tolist()) for name, two in flags.items()}
        return cls(forms, bases, values)

    def layer_of(self, name: str) -> str:
        """The weight with which a bias goes; else the parameter itself."""
        weight = name.removesuffix("bias") + "weight"
        return weight if name in self._bias(weight) else name

    def damping(self, name: str) -> float:
        """A layer's default lambda: a tenth of its mean eigenvalue."""
        return DAMPING_SHARE * float(self.eigenvalues[name].mean())

    def solve(
        self, gradients: Mapping[str, Block], damping: float | None = None, factor: float = 1.0
    ) -> dict[str, Block]:
        """{name: (F + lambda)^-1 times gradients [N, entries], fp64}, layer by layer.

        damping: lambda > 0 of every layer; None takes each layer's default; times `factor`. Where
        all eigenvalues of a layer are zero (lora_A while lora_B is zero), no training row has a
        gradient in it, and the default gives zeros. InputError for parameters that have no
        eigenvalues here, and for a weight and its bias of which only one is given.
        """
        found: dict[str, Block] = {}
        for name in gradients:
            weight = self.layer_of(name)
            if not self._fits(weight, gradients):
                raise InputError(
                    f"the EK-FAC factors do not fit the gradients of {name!r}: compute both over "
                    "the same blocks (a weight and its bias go together)"
                )
            if name not in found:
                chosen = self.damping(weight) if damping is None else damping
                found |= self._solved(weight, gradients, factor * chosen)
        return {name: found[name] for name in gradients}

    def _fits(self, weight: str, gradients: Mapping[str, Block]) -> bool:
        names = [weight, *self._bias(weight)]
        if weight not in self.eigenvalues or not set(names) <= gradients.keys():
            return False
        blocks = [gradients[name] for name in names]
        if isinstance(blocks[0], SparseRows):
            return self.eigenvalues[weight].numel() % blocks[0].rows.shape[1] == 0
        entries = sum(block.shape[1] for block in blocks if isinstance(block, Tensor))
        return entries == self.eigenvalues[weight].numel()

    def _bias(self, weight: str) -> list[str]:
        form = self.forms.get(weight)
        return [bias_of(weight)] if form and form.with_bias else []

    def _solved(
        self, name: str, gradients: Mapping[str, Block], damping: float
    ) -> dict[str, Block]:
        grads, damped = gradients[name], self.eigenvalues[name] + damping
        inverse = torch.zeros_like(damped) if damping == 0.0 else 1.0 / damped
        if isinstance(grads, SparseRows):
            inverse = inverse.view(-1, grads.rows.shape[1])[grads.ids]
            rows = grads.rows.double() * inverse
            return {name: SparseRows(grads.offsets, grads.ids, rows, grads.vocabulary)}
        form = self.forms.get(name)
        if form is None:
            return {name: grads.double() * inverse}
        names = [name, *self._bias(name)]
        parts = (gradients[part] for part in names)
        matrices = form.matrices(*(part.double() for part in parts if isinstance(part, Tensor)))
        rotated = in_eigenbases(matrices, self.bases, name) * inverse
        found = form.entries(out_of_eigenbases(rotated, self.bases, name))
        return dict(zip(names, found, strict=True))


@torch.inference_mode(False)
def ekfac(
    model: nn.Module,
    loss: Loss,
    batches: Batches,
    blocks: str = "all",
    *,
    embeddings: bool = False,
) -> EkFac:
    """EK-FAC of the parameters that `blocks` names, in two passes over `batches`.

    `loss(model, batch) -> [N]` is per sample, of labels that are sampled from the model's own
    outputs: the Fisher matrix is an expectation over them (sampled_labels draws those of a
    classifier). With the given labels the empirical Fisher matrix comes out. blocks, embeddings and
    the layers that are known: as in per_sample_gradients. `batches` is a sequence, or a function
    that gives them anew; their sizes change nothing but rounding.
    For `influence(train, query, "ekfac", curvature=...)`. InputError where a row is not finite.
    """
    layout = Layout.of(model, blocks, embeddings=embeddings)
    refuse_unusable(model, layout)
    kind = model.get_parameter(layout.names[0]).dtype

    def each() -> Iterator[Batch]:
        found: Iterable[Batch] = batches() if callable(batches) else batches
        if isinstance(found, Iterator) and not callable(batches):
            raise InputError(
                "batches are gone through twice: give a list, or a function that makes them anew"
            )
        return (as_tensors(batch, kind) for batch in found)

    factors, squares = no_factors(model, layout), no_eigenvalues(model, layout)
    for batch in each():
        factors = factor_sums(model, loss, batch, layout, factors)
    bases = eigenbases(factors)
    for batch in each():
        squares = eigenvalue_sums(model, loss, batch, layout, bases, squares)
    return EkFac.of(model, layout, bases, squares)


def sampled_labels(logits: Tensor, rows: Tensor, seed: int = 0) -> Tensor:
    """int64 [N] or [N, L]: a class of each softmax over the last dimension of [N, C] or [N, L, C].

    Those of a row follow from (seed, its number in `rows` [N], L's place) alone, in any batch. For
    the loss that ekfac takes:
    `cross_entropy(logits, sampled_labels(logits, batch["row"]), reduction="none")`.
    """
    rows = torch.as_tensor(rows)
    if logits.dim() < 2 or rows.shape != logits.shape[:1]:
        raise InputError(
            "sampled_labels takes logits [N, C] or [N, L, C] and rows [N], the rows' numbers, not "
            f"{tuple(logits.shape)} and {tuple(rows.shape)}"
        )
    per_row = logits[0, ..., 0].numel() if len(logits) else 0
    drawn = [uniform(seed, "sampled labels", per_row, stream=row) for row in rows.tolist()]
    shape = logits.shape[:-1]
    points = torch.stack(drawn).reshape(shape) if drawn else torch.zeros(shape)
    below = torch.softmax(logits.detach().double(), -1).cumsum(-1)
    points = (points.to(below) + 1) / 2 * below[..., -1]
    return (below <= points[..., None]).sum(-1).clamp(max=logits.shape[-1] - 1)

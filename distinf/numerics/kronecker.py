"""Sums over rows that EK-FAC is made of: Kronecker factors, then corrected eigenvalues.

A weight that meets its input in a product has the gradient sum_t g_t a_t^T of a row: a_t what it
meets at position t, with a 1 appended for the layer's bias, and g_t the gradient of what comes out.
The factors are A = E[a a^T] and G = E[g g^T] over all positions of all rows (Martens and Grosse,
Optimizing Neural Networks with Kronecker-factored Approximate Curvature), a position of a
convolution being a patch (Grosse and Martens, A Kronecker-factored Approximate Fisher Matrix for
Convolution Layers) and a convolution's groups blocks of their own. A position whose g_t is exactly
zero is none: so padding changes nothing. In the eigenbases A = Q_A S_A Q_A^T and G = Q_G S_G Q_G^T
the corrected eigenvalues are E[(Q_G^T D Q_A)^2], entry by entry, over rows with their whole
gradients D (George et al., Fast Approximate Natural Gradient Descent in a Kronecker-factored
Eigenbasis).

What has no such product (norms, embeddings, biases alone) takes the diagonal of the Fisher matrix,
E[d^2]: the same with the identity for a basis.

Sums are in float64, of products in float32 at least, and of disjoint rows they add up.
Shape legend: N rows, B groups of a convolution (1 of other layers), O outputs and I inputs of a
group, with the bias's 1; R positions of all rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from distinf.errors import InputError
from distinf.numerics.batches import Batch, rows
from distinf.numerics.hooks import watched_pass
from distinf.numerics.layer_gradients import Outer, patches, rules_of, wide
from distinf.numerics.layer_uses import Layers, wanted_layers
from distinf.numerics.losses import Loss
from distinf.numerics.parameters import Layout
from distinf.numerics.precision import precision
from distinf.numerics.sinks import Names, RowGradients, Use
from distinf.numerics.sparse import SparseRows

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Form:
    """How the gradients of a weight, and of the bias that goes with it, lie as matrices [B, O, I].

    inputs_first: the weight is stored as [I, O]. with_bias: the last of the I is the bias.
    """

    groups: int
    outputs: int
    inputs: int
    inputs_first: bool = False
    with_bias: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, O, I)."""
        return self.groups, self.outputs, self.inputs

    def matrices(self, weight_NP: Tensor, bias_NO: Tensor | None = None) -> Tensor:
        """[N, B, O, I] from [N, entries] of the weight, and of the bias where there is one."""
        inputs, shape = self.inputs - self.with_bias, (len(weight_NP), self.groups, self.outputs)
        if self.inputs_first:
            found = weight_NP.reshape(len(weight_NP), 1, inputs, self.outputs).mT
        else:
            found = weight_NP.reshape(*shape, inputs)
        return found if bias_NO is None else torch.cat([found, bias_NO.reshape(*shape, 1)], -1)

    def entries(self, matrices_NBOI: Tensor) -> list[Tensor]:
        """The way back: [N, entries] of the weight, then of the bias where it is there."""
        weight = matrices_NBOI[..., : self.inputs - self.with_bias]
        found = [(weight.mT if self.inputs_first else weight).flatten(1)]
        return [*found, matrices_NBOI[..., -1].flatten(1)] if self.with_bias else found


@dataclass(frozen=True)
class Sums:
    """fp64 sums over rows by name, and how many rows; `+` for sums over other rows."""

    rows: int
    arrays: Mapping[str, Tensor]

    def __add__(self, other: "Sums") -> "Sums":
        if self.arrays.keys() != other.arrays.keys():
            raise InputError("sums over different parameters do not add up; use one layout for all")
        added = {name: array + other.arrays[name] for name, array in self.arrays.items()}
        return Sums(self.rows + other.rows, added)


def bias_of(weight: str) -> str:
    """The name of the bias that goes with a weight, where a bias does."""
    return weight.removesuffix("weight") + "bias"


def forms_of(layers: Layers) -> dict[str, Form]:
    """{weight name: its form} of the weights that have factors, in the layers' order.

    One that layers of unlike forms share has none.
    """
    found: dict[str, set[Form | None]] = {}
    for module, names in layers.items():
        if "weight" in names:
            found.setdefault(names["weight"], set()).add(_form(module, names))
    return {name: form for name, (form, *more) in found.items() if form and not more}


def _form(module: nn.Module, names: Names) -> Form | None:
    weight, rule = module.get_parameter("weight"), rules_of(module)["weight"]
    with_bias = names.get("bias") == bias_of(names["weight"])
    if isinstance(rule, Outer):
        inputs, outputs = weight.shape if rule.inputs_first else weight.shape[::-1]
        return Form(1, outputs, inputs + with_bias, rule.inputs_first, with_bias)
    if isinstance(module, CONVOLUTIONS):
        outputs = len(weight) // module.groups
        return Form(module.groups, outputs, weight[0].numel() + with_bias, with_bias=with_bias)
    return None


def factor_sums(
    model: nn.Module, loss: Loss, batch: Batch, layout: Layout, onto: Sums | None = None
) -> Sums:
    """One pass: "inputs.NAME" [B, I, I], "outputs.NAME" [B, O, O] and "positions.NAME" [] of each
    weight with factors; A and G are the first two over the third.

    The loss is that of labels sampled from the model (see sampled_labels). What is in `onto`, of
    other rows, is added to in place. Raises as block_gradients does.
    """
    onto = onto or no_factors(model, layout)
    layers = wanted_layers(model, layout)
    watched_pass(model, loss, batch, layers, _FactorSink(forms_of(layers), onto.arrays))
    return Sums(onto.rows + rows(batch), onto.arrays)


def no_factors(model: nn.Module, layout: Layout) -> Sums:
    """The factor sums of no rows."""
    arrays: dict[str, Tensor] = {}
    for name, form in forms_of(wanted_layers(model, layout)).items():
        zeros = model.get_parameter(name).new_zeros((), dtype=torch.float64)
        for kind, size in (("inputs", form.inputs), ("outputs", form.outputs)):
            arrays[f"{kind}.{name}"] = zeros.new_zeros((form.groups, size, size))
        arrays[f"positions.{name}"] = zeros
    return Sums(0, arrays)


class _FactorSink:
    """Adds up the outer products of inputs and of output gradients over rows and positions."""

    def __init__(self, forms: Mapping[str, Form], arrays: Mapping[str, Tensor]) -> None:
        self._forms, self._arrays = forms, arrays

    def keep(self, module: nn.Module, names: Names, given: Tensor) -> Tensor:
        """Nothing of a layer without factors."""
        return given if names.get("weight") in self._forms else given.new_zeros(())

    def receive(self, use: Use) -> None:
        """Add the use's products."""
        name = use.names.get("weight", "")
        if name not in self._forms:
            return
        met_BRI, grad_BRO = _positions(use, self._forms[name])
        real_R = (grad_BRO != 0).any(2).any(0)
        with precision("float32", grad_BRO.device):
            for kind, found in (("inputs", met_BRI), ("outputs", grad_BRO)):
                found = found[:, real_R]
                self._arrays[f"{kind}.{name}"].add_(found.mT @ found)
        self._arrays[f"positions.{name}"].add_(real_R.sum())

    def finish(self) -> None:
        """Nothing waits."""


def _positions(use: Use, form: Form) -> tuple[Tensor, Tensor]:
    """([B, R, I], [B, R, O]): what the weight met at each position, and the output's gradient."""
    grad = wide(use.grad)
    given, samples = wide(use.given).to(grad.dtype), len(grad)
    if isinstance(use.module, CONVOLUTIONS):
        axes = grad.dim() - 2
        met = patches(use.module, given).flatten(2 + axes).flatten(2, 1 + axes)  # [N, C, S, K]
        met = met.unflatten(1, (form.groups, -1)).permute(1, 0, 3, 2, 4)
        grad = grad.flatten(2).reshape(samples, form.groups, form.outputs, -1).permute(1, 0, 3, 2)
        met, grad = met.flatten(3).flatten(1, 2), grad.flatten(1, 2)
    else:
        met, grad = (t.reshape(1, -1, t.shape[-1]) for t in (given, grad))
    if form.with_bias:
        met = torch.cat([met, met.new_ones((*met.shape[:2], 1))], 2)
    return met, grad


def eigenbases(sums: Sums) -> dict[str, Tensor]:
    """The columns of Q_A and Q_G under the names of the factors they are of, in fp64."""
    found: dict[str, Tensor] = {}
    for name, array in sums.arrays.items():
        if name.startswith("positions."):
            continue
        if not bool(torch.isfinite(array).all()):
            raise InputError(f"the factor {name} is not finite; leave out the rows that make it so")
        found[name] = torch.linalg.eigh(array)[1]
    return found


def eigenvalue_sums(
    model: nn.Module,
    loss: Loss,
    batch: Batch,
    layout: Layout,
    bases: Mapping[str, Tensor],
    onto: Sums | None = None,
) -> Sums:
    """The second pass: "eigenvalues.NAME" [B, O, I] of each weight with factors and [entries] of
    every other parameter but the biases that go with them, over the rows; `onto` as before."""
    onto = onto or no_eigenvalues(model, layout)
    layers = wanted_layers(model, layout)
    squares = _Squares(forms_of(layers), bases, onto.arrays)
    watched_pass(model, loss, batch, layers, RowGradients(squares.add))
    return Sums(onto.rows + rows(batch), onto.arrays)


def no_eigenvalues(model: nn.Module, layout: Layout) -> Sums:
    """The eigenvalue sums of no rows."""
    forms = forms_of(wanted_layers(model, layout))
    biases = {bias_of(name) for name, form in forms.items() if form.with_bias}
    arrays = {
        f"eigenvalues.{name}": model.get_parameter(name).new_zeros(
            forms[name].shape if name in forms else (length,), dtype=torch.float64
        )
        for name, length in zip(layout.names, layout.lengths, strict=True)
        if name not in biases
    }
    return Sums(0, arrays)


class _Squares:
    """Adds up the squares of per-sample gradients in their layer's eigenbases."""

    def __init__(
        self, forms: Mapping[str, Form], bases: Mapping[str, Tensor], arrays: Mapping[str, Tensor]
    ) -> None:
        self._forms, self._bases, self._arrays = forms, bases, arrays
        self._weight_of = {bias_of(name): name for name, form in forms.items() if form.with_bias}
        self._waiting: dict[str, dict[str, Tensor]] = {}

    def add(self, name: str, grads: Tensor | SparseRows) -> None:
        """Those of a layer with factors when all of it has come."""
        if isinstance(grads, SparseRows):
            squares = self._arrays[f"eigenvalues.{name}"].view(-1, grads.rows.shape[1])
            squares.index_add_(0, grads.ids, grads.rows.double().square())
            return
        weight = self._weight_of.get(name, name)
        form = self._forms.get(weight)
        if form is None:
            self._arrays[f"eigenvalues.{name}"].add_(grads.square().sum(0, dtype=torch.float64))
            return
        come = self._waiting.setdefault(weight, {})
        come[name] = grads
        if len(come) == 1 + form.with_bias:
            matrices = form.matrices(come[weight], come.get(bias_of(weight)))
            rotated = in_eigenbases(matrices, self._bases, weight)
            squares = rotated.square().sum(0, dtype=torch.float64)
            self._arrays[f"eigenvalues.{weight}"].add_(squares)
            del self._waiting[weight]


def in_eigenbases(matrices_NBOI: Tensor, bases: Mapping[str, Tensor], weight: str) -> Tensor:
    """Q_G^T D Q_A of each D, in D's precision."""
    inputs, outputs = _bases(bases, weight, matrices_NBOI)
    with precision("float32", matrices_NBOI.device):
        return outputs.mT @ matrices_NBOI @ inputs


def out_of_eigenbases(matrices_NBOI: Tensor, bases: Mapping[str, Tensor], weight: str) -> Tensor:
    """The way back: Q_G M Q_A^T of each M."""
    inputs, outputs = _bases(bases, weight, matrices_NBOI)
    with precision("float32", matrices_NBOI.device):
        return outputs @ matrices_NBOI @ inputs.mT


def _bases(bases: Mapping[str, Tensor], weight: str, like: Tensor) -> tuple[Tensor, Tensor]:
    return bases[f"inputs.{weight}"].to(like), bases[f"outputs.{weight}"].to(like)

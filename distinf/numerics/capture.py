"""Per-sample gradients.

Shape legend: N samples, P parameters in the layout.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.func import grad, vmap

from distinf.errors import InputError, OtherMethod
from distinf.microbatch import is_out_of_memory
from distinf.numerics.agreement import agreed_method, passing_method
from distinf.numerics.batches import Batch, as_tensors, copied, looked_at, rows, split, take
from distinf.numerics.failing_row import refuse_failing_row
from distinf.numerics.hooks import block_gradients, hook_gradients, known_layers
from distinf.numerics.losses import (
    Loss,
    applied,
    evaluating,
    per_sample,
    refuse_unusable,
    refuse_without_gradient,
    sum_gradient,
)
from distinf.numerics.parameters import Layout
from distinf.numerics.projection import TwoSided
from distinf.numerics.remembering import makeup, remembered
from distinf.numerics.sparse import SparseRows
from distinf.numerics.subject import ROWS, Subject
from distinf.numerics.waiting import told

Method = Literal["vmap", "loop", "hooks"]
Methods = tuple[Method, ...]
METHOD_ORDER: Methods = ("hooks", "vmap", "loop")  # the fastest first


@torch.inference_mode(False)
def per_sample_gradients(
    model: nn.Module,
    loss: Loss,
    batch: Batch,
    blocks: str = "all",
    *,
    chunk: int = 32,
    method: Method | None = None,
    embeddings: bool = False,
    project: TwoSided | None = None,
    check: bool = True,
    progress: bool | None = None,
) -> dict[str, Tensor | SparseRows]:
    """{parameter name: [N, entries]}: each sample's gradient of `loss(model, batch) -> [N]`.

    blocks: "all", "lora" or a regex on parameter names. The model runs in evaluation mode. `chunk`
    samples are differentiated at once. method: "hooks", the fastest for the layers that it knows
    (hooks.py: linear, convolutions, norms, embeddings); "vmap"; "loop", one at a time, for what
    neither can pass (quantised layers, say). None takes the first of them that can and agrees.

    check: once per model, loss, blocks and method (and anew for more rows at once), two and three
    rows are compared with what they give one at a time (agreement.py). InputError where a method
    differs (None takes the next), and for a loss that is random or mixes its rows. It costs about a
    dozen rows' gradients and a chunk.

    `embeddings` adds the input embedding, frozen or not; `project` makes linear layers' weights
    [N, p * p]. Either takes the hooks, where an embedding's gradients are SparseRows and all are
    float32 at least. Non-finite gradients come back as they are: see finite_rows. A complex
    parameter's are complex, dL/dRe + i dL/dIm.

    `batch`: tensors with the samples along dim 0, or arrays or lists of texts, in any containers
    (batches.py). Raises InputError where their numbers of rows differ, and for a loss that
    depends on none of the parameters.
    progress: a line on stderr for long work; None: in a terminal from 3 s on, elsewhere from 30 s.
    """
    layout = Layout.of(model, blocks, embeddings=embeddings, real=False)
    refuse_unusable(model, layout)
    batch = as_tensors(batch, model.get_parameter(layout.names[0]).dtype.to_real())
    wanted = _wanted(method, chunk, hooked=embeddings or project is not None)
    with _failing_row_told(model, loss, batch):
        settled = settled_method(
            model, loss, batch, layout, wanted, chunk=chunk, project=project, check=check
        )
        gradients = _by_method(model, loss, layout, project)
        chunks = told([*_chunks(batch, chunk)] or [batch], rows(batch), progress)
        parts = [gradients(settled, part) for part in chunks]
    found = {name: _cat([part[name] for part in parts]) for name in layout.names}
    if rows(batch) and not any(_some(block) for block in found.values()):
        refuse_without_gradient(model, loss, _chunks(batch, chunk), layout)
    return found


def _wanted(method: Method | None, chunk: int, hooked: bool) -> Methods:
    if hooked and method not in (None, "hooks"):
        raise InputError(f"embeddings and project need method='hooks', not {method!r}")
    _check(method or "hooks", chunk)
    return ("hooks",) if hooked else METHOD_ORDER if method is None else (method,)


@contextmanager
def _failing_row_told(model: nn.Module, loss: Loss, batch: Batch) -> Iterator[None]:
    """InputError that names a row where one fails by itself."""
    try:
        yield
    except Exception as error:
        is_ours = isinstance(error, InputError) and not error.__cause__  # a refusal
        if not is_ours and not is_out_of_memory(error):
            refuse_failing_row(model, loss, batch, error)
        raise


def _flat_blocks(
    model: nn.Module, loss: Loss, batch: Batch, layout: Layout, **how: Any
) -> dict[str, Tensor | SparseRows]:
    """Slices of flat_gradients; of a real parameter real, where another one is complex."""
    grads_NP = flat_gradients(model, loss, batch, layout, **how)
    found: dict[str, Tensor | SparseRows] = {}
    for name, span in layout.spans.items():
        real = grads_NP.is_complex() and not model.get_parameter(name).is_complex()
        found[name] = grads_NP[:, span].real if real else grads_NP[:, span]
    return found


def _some(block: Tensor | SparseRows) -> bool:
    """Whether there is an entry that is not zero; mostly the first row tells."""
    values = block.rows if isinstance(block, SparseRows) else block
    return any(bool(row.any()) for row in values)


def settled_method(
    model: nn.Module,
    loss: Loss,
    batch: Batch,
    layout: Layout,
    methods: Methods = METHOD_ORDER,
    *,
    chunk: int = 32,
    project: TwoSided | None = None,
    least: int = 0,
    check: bool = True,
) -> Method:
    """The first of `methods` that knows every layer and agrees with one row at a time.

    Remembered for this model and loss, and as many rows at once as were tried. `check` off: only
    whether hooks know the layers, and vmap passes two rows. InputError: the last method's, or for a
    loss that no method can take.
    """
    projected: frozenset[str] = frozenset()
    if "hooks" in methods:
        try:
            projected = known_layers(model, layout, project, least)
        except InputError:
            if methods == ("hooks",):
                raise
            methods = tuple(method for method in methods if method != "hooks")
    if not check and len(methods) == 1:
        return methods[0]
    key = (layout.names, methods, project, least, chunk == 1, check, makeup(model))
    known = remembered(model, loss)
    method, told = known.get(key, (methods[0], -1))
    if min(rows(batch), chunk) > told:  # a first batch of few rows has not told of many
        gradients = _by_method(model, loss, layout, project, least)
        numbers = looked_at(batch, max(chunk, ROWS))
        few = take(batch, numbers)
        subject = Subject(model, loss, few, numbers, layout, gradients, chunk, project, projected)
        method = (agreed_method if check else passing_method)(subject, methods)
        known[key] = method, subject.told if check else subject.together
    return method  # type: ignore[no-any-return]


def _by_method(
    model: nn.Module, loss: Loss, layout: Layout, project: TwoSided | None, least: int = 0
) -> Callable[[str, Batch], dict[str, Tensor | SparseRows]]:
    """(method, batch) -> {parameter: [n, entries]}."""

    def gradients(method: Any, batch: Batch) -> dict[str, Tensor | SparseRows]:
        if method == "hooks":
            return block_gradients(model, loss, batch, layout, project=project, least=least)
        count = max(rows(batch), 1)
        return _flat_blocks(model, loss, batch, layout, chunk=count, method=method)

    return gradients


def flat_gradients(
    model: nn.Module,
    loss: Loss,
    batch: Batch,
    layout: Layout,
    *,
    chunk: int = 32,
    method: Method = "vmap",
) -> Tensor:
    """[N, P]: per-sample gradients in layout order, as per_sample_gradients makes them."""
    _check(method, chunk)
    gradients = METHODS[method]
    parts = [gradients(model, loss, part, layout) for part in _chunks(batch, chunk)]
    return torch.cat([layout.gather(model).new_empty((0, layout.size)), *parts])


def _check(method: str, chunk: int) -> None:
    if method not in METHODS:
        raise InputError(f"method {method!r} must be one of {', '.join(METHODS)}, or None")
    if chunk < 1:
        raise InputError(f"chunk {chunk} must be at least 1")


def _chunks(batch: Batch, size: int) -> Iterator[Batch]:
    for start in range(0, rows(batch), size):
        # A loss may change its batch in place: it gets a copy.
        yield copied(take(batch, slice(start, start + size)))


def _cat(parts: Sequence[Tensor | SparseRows]) -> Tensor | SparseRows:
    sparse = [part for part in parts if isinstance(part, SparseRows)]
    return SparseRows.cat(sparse) if sparse else torch.cat([*parts])  # type: ignore[list-item]


def _vectorised(model: nn.Module, loss: Loss, batch: Batch, layout: Layout) -> Tensor:
    values = applied(model, loss)
    parameters = layout.parameters(model)
    tensors, rebuilt = split(batch)

    def sample_loss(parameters: dict[str, Tensor], sample: Sequence[Tensor]) -> Tensor:
        single = rebuilt([x[None] for x in sample])
        return per_sample(values(parameters, single), single)[0]

    with evaluating(model):
        try:
            grads = vmap(grad(sample_loss), in_dims=(None, 0))(parameters, tensors)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            raise OtherMethod(
                f"vectorised per-sample gradients failed ({str(error).splitlines()[0]})", ("loop",)
            ) from error
    sizes = dict(zip(layout.names, layout.lengths, strict=True))
    parts = [grads[name].detach().reshape(-1, size) for name, size in sizes.items()]
    return torch.cat(parts, dim=1)


def _one_by_one(model: nn.Module, loss: Loss, batch: Batch, layout: Layout) -> Tensor:
    samples = [take(batch, slice(i, i + 1)) for i in range(rows(batch))]
    return torch.stack([sum_gradient(model, loss, sample, layout) for sample in samples])


METHODS: dict[str, Callable[[nn.Module, Loss, Batch, Layout], Tensor]] = {
    "vmap": _vectorised,
    "loop": _one_by_one,
    "hooks": hook_gradients,
}


def finite_rows(gradients: Tensor | SparseRows | dict[str, Tensor | SparseRows]) -> Tensor:
    """bool [N]: which samples have finite gradients in every block; quarantine the others."""
    blocks = list(gradients.values()) if isinstance(gradients, dict) else [gradients]
    found = [
        b.finite() if isinstance(b, SparseRows) else torch.isfinite(b).flatten(1).all(1)
        for b in blocks
    ]
    return torch.stack(found).all(0)

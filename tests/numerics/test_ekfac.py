"""EK-FAC against matrices that are written out, row by row and position by position."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import distinf
from distinf.errors import InputError
from distinf.numerics.ekfac import EkFac, ekfac, sampled_labels
from distinf.numerics.kronecker import eigenbases, eigenvalue_sums, factor_sums
from distinf.numerics.parameters import Layout
from distinf.numerics.sparse import SparseRows

ROWS, CLASSES = 40, 3


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def loss(model, batch):
    """[N]: cross-entropy of labels sampled from the model."""
    logits = model(batch["x"]) if "mask" not in batch else model(batch["x"], batch["mask"])
    return functional.cross_entropy(
        logits, sampled_labels(logits, batch["row"], seed=5), reduction="none"
    )


def given_loss(model, batch):
    """[N]: cross-entropy of labels that are given, for the gradients that are scored."""
    logits = model(batch["x"]) if "mask" not in batch else model(batch["x"], batch["mask"])
    return functional.cross_entropy(logits, batch["row"] % CLASSES, reduction="none")


def part(batch, rows):
    return {name: value[rows] for name, value in batch.items()}


# -- nets, and what happens in them at each position of one row: (logits, weight name -> list of
# -- (what the weight meets, the tensor that comes out and its place in it)), by hand


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, CLASSES, bias=False)

    def forward(self, x):
        return self.second(self.first(x).tanh())

    def by_hand(self, sample):
        x = sample["x"]
        z = self.first.weight @ x + self.first.bias
        out = self.second.weight @ z.tanh()
        return out, {"first": [(x, z, ...)], "second": [(z.tanh(), out, ...)]}


class Grid(nn.Module):
    """Convolutions with padding, stride, dilation, groups; one depthwise."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(2, 4, (2, 3), stride=(1, 2), padding=(1, 0), dilation=(2, 1))
        self.second = nn.Conv2d(4, 4, 2, groups=2, bias=False)
        self.third = nn.Conv2d(4, 4, 2, groups=4)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.head(self.third(self.second(self.first(x).tanh()).tanh()).sum((2, 3)))

    def by_hand(self, sample):
        x, uses = sample["x"], {}
        for name in ("first", "second", "third"):
            layer = getattr(self, name)
            z = layer(x[None])[0]
            uses[name] = []
            (up, left), (down, right), (tall, wide) = layer.padding, layer.stride, layer.dilation
            padded = functional.pad(x, (left, left, up, up))
            own, inner = len(z) // layer.groups, len(x) // layer.groups
            for i in range(z.shape[1]):
                for j in range(z.shape[2]):
                    for group in range(layer.groups):
                        rows = [i * down + k * tall for k in range(layer.kernel_size[0])]
                        columns = [j * right + k * wide for k in range(layer.kernel_size[1])]
                        channels = slice(group * inner, (group + 1) * inner)
                        met = padded[channels][:, rows][:, :, columns].flatten()
                        outputs = slice(group * own, (group + 1) * own)
                        uses[name].append((met, z, (outputs, i, j)))
            x = z.tanh() if name != "third" else z
        summed = x.sum((1, 2))
        out = self.head.weight @ summed + self.head.bias
        return out, uses | {"head": [(summed, out, ...)]}


class Sequence(nn.Module):
    """Rows of several lengths; a layer that is used twice."""

    def __init__(self):
        super().__init__()
        self.first, self.twice = nn.Linear(3, 4), nn.Linear(4, 4)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x, mask):
        z = self.twice(self.twice(self.first(x).tanh()).tanh())
        return self.head((z.tanh() * mask[..., None]).sum(1))

    def by_hand(self, sample):
        x = sample["x"][sample["mask"] > 0]
        a = x @ self.first.weight.T + self.first.bias
        b = a.tanh() @ self.twice.weight.T + self.twice.bias
        c = b.tanh() @ self.twice.weight.T + self.twice.bias
        summed = c.tanh().sum(0)
        out = self.head.weight @ summed + self.head.bias
        uses = {"first": [(x[t], a, t) for t in range(len(x))]}
        uses["twice"] = [(a.tanh()[t], b, t) for t in range(len(x))]
        uses["twice"] += [(b.tanh()[t], c, t) for t in range(len(x))]
        return out, uses | {"head": [(summed, out, ...)]}


def adapted(std):
    """An Mlp of which one layer has LoRA; its B has entries of this size."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=["first"])
    model = peft.get_peft_model(Mlp().double(), config).double()
    layer = model.base_model.model.first
    nn.init.normal_(layer.lora_B["default"].weight, std=std) if std else None

    def by_hand(sample):
        x, inner = sample["x"], model.base_model.model
        low = layer.lora_A["default"].weight @ x
        high = layer.lora_B["default"].weight @ low
        z = layer.base_layer.weight @ x + layer.base_layer.bias + 3 * high
        out = inner.second.weight @ z.tanh()
        at = "base_model.model.first.lora_{}.default"
        return out, {at.format("A"): [(x, low, ...)], at.format("B"): [(low, high, ...)]}

    model.by_hand = by_hand
    return model


def conv1d():
    """GPT-2's layer, whose weight is [inputs, outputs]."""
    from transformers.pytorch_utils import Conv1D

    model = Mlp()
    model.first = Conv1D(5, 4)
    nn.init.normal_(model.first.weight)

    def by_hand(sample):
        z = model.first.weight.T @ sample["x"] + model.first.bias
        out = model.second.weight @ z.tanh()
        uses = {"first": [(sample["x"], z, ...)], "second": [(z.tanh(), out, ...)]}
        return out, uses

    model.by_hand = by_hand
    return model


def sequences(longest=6):
    lengths = 2 + torch.arange(ROWS) % 4
    mask = (torch.arange(longest) < lengths[:, None]).double()
    return normal(ROWS, 9, 3)[:, :longest] * mask[..., None], mask


def case(name):
    """(model, batch)"""
    torch.manual_seed(1)
    batch = {"x": normal(ROWS, 4), "row": torch.arange(ROWS)}
    if name == "mlp":
        return Mlp().double(), batch
    if name == "conv1d of GPT-2":
        pytest.importorskip("transformers")
        return conv1d().double(), batch
    if name == "convolutions":
        return Grid().double(), batch | {"x": normal(ROWS, 2, 5, 8)}
    if name == "sequences":
        x, mask = sequences()
        return Sequence().double(), batch | {"x": x, "mask": mask}
    return adapted(0.5 if name == "LoRA" else 0.0), batch


CASES = ["mlp", "conv1d of GPT-2", "convolutions", "sequences", "LoRA", "LoRA, B = 0"]


def written_out(model, batch):
    """{layer: [(A, G, [whole gradient of each row])] of each group}, with the bias appended."""
    found = {}
    for n in range(ROWS):
        sample = {name: value[n] for name, value in batch.items()}
        out, uses = model.by_hand(sample)
        label = sampled_labels(out[None], batch["row"][n : n + 1], seed=5)[0]
        value = functional.cross_entropy(out[None], label[None])
        for name, positions in uses.items():
            layer = model.get_submodule(name)
            groups = getattr(layer, "groups", 1)
            stored = found.setdefault(name, [([], [], [0.0] * ROWS) for _ in range(groups)])
            for k, (met, tensor, place) in enumerate(positions):
                grad = torch.autograd.grad(value, tensor, retain_graph=True)[0][place]
                met = met.detach()
                if getattr(layer, "bias", None) is not None:
                    met = torch.cat([met, torch.ones(1).double()])
                a, g, whole = stored[k % groups]
                if bool((grad != 0).any()):
                    a.append(torch.outer(met, met))
                    g.append(torch.outer(grad, grad))
                whole[n] = whole[n] + torch.outer(grad, met)
    return found


def dense_fisher(blocks):
    """[P, P] of one layer, groups one after the other."""
    parts = []
    for a, g, whole in blocks:
        shape = whole[0].shape
        mean = [torch.stack(f).mean(0) if f else torch.zeros(n, n).double()
                for f, n in ((g, shape[0]), (a, shape[1]))]  # fmt: skip
        left, right = (torch.linalg.eigh(factor)[1] for factor in mean)
        values = sum((left.T @ d @ right).square() for d in whole) / ROWS
        basis = torch.kron(left, right)
        parts.append(basis @ torch.diag(values.flatten()) @ basis.T)
    return torch.block_diag(*parts)


def gradients(model, batch, blocks="all"):
    return distinf.per_sample_gradients(model, given_loss, batch, blocks, check=False)


def appended(model, name, grads):
    """[N, P]: each group's matrices with the bias as their last column, in order."""
    layer = model.get_submodule(name)
    weight = grads[f"{name}.weight"]
    outputs = layer.weight.shape[0]
    if type(layer).__name__ == "Conv1D":
        outputs = layer.weight.shape[1]
        weight = weight.view(len(weight), -1, outputs).mT
    weight = weight.reshape(len(weight), outputs, -1)
    if f"{name}.bias" in grads:
        weight = torch.cat([weight, grads[f"{name}.bias"][..., None]], 2)
    return weight.flatten(1)


@pytest.mark.parametrize("damping", [None, 0.02])
@pytest.mark.parametrize("name", CASES)
def test_scores_are_those_of_the_written_out_inverse(name, damping):
    model, batch = case(name)
    blocks = "lora" if "LoRA" in name else "all"
    curvature = ekfac(
        model, loss, [part(batch, slice(0, 25)), part(batch, slice(25, None))], blocks
    )
    grads = gradients(model, batch, blocks)
    train, query = ({k: v[rows] for k, v in grads.items()} for rows in (slice(6, 30), slice(0, 6)))
    found = distinf.influence(train, query, "ekfac", curvature=curvature, damping=damping)
    assert list(found) == list(train)
    for layer, parts in written_out(model, batch).items():
        fisher = dense_fisher(parts)
        used = damping or float(fisher.trace()) / len(fisher) / 10
        inverse = torch.linalg.inv(fisher + used * torch.eye(len(fisher)).double()) if used else 0
        g, q = (appended(model, layer, grads) for grads in (train, query))
        expected = q @ inverse @ g.T if used else torch.zeros(6, 24).double()
        scores = sum(found[n] for n in found if n.rpartition(".")[0] == layer)
        assert scores.shape == (6, 24)
        torch.testing.assert_close(scores, expected, rtol=1e-8, atol=1e-10)
        if name != "LoRA, B = 0" or "lora_B" in layer:
            assert expected.abs().max() > 1e-3


def test_lora_without_b_has_finite_scores_in_every_layer():
    model, batch = case("LoRA, B = 0")
    curvature = ekfac(model, loss, [batch], "lora")
    grads = gradients(model, batch, "lora")
    a, b = grads
    assert "lora_A" in a
    assert grads[a].abs().max() == 0
    assert curvature.eigenvalues[a].abs().max() == 0
    for damping in (None, 0.1):
        scores = distinf.influence(grads, grads, "ekfac", curvature=curvature, damping=damping)
        assert all(torch.isfinite(block).all() for block in scores.values())
        assert scores[a].abs().max() == 0
        assert scores[b].abs().max() > 0
    solved = curvature.solve({a: torch.ones(1, 8).double()})
    assert torch.equal(solved[a], torch.zeros(1, 8).double())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_neither_the_batch_nor_its_padding_changes_it(dtype):
    model, _ = case("sequences")
    model = model.to(dtype)
    curvatures = []
    for longest, size in ((6, ROWS), (9, 7), (6, 1)):
        x, mask = sequences(longest)
        batch = {"x": x.to(dtype), "mask": mask.to(dtype), "row": torch.arange(ROWS)}
        starts = range(0, ROWS, size)
        parts = [part(batch, slice(start, start + size)) for start in starts]
        curvatures.append(ekfac(model, loss, lambda parts=parts: iter(parts)))
    grads = {n: normal(2, p.numel()) for n, p in model.named_parameters()}
    first, *others = (curvature.solve(grads) for curvature in curvatures)
    tolerance = 1e-8 if dtype == torch.float64 else 1e-3
    for other in others:
        for name, solved in first.items():
            largest = float(solved.abs().max())
            torch.testing.assert_close(other[name], solved, rtol=0, atol=tolerance * largest)


def test_sums_over_shards_add_up_and_all_of_it_is_plain_arrays():
    model, batch = case("convolutions")
    layout = Layout.of(model)
    shards = [part(batch, slice(0, 11)), part(batch, slice(11, None))]
    halves = [factor_sums(model, loss, shard, layout) for shard in shards]
    added, whole = halves[0] + halves[1], factor_sums(model, loss, batch, layout)
    assert added.rows == ROWS
    torch.testing.assert_close(added.arrays, whole.arrays)
    assert float(added.arrays["positions.first.weight"]) == ROWS * 5 * 3
    bases = eigenbases(added)
    halves = [eigenvalue_sums(model, loss, shard, layout, bases) for shard in shards]
    curvature = EkFac.of(model, layout, bases, halves[1] + halves[0])
    again = EkFac.from_arrays(dict(reversed(curvature.arrays().items())))
    grads = {name: normal(3, length) for name, length in zip(layout.names, layout.lengths)}
    torch.testing.assert_close(again.solve(grads), curvature.solve(grads), rtol=0, atol=0)
    direct = ekfac(model, loss, shards).solve(grads)
    torch.testing.assert_close(direct, curvature.solve(grads))
    with pytest.raises(InputError, match="different parameters"):
        _ = added + halves[0]


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.norm = nn.Embedding(7, 4), nn.LayerNorm(4)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.head(self.norm(self.words(x)).tanh().sum(1))


@pytest.mark.parametrize("blocks", ["all", "bias"])
def test_what_has_no_factors_takes_the_diagonal(blocks):
    torch.manual_seed(2)
    model = Words().double()
    batch = {"x": torch.randint(0, 6, (ROWS, 3)), "row": torch.arange(ROWS)}
    curvature = ekfac(model, loss, [batch], blocks)
    if blocks == "all":
        assert set(curvature.forms) == {"head.weight"}
    else:
        assert not curvature.forms
    grads = gradients(model, batch, blocks)
    labels = sampled_labels(model(batch["x"]), batch["row"], seed=5)
    with torch.enable_grad():
        losses = functional.cross_entropy(model(batch["x"]), labels, reduction="none")
    solved = curvature.solve(grads, damping=0.1)
    scores = distinf.influence(grads, grads, "ekfac", curvature=curvature, damping=0.1)
    for name in grads:
        if blocks == "all" and name.startswith("head"):
            continue
        rows = [
            torch.autograd.grad(value, model.get_parameter(name), retain_graph=True)[0].flatten()
            for value in losses
        ]
        diagonal = torch.stack(rows).square().mean(0)
        block = grads[name]
        dense = block.dense().flatten(1) if isinstance(block, SparseRows) else block
        expected = dense / (diagonal + 0.1)
        found = solved[name]
        found = found.dense().flatten(1) if isinstance(found, SparseRows) else found
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(scores[name], expected @ dense.T)
    if blocks == "all":
        sparse = distinf.per_sample_gradients(model, given_loss, batch, embeddings=True)
        assert isinstance(sparse["words.weight"], SparseRows)
        again = distinf.influence(sparse, sparse, "ekfac", curvature=curvature, damping=0.1)
        torch.testing.assert_close(again, scores)


def test_sampled_labels_follow_the_model_and_the_row_alone():
    logits = torch.tensor([0.0, 1.0, -1.0]).double().expand(6000, 3)
    rows = torch.arange(6000)
    found = sampled_labels(logits, rows, seed=1)
    shares = torch.bincount(found, minlength=3) / 6000
    torch.testing.assert_close(shares, torch.softmax(logits[0], 0).float(), rtol=0, atol=0.02)
    order = torch.randperm(6000, generator=torch.Generator().manual_seed(0))[:100]
    assert torch.equal(sampled_labels(logits[order], rows[order], seed=1), found[order])
    assert not torch.equal(sampled_labels(logits, rows, seed=2), found)
    sure = torch.tensor([-1e4, -1e4, 0.0]).expand(50, 3)
    assert sampled_labels(sure, rows[:50]).eq(2).all()
    tokens = normal(4, 5, 3)
    found = sampled_labels(tokens, rows[:4])
    assert found.shape == (4, 5)
    assert torch.equal(sampled_labels(tokens[:, :2], rows[:4]), found[:, :2])
    assert sampled_labels(logits[:0], rows[:0]).shape == (0,)


def test_what_does_not_fit_is_refused():
    model, batch = case("mlp")
    curvature = ekfac(model, loss, [batch])
    grads = gradients(model, batch)
    with pytest.raises(InputError, match=r"needs curvature=distinf\.ekfac"):
        distinf.influence(grads, grads, "ekfac")
    alone = {"first.weight": grads["first.weight"]}
    with pytest.raises(InputError, match=r"'first\.weight'.*weight and its bias go together"):
        distinf.influence(alone, alone, "ekfac", curvature=curvature)
    other = {"third.weight": grads["first.weight"]}
    with pytest.raises(InputError, match=r"do not fit the gradients of 'third\.weight'"):
        distinf.influence(other, other, "ekfac", curvature=curvature)
    with pytest.raises(InputError, match="by parameter name"):
        distinf.influence(
            grads["first.weight"], grads["first.weight"], "ekfac", curvature=curvature
        )
    short = {name: block[:, 1:] for name, block in grads.items()}
    with pytest.raises(InputError, match=r"'first\.weight'"):
        distinf.influence(short, short, "ekfac", curvature=curvature)
    with pytest.raises(InputError, match="gone through twice"):
        ekfac(model, loss, iter([batch]))
    with pytest.raises(InputError, match="no rows"):
        ekfac(model, loss, [])
    with pytest.raises(InputError, match="not finite"):
        ekfac(model, loss, [batch | {"x": batch["x"] * float("nan")}])
    with pytest.raises(ValueError, match="damping=0"):
        distinf.influence(grads, grads, "ekfac", curvature=curvature, damping=0)


def given_two(model, batch):
    return functional.cross_entropy(model(batch["x"]), batch["row"] % 2, reduction="none")


def test_a_factor_multiplies_every_layers_default_damping():
    torch.manual_seed(8)
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2)).double()
    batch = {"x": torch.randn(20, 4, dtype=torch.float64), "row": torch.arange(20)}
    curvature = ekfac(model, loss, [batch])
    grads = distinf.per_sample_gradients(model, given_two, batch, check=False)
    found = curvature.solve(grads, None, 10.0)
    for layer in ("0", "1"):
        damping = 10.0 * curvature.damping(f"{layer}.weight")
        by_hand = curvature.solve(grads, damping)
        for name in (f"{layer}.weight", f"{layer}.bias"):
            torch.testing.assert_close(found[name], by_hand[name])
            assert not torch.allclose(found[name], curvature.solve(grads)[name])


@pytest.mark.parametrize("shapes", [((4,), 4), ((4, 3), 3), ((4, 3), 0)])
def test_sampled_labels_of_other_rows_are_refused_in_one_line(shapes):
    shape, rows = shapes
    with pytest.raises(InputError, match=r"logits \[N, C\].*rows \[N\]"):
        sampled_labels(torch.zeros(shape), torch.arange(rows))
    assert torch.equal(
        sampled_labels(torch.zeros(4, 3), [0, 1, 2, 3]),
        sampled_labels(torch.zeros(4, 3), torch.arange(4)),
    )

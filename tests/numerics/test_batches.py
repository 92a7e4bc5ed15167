"""What a batch may be: every container gives as many gradients as samples, the rest one line."""

from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset, default_collate

from distinf.errors import InputError
from distinf.numerics.batches import as_tensors, rows, take
from distinf.numerics.capture import per_sample_gradients

METHODS = ("vmap", "loop", "hooks")
N = 50  # more than one chunk, and unlike any number of keys


@dataclass(frozen=True)
class Pair:
    x: Tensor
    y: Tensor
    source: str = "somewhere"


Named = namedtuple("Named", "x y flag")


class Encoded(UserDict):
    """As a tokenizer's output: a mapping that is no dict, with its keys as attributes."""

    def __getattr__(self, name):
        if name == "data":
            raise AttributeError(name)
        return self.data[name]


def problem():
    torch.manual_seed(0)
    return nn.Linear(4, 3), torch.randn(N, 4), torch.randint(0, 3, (N,))


def by_key(model, batch):
    return nn.functional.cross_entropy(model(batch["x"]), batch["y"], reduction="none")


def by_name(model, batch):
    return nn.functional.cross_entropy(model(batch.x), batch.y, reduction="none")


def by_place(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def expected(model, x, y):
    """[N, 12]: softmax minus one-hot, times the input."""
    errors = (model(x).softmax(1) - nn.functional.one_hot(y, 3)).detach()
    return (errors[:, :, None] * x[:, None]).flatten(1)


CONTAINERS = {
    "dict": (by_key, lambda x, y: {"x": x, "y": y}),
    "ordered": (by_key, lambda x, y: OrderedDict(y=y, x=x)),
    "mapping": (by_key, lambda x, y: Encoded(x=x, y=y)),
    "mapping's attributes": (by_name, lambda x, y: Encoded(x=x, y=y)),
    "read-only": (by_key, lambda x, y: MappingProxyType({"x": x, "y": y})),
    "nested": (lambda m, b: by_place(m, b["in"]), lambda x, y: {"in": [x, y]}),
    "tuple": (by_place, lambda x, y: (x, y)),
    "namedtuple": (by_name, lambda x, y: Named(x, y, flag=True)),
    "dataclass": (by_name, Pair),
    "beside": (by_key, lambda x, y: {"x": x, "y": y, "mask": None, "epoch": 3, "t": x.sum()}),
    "arrays": (by_key, lambda x, y: {"x": x.double().numpy(), "y": y.int().numpy()}),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("container", CONTAINERS)
def test_as_many_gradients_as_samples_from_any_container(container, method):
    model, x, y = problem()
    loss, made = CONTAINERS[container]
    found = per_sample_gradients(model, loss, made(x, y), method=method)
    torch.testing.assert_close(found["weight"], expected(model, x, y))


@pytest.mark.parametrize("method", METHODS)
def test_a_tokenizers_output(method):
    transformers = pytest.importorskip("transformers")
    model, x, y = problem()
    batch = transformers.BatchEncoding({"x": x, "y": y})
    found = per_sample_gradients(model, by_key, batch, method=method)
    torch.testing.assert_close(found["weight"], expected(model, x, y))


@pytest.mark.parametrize("method", METHODS)
def test_inference_mode_around_the_batch_or_the_call(method):
    model, x, y = problem()
    with torch.inference_mode():
        batch = {"x": x.clone(), "y": y.clone()}
        inside = per_sample_gradients(model, by_key, batch, method=method)["weight"]
    outside = per_sample_gradients(model, by_key, batch, method=method)["weight"]
    for found in (inside, outside):
        torch.testing.assert_close(found, expected(model, x, y))


def lengths_loss(model, batch):
    """A loss on texts: their lengths are the inputs."""
    lengths = torch.tensor([[float(len(text))] for text in batch["text"]])
    return model(lengths)[:, 0] * batch["sign"]


@pytest.mark.parametrize("method", ["loop", "hooks"])
@pytest.mark.parametrize("kind", [list, tuple, np.array])
def test_a_list_of_texts_is_cut_as_the_tensors_are(kind, method):
    model, sign = nn.Linear(1, 1), torch.tensor([1.0, -1.0, 2.0])
    batch = {"text": kind(["a", "bbbb", "cc"]), "sign": sign}
    found = per_sample_gradients(model, lengths_loss, batch, method=method, chunk=2)
    assert found["weight"][:, 0].tolist() == [1.0, -4.0, 4.0]


def test_texts_alone_are_a_batch():
    def loss(model, batch):
        return model(torch.tensor([[float(len(text))] for text in batch]))[:, 0]

    found = per_sample_gradients(nn.Linear(1, 1), loss, ["a", "bb", "c"], method="loop")
    assert found["weight"][:, 0].tolist() == [1.0, 2.0, 1.0]


def test_texts_under_vmap_name_the_method_that_takes_them():
    batch = {"text": ["a", "b"], "sign": torch.ones(2)}
    with pytest.raises(InputError, match=r"batch\['text'\] is a list of texts.*method='loop'"):
        per_sample_gradients(nn.Linear(1, 1), lengths_loss, batch, method="vmap")


REFUSED = {
    "lengths": (lambda x, y: {"x": x, "y": y[:3]}, r"batch\['x'\] has 50 rows.*batch\['y'\] has 3"),
    "shared": (lambda x, y: (x, y, torch.ones(3)), r"batch\[2\] has 3.*functools.partial"),
    "empty": (lambda x, y: {}, "no samples"),
    "numbers alone": (lambda x, y: {"x": 3.0}, "no samples"),
    "none": (lambda x, y: None, "no samples"),
    "number list": (lambda x, y: {"x": x, "y": [1] * N}, "list of numbers"),
    "records": (lambda x, y: {"x": x, "y": y, "of": [{"id": k} for k in range(N)]}, "list of dict"),
    "texts and gaps": (lambda x, y: {"x": x, "y": y, "of": ("a", None) * 25}, "NoneType and str"),
    "loader": (lambda x, y: DataLoader(TensorDataset(x, y)), "DataLoader; loop over it"),
    "dataset": (lambda x, y: TensorDataset(x, y), "default_collate"),
    "generator": (lambda x, y: (row for row in x), "generator; collect it"),
    "sparse": (lambda x, y: {"x": x.to_sparse(), "y": y}, r"batch\['x'\] is a sparse tensor"),
    "packed": (lambda x, y: nn.utils.rnn.pack_sequence([x, x[:3]]), "padded tensor"),
    "meta": (lambda x, y: {"x": x.to("meta"), "y": y}, "meta device"),
    "dates": (lambda x, y: {"x": x, "d": np.zeros(N, "datetime64[D]")}, "array of datetime64"),
    "object": (lambda x, y: Ellipsis, "give tensors"),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", REFUSED)
def test_what_has_no_samples_along_its_first_dimension_is_refused_in_one_line(kind, method):
    model, x, y = problem()
    made, said = REFUSED[kind]
    with pytest.raises(InputError, match=said) as caught:
        per_sample_gradients(model, by_key, made(x, y), method=method)
    assert "\n" not in str(caught.value)


def test_the_remedies_that_are_named_work():
    model, x, y = problem()
    weights = torch.tensor([1.0, 1.0, 1.0])

    def weighted(model, batch, *, weights):
        return nn.functional.cross_entropy(model(batch[0]), batch[1], weights, reduction="none")

    shared = per_sample_gradients(model, partial(weighted, weights=weights), (x, y))
    dataset = TensorDataset(x, y)
    collated = default_collate([dataset[i] for i in range(N)])
    loader = [per_sample_gradients(model, by_place, b)["weight"] for b in DataLoader(dataset, 20)]
    for found in (
        shared["weight"],
        per_sample_gradients(model, by_place, collated)["weight"],
        torch.cat(loader),
    ):
        torch.testing.assert_close(found, expected(model, x, y))


def test_taking_samples_keeps_containers_and_order():
    _, x, y = problem()
    part = take(Encoded(x=x, y=y, text=[str(i) for i in range(N)], flag=None), [7, 2])
    assert isinstance(part, Encoded)
    assert torch.equal(part.x, x[[7, 2]])
    assert part["text"] == ["7", "2"]
    assert part["flag"] is None
    assert rows(part) == 2
    assert isinstance(take(Pair(x, y), slice(3)), Pair)


def test_arrays_take_the_models_type_and_tensors_keep_theirs():
    batch = {"a": np.ones((2, 3)), "i": np.ones(2, np.int32), "t": torch.ones(2).double()}
    found = as_tensors(batch, torch.float32)
    kinds = [value.dtype for value in found.values()]
    assert kinds == [torch.float32, torch.int64, torch.float64]

"""Per-sample gradients of an embedding: the rows of each sample's own tokens, and no others.

Shape legend: N samples, R stored rows of all samples together, D embedding width, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class SparseRows:
    """Gradients [N, V, D] of which sample n has the rows offsets[n] to offsets[n + 1].

    offsets: int64 [N + 1]. ids: int64 [R], which of the V rows each is; ascending and without
    repetition within a sample. rows: [R, D]; one left out is zero. vocabulary: V where it is known.
    """

    offsets: Tensor
    ids: Tensor
    rows: Tensor
    vocabulary: int | None = None

    @classmethod
    def summed(
        cls, samples: Tensor, ids: Tensor, rows: Tensor, count: int, vocabulary: int
    ) -> "SparseRows":
        """From entries in any order: `rows` of the same sample and id add up.

        A sum that is exactly zero is left out, so that padding changes nothing.
        """
        keys, places = torch.unique(samples * vocabulary + ids, return_inverse=True)
        # The kernel of an embedding's own backward pass: also on CUDA the same sum every time.
        sums = torch.ops.aten.embedding_dense_backward(rows, places, len(keys), -1, False)
        kept = (sums != 0).any(1)
        keys, sums = keys[kept], sums[kept]
        lengths = torch.bincount(keys // vocabulary, minlength=count)
        return cls(_ends(lengths), keys % vocabulary, sums, vocabulary)

    @staticmethod
    def cat(parts: Sequence["SparseRows"]) -> "SparseRows":
        """The samples of all parts, in order; at least one part."""
        return SparseRows(
            _ends(torch.cat([part.lengths for part in parts])),
            torch.cat([part.ids for part in parts]),
            torch.cat([part.rows for part in parts]),
            parts[0].vocabulary,
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: "slice | Tensor | Sequence[int]") -> "SparseRows":
        """The samples of a slice, a mask, or numbers from either end, as a tensor takes them."""
        everyone = torch.arange(len(self), device=self.offsets.device)
        return self.select(everyone[index].reshape(-1))

    def __add__(self, other: "SparseRows") -> "SparseRows":
        """The sum of two gradients of the same N samples over the same vocabulary."""
        assert self.vocabulary is not None
        assert self.vocabulary == other.vocabulary
        samples, ids, rows = (
            torch.cat([getattr(part, name) for part in (self, other)])
            for name in ("samples", "ids", "rows")
        )
        return SparseRows.summed(samples, ids, rows, len(self), self.vocabulary)

    @property
    def lengths(self) -> Tensor:
        """int64 [N]: how many rows each sample has."""
        return self.offsets.diff()

    @property
    def samples(self) -> Tensor:
        """int64 [R]: the sample of each row."""
        index = torch.arange(len(self), device=self.offsets.device)
        return index.repeat_interleave(self.lengths, output_size=len(self.ids))

    def sqnorms(self) -> Tensor:
        """fp64 [N]: squared norms of the samples' gradients."""
        squares = self.rows.double().square().sum(1)
        return squares.new_zeros(len(self)).index_add_(0, self.samples, squares)

    def double(self) -> "SparseRows":
        return replace(self, rows=self.rows.double())

    def finite(self) -> Tensor:
        """bool [N]: which samples' gradients are finite."""
        broken = self.samples[~torch.isfinite(self.rows).all(1)]
        return self.offsets.new_ones(len(self), dtype=torch.bool).index_fill_(0, broken, False)

    def select(self, index: Tensor) -> "SparseRows":
        """The samples of int64 `index`, in its order; a sample may come twice."""
        lengths = self.lengths[index]
        offsets = _ends(lengths)
        shift = (self.offsets[:-1][index] - offsets[:-1]).repeat_interleave(lengths)
        places = shift + torch.arange(len(shift), device=shift.device)
        return SparseRows(offsets, self.ids[places], self.rows[places], self.vocabulary)

    def top_rows(self, k: int) -> "SparseRows":
        """Of every sample the k rows of largest norm; among equal norms those of smaller id."""
        samples = self.samples
        falling = torch.argsort(self.rows.double().square().sum(1), descending=True, stable=True)
        grouped = falling[torch.argsort(samples[falling], stable=True)]
        rank = torch.arange(len(grouped), device=grouped.device) - self.offsets[samples]
        kept = grouped[rank < k].sort().values
        lengths = self.lengths.clamp(max=k)
        return SparseRows(_ends(lengths), self.ids[kept], self.rows[kept], self.vocabulary)

    def along(self, directions_KP: Tensor) -> Tensor:
        """[N, K]: dot products with dense directions, P = V D."""
        width = self.rows.shape[1]
        directions_KVD = directions_KP.view(len(directions_KP), -1, width)
        ends = self.offsets.tolist()
        products = [
            directions_KVD[:, self.ids[start:end]].flatten(1) @ self.rows[start:end].flatten()
            for start, end in pairwise(ends)
        ]
        return torch.stack([directions_KP.new_empty(len(directions_KP)), *products])[1:]

    def to(self, target: torch.device | str | torch.dtype) -> "SparseRows":
        """Elsewhere, or with rows of another dtype."""
        rows = self.rows.to(target)
        offsets, ids = (t.to(rows.device) for t in (self.offsets, self.ids))
        return SparseRows(offsets, ids, rows, self.vocabulary)

    def dense(self, vocabulary: int | None = None) -> Tensor:
        """[N, V, D], for tests and small vocabularies."""
        vocabulary = vocabulary or self.vocabulary
        assert vocabulary is not None
        dense = self.rows.new_zeros((len(self), vocabulary, self.rows.shape[1]))
        dense[self.samples, self.ids] = self.rows
        return dense


def pair_products(first: "Tensor | SparseRows", second: "Tensor | SparseRows") -> Tensor:
    """[N1, N2]: dot products of all pairs of rows, both dense [N, P] in float64 or both sparse."""
    if isinstance(first, SparseRows) and isinstance(second, SparseRows):
        return sparse_gram(first, second)
    assert isinstance(first, Tensor)
    assert isinstance(second, Tensor)
    return first @ second.double().T


def sparse_gram(first: SparseRows, second: SparseRows) -> Tensor:
    """[N1, N2], at least float32: dot products of all pairs of samples.

    Sum over the ids that both have of their rows' dot products, one matrix product per shared id:
    neither the pairs of stored rows nor the vocabulary are ever laid out.
    """
    kind = torch.promote_types(
        torch.promote_types(first.rows.dtype, second.rows.dtype), torch.float32
    )
    gram = first.rows.new_zeros((len(first), len(second)), dtype=kind)
    for samples, rows, others, other_rows in _shared(first, second):
        product = rows.to(kind) @ other_rows.to(kind).T
        if product.shape == gram.shape:
            gram += product
        else:
            gram[samples[:, None], others] += product
    return gram


def _shared(
    first: SparseRows, second: SparseRows
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """For every id of both: the first's samples and rows with it, then the second's."""
    ids, spans, samples, rows = _by_id(first)
    other_ids, other_spans, others, other_rows = _by_id(second)
    place = {id_: index for index, id_ in enumerate(other_ids)}
    for id_, span in zip(ids, spans, strict=True):
        if id_ in place:
            other = other_spans[place[id_]]
            yield samples[span], rows[span], others[other], other_rows[other]


def _by_id(gradients: SparseRows) -> tuple[list[int], list[slice], Tensor, Tensor]:
    """Distinct ids, where each one's rows lie, and samples and rows in that order."""
    order = torch.argsort(gradients.ids, stable=True)
    ids, counts = torch.unique_consecutive(gradients.ids[order], return_counts=True)
    ends = _ends(counts).tolist()
    spans = [slice(start, end) for start, end in pairwise(ends)]
    return ids.tolist(), spans, gradients.samples[order], gradients.rows[order]


def _ends(lengths: Tensor) -> Tensor:
    """int64 [N + 1]: 0 and the running sums of `lengths`."""
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0))

"""An orthonormal Krylov basis whose vectors are cut into slices that ranks share out.

The slices' number and boundaries never depend on the number of ranks, each slice adds its own fp64
partial dots, and partial dots are summed in slice order: the bits are the same at any rank count.

Shape legend: D dimension, J vectors so far, W width of a slice, C columns of a chunk,
K combinations.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from distinf.collective import Collective

# Entries of a chunk in fp64: 1 MiB stays in a core's cache; a GPU wants fewer, larger launches.
CHUNK_ENTRIES_CPU = 1 << 17
CHUNK_ENTRIES_GPU = 1 << 24


@dataclass(frozen=True)
class Orthogonalised:
    """A vector after projecting the basis out of it.

    `direction_D` is its unit vector in the basis dtype (zeros if `norm` is 0 or not finite);
    `coefficients_J` (fp64) are what was removed, `norm` what remained, `incoming_norm` the norm
    before, `orthogonality` the largest |cosine| left between it and the basis.
    """

    direction_D: Tensor
    coefficients_J: Tensor
    norm: float
    incoming_norm: float
    orthogonality: float


class SlicedBasis:
    """Up to `capacity` vectors of length `dim`; this rank stores its slices of each."""

    def __init__(
        self,
        dim: int,
        capacity: int,
        *,
        slices: int,
        collective: Collective,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        self.dim = dim
        self.capacity = capacity
        self.collective = collective
        self.dtype = dtype
        self.count = 0
        owned = collective.owned(slices)
        self._spans = [(dim * s // slices, dim * (s + 1) // slices) for s in owned]
        # Own allocations, one per slice: BLAS may round differently at another alignment.
        self._blocks_JW = [
            torch.empty((capacity, stop - start), dtype=dtype, device=device)
            for start, stop in self._spans
        ]
        self._device = torch.device(device)
        entries = CHUNK_ENTRIES_CPU if self._device.type == "cpu" else CHUNK_ENTRIES_GPU
        self._scratch = torch.empty(max(entries, 64 * capacity), dtype=torch.float64, device=device)

    @property
    def device(self) -> torch.device:
        """Where the basis lies."""
        return self._device

    def append(self, vector_D: Tensor) -> None:
        """Keep this rank's slices of a full vector; the caller vouches for orthonormality."""
        if self.count == self.capacity:
            raise ValueError(f"the basis is full at {self.capacity} vectors")
        for block_JW, (start, stop) in zip(self._blocks_JW, self._spans, strict=True):
            block_JW[self.count].copy_(vector_D[start:stop])
        self.count += 1

    def orthogonalise(self, vector_D: Tensor) -> Orthogonalised:
        """Classical Gram-Schmidt twice, in fp64, with three sweeps over the basis.

        The second pass's dots are taken in the sweep that subtracts the first pass's projection,
        and the orthogonality check in the sweep that subtracts the second's.
        """
        parts_W = self._parts(vector_D)
        none_J = torch.zeros(self.count, dtype=torch.float64, device=self._device)
        first_J, incoming = self._sweep(parts_W, none_J)
        second_J, _ = self._sweep(parts_W, first_J)
        left_J, squared = self._sweep(parts_W, second_J)
        norm = squared**0.5
        usable = norm > 0.0 and norm != float("inf")
        scale = 1.0 / norm if usable else 0.0
        direction_D = self._gather([(part_W * scale).to(self.dtype) for part_W in parts_W])
        worst = float(left_J.abs().max()) * scale if self.count else 0.0
        return Orthogonalised(direction_D, first_J + second_J, norm, incoming**0.5, worst)

    def clear(self) -> None:
        """Forget all vectors."""
        self.count = 0

    def after(self, count: int) -> Tensor:
        """[J - count, D]: all vectors but the first `count`, in full on every rank."""
        local_WJ = [block_JW[count : self.count].T for block_JW in self._blocks_JW]
        return self._gather(local_WJ, (self.count - count,)).T.contiguous()

    def dots(self, vector_D: Tensor) -> Tensor:
        """fp64 [J]: a vector's dot products with the basis."""
        none_J = torch.zeros(self.count, dtype=torch.float64, device=self._device)
        return self._sweep(self._parts(vector_D), none_J)[0]

    def combine(self, weights_KJ: Tensor) -> Tensor:
        """[K, D]: linear combinations of the basis vectors, in full on every rank."""
        weights_KJ = weights_KJ.to(self._device, torch.float64)
        local_WK = []
        for block_JW in self._blocks_JW:
            out_KW = torch.zeros(
                (len(weights_KJ), block_JW.shape[1]), dtype=self.dtype, device=self._device
            )
            for columns, chunk_JC in self._chunks(block_JW):
                out_KW[:, columns] = (weights_KJ @ chunk_JC).to(self.dtype)
            local_WK.append(out_KW.T)
        return self._gather(local_WK, (len(weights_KJ),)).T.contiguous()

    def gram(self) -> Tensor:
        """fp64 [J, J]: all dot products of the basis vectors."""
        shape = (len(self._blocks_JW), self.count * self.count)
        parts_SX = torch.zeros(shape, dtype=torch.float64, device=self._device)
        for part_X, block_JW in zip(parts_SX, self._blocks_JW, strict=True):
            for _, chunk_JC in self._chunks(block_JW):
                part_X += (chunk_JC @ chunk_JC.T).view(-1)
        return self.collective.ordered_sum(parts_SX).view(self.count, self.count)

    def _parts(self, vector_D: Tensor) -> list[Tensor]:
        """fp64 copies of a full vector's slices, in the order of the blocks."""
        return [
            vector_D[start:stop].to(self._device, torch.float64, copy=True)
            for start, stop in self._spans
        ]

    def _sweep(self, parts_W: list[Tensor], remove_J: Tensor) -> tuple[Tensor, float]:
        """Subtract `remove_J` times the basis in place; then fp64 dots [J] and squared norm."""
        shape = (len(parts_W), self.count + 1)
        sums_SX = torch.zeros(shape, dtype=torch.float64, device=self._device)
        for sums_X, part_W, block_JW in zip(sums_SX, parts_W, self._blocks_JW, strict=True):
            for columns, chunk_JC in self._chunks(block_JW):
                part_C = part_W[columns]
                part_C -= remove_J @ chunk_JC
                sums_X[: self.count] += chunk_JC @ part_C
            sums_X[self.count] = part_W @ part_W
        total_X = self.collective.ordered_sum(sums_SX)
        return total_X[: self.count], float(total_X[self.count])

    def _chunks(self, block_JW: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Column chunks of the filled rows, each converted once to fp64 scratch."""
        if not self.count:
            return
        width = max(64, len(self._scratch) // self.count // 64 * 64)
        for start in range(0, block_JW.shape[1], width):
            columns = slice(start, min(start + width, block_JW.shape[1]))
            entries = self.count * (columns.stop - start)
            chunk_JC = self._scratch[:entries].view(self.count, -1)
            chunk_JC.copy_(block_JW[: self.count, columns])
            yield columns, chunk_JC

    def _gather(self, local: list[Tensor], shape: tuple[int, ...] = ()) -> Tensor:
        """All ranks' slices in order, in full; `shape` is that of a row, for ranks without one."""
        none = torch.empty((0, *shape), dtype=self.dtype, device=self._device)
        return self.collective.all_gather(torch.cat([none, *local]))

"""What the ranks of a gang say to each other: a few verbs over torch.distributed.

Numerics receive one of these and never see a process group. A gang of one is the same code.
"""

import os
import socket
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor

from distinf.runtime.activity import COLLECTIVE, HERE

LOOPBACK = "127.0.0.1"


class Single:
    """The collective of one rank: the reference."""

    rank = 0
    size = 1

    def owned(self, shards: int) -> range:
        """This rank's contiguous logical shards."""
        return range(shards * self.rank // self.size, shards * (self.rank + 1) // self.size)

    def ordered_sum(self, parts_SX: Tensor) -> Tensor:
        """Sum over all ranks' shards, fp64, in shard order: bitwise the same at any size."""
        return _sum_in_order(parts_SX)

    def all_reduce(self, x: Tensor) -> Tensor:
        return x.clone()

    def all_gather(self, x: Tensor) -> Tensor:
        return x.clone()

    def barrier(self) -> None:
        return None


def _sum_in_order(parts_SX: Tensor) -> Tensor:
    total = torch.zeros(parts_SX.shape[1:], dtype=torch.float64, device=parts_SX.device)
    for part in parts_SX:
        total += part
    return total


class ProcessGroup(Single):
    """The default torch.distributed group of this process: gloo on CPU, NCCL on CUDA."""

    def __init__(self, rank: int, size: int):
        self.rank = rank
        self.size = size

    def all_gather(self, x: Tensor) -> Tensor:
        import torch.distributed as dist

        lengths = torch.zeros(self.size, dtype=torch.int64, device=x.device)
        lengths[self.rank] = len(x)
        with HERE.doing(COLLECTIVE):
            dist.all_reduce(lengths)
            longest = int(lengths.max())
            padded = x.new_zeros((longest, *x.shape[1:]))
            padded[: len(x)] = x
            gathered = [torch.empty_like(padded) for _ in range(self.size)]
            dist.all_gather(gathered, padded)
        return torch.cat([g[: int(n)] for g, n in zip(gathered, lengths, strict=True)])

    def ordered_sum(self, parts_SX: Tensor) -> Tensor:
        return _sum_in_order(self.all_gather(parts_SX))

    def all_reduce(self, x: Tensor) -> Tensor:
        import torch.distributed as dist

        total = x.clone()
        with HERE.doing(COLLECTIVE):
            dist.all_reduce(total)
        return total

    def barrier(self) -> None:
        import torch.distributed as dist

        with HERE.doing(COLLECTIVE):
            dist.barrier()


def join_group(rank: int, size: int, address: str, *, backend: str, timeout_s: float) -> Any:
    """Form the default process group at tcp://address -> its collective; Single for size 1."""
    if size == 1:
        return Single()
    import torch.distributed as dist

    host, _, port = address.rpartition(":")
    if host == LOOPBACK:
        _stay_here()
    wait = timedelta(seconds=timeout_s)
    open_at = _listening(host, int(port)) if rank == 0 else None
    store = dist.TCPStore(
        host, int(port), size, is_master=rank == 0, timeout=wait, master_listen_fd=open_at
    )
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=wait)
    return ProcessGroup(rank, size)


def _listening(host: str, port: int) -> int:
    """A socket that the ranks meet at, open at this address; torch's own is at every address."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family).detach()


def _stay_here() -> None:
    """Let gloo and NCCL, too, talk over the loopback interface, unless told of another."""
    names = [name for _, name in socket.if_nameindex() if name in ("lo", "lo0")]
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if names else ():
        os.environ.setdefault(variable, names[0])


def leave_group() -> None:
    """Leave the default process group if there is one."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()

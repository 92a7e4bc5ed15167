"""The collective of a gang of processes, over torch.distributed.

Numerics receive a collective and never see a process group.
"""

import os
import socket
from collections.abc import Collection, Sequence
from datetime import timedelta

import torch
from torch import Tensor, nn

from distinf.collective import Collective
from distinf.errors import InputError
from distinf.runtime.activity import COLLECTIVE, HERE

LOOPBACK = "127.0.0.1"


class ProcessGroup(Collective):
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

    def spread(
        self, whole: nn.Module, layers: Sequence[nn.Module], own: Collection[nn.Parameter],
        device: torch.device,
    ) -> None:  # fmt: skip
        import torch.distributed as dist
        from torch.distributed.device_mesh import DeviceMesh
        from torch.distributed.fsdp import fully_shard

        if device.type == "cuda" and dist.get_backend() == "gloo":
            raise InputError(
                "runtime.num_gpus: parts of a model are gathered between whole GPUs; set it to 1"
            )
        mesh = DeviceMesh.from_group(dist.distributed_c10d._get_default_group(), device.type)
        for layer in layers:
            kept = {*own} & {*layer.parameters()}
            fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=kept)
        # It has none to spread: what is gathered for one layer makes room for the next one's.
        fully_shard(whole, mesh=mesh, ignored_params={*whole.parameters()})


def join_group(rank: int, size: int, address: str, *, backend: str, timeout_s: float) -> Collective:
    """Form the default process group at tcp://address -> its collective."""
    if size == 1:
        return Collective()
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

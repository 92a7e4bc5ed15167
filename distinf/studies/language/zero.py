"""A model that a gang trains together by DeepSpeed: its steps, and all of its state, gathered.

Rajbhandari et al., ZeRO: Memory Optimizations Toward Training Trillion Parameter Models (2020).
Ranks hold parts of the optimizer's state, from stage 2 on of the gradients, from stage 3 on of the
parameters. State is gathered and restored tensor by tensor. There is no curvature to be had from
such a model (a second derivative fails): what follows a training loads its weights into a plain
one. The one module that imports deepspeed.
"""

import logging
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from distinf.collective import Collective
from distinf.errors import InputError
from distinf.gram.deepspeed import Config, for_engine, offloaded, refuse_missing
from distinf.gram.settings import TrainSettings

MOMENTS = ("exp_avg", "exp_avg_sq")


class Zero:
    """`model` (an nn.Module on the CPU, or its device), trained by AdamW on all ranks at once.

    Every rank calls the same methods in the same order, in its `environment`. `engine` is called
    as the model is.
    """

    def __init__(
        self, model: nn.Module, undecayed: Collection[str], recipe: TrainSettings,
        device: torch.device, collective: Collective,
    ) -> None:  # fmt: skip
        """undecayed: names of parameters without weight decay."""
        deepspeed = _imported(device)
        assert isinstance(recipe.deepspeed, Mapping)  # see TrainSettings
        _join(deepspeed, collective, device)
        named = {n: p for n, p in model.named_parameters() if p.requires_grad}
        groups = [
            {"params": [p for n, p in named.items() if n not in undecayed],
             "weight_decay": recipe.weight_decay},
            {"params": [p for n, p in named.items() if n in undecayed], "weight_decay": 0.0},
        ]  # fmt: skip
        optimizer = _adamw(deepspeed, recipe.deepspeed)(
            [group for group in groups if group["params"]], lr=recipe.lr
        )
        self.engine, *_ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            model_parameters=[*named.values()],
            config=for_engine(recipe),
            dist_init_required=False,
        )
        self.trained = {n: p for n, p in self.engine.module.named_parameters() if n in named}

    def step(self, lr: float, pieces: Sequence[Any], loss: Callable[[Any], Tensor]) -> None:
        """Down the gradient of the mean over ranks of the sum over `pieces` of their loss, a
        scalar; every rank has as many."""
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        for place, piece in enumerate(pieces):
            self.engine.set_gradient_accumulation_boundary(place == len(pieces) - 1)
            self.engine.backward(loss(piece))
        self.engine.step()

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Each trained parameter whole, fp32 on the CPU; every rank must go through all of them."""
        from deepspeed.utils import safe_get_full_fp32_param

        for name, parameter in self.trained.items():
            yield name, safe_get_full_fp32_param(parameter).detach().to("cpu", copy=True)

    def state(self) -> Iterator[tuple[str, Tensor]]:
        """`weights` and the optimizer's moments, as "<name>" and "<moment>/<name>"."""
        from deepspeed.utils import safe_get_full_optimizer_state

        yield from self.weights()
        self._link()
        for moment in MOMENTS:
            for name, parameter in self.trained.items():
                found = safe_get_full_optimizer_state(parameter, moment)
                yield f"{moment}/{name}", found.detach().to("cpu", copy=True)

    def restore(
        self, state: Iterable[tuple[str, Tensor]], steps: int, loss: Callable[[], Tensor]
    ) -> None:
        """What `state` gave after so many steps, on every rank. The model must have been made with
        these weights. loss: of any row; a step at a rate of 0 goes down none of it, as AdamW has no
        moments before its first."""
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        self.step(0.0, [None], lambda _: loss() * 0.0)
        self._link()
        device = next(iter(self.trained.values())).device
        for name, values in state:
            moment, _, own = name.rpartition("/")
            if moment:
                safe_set_full_optimizer_state(self.trained[own], values.to(device), moment)
            else:
                safe_set_full_fp32_param(self.trained[own], values.to(device))
        for each in self.engine.basic_optimizer.state.values():
            counted = each["step"]
            each["step"] = counted.fill_(steps) if isinstance(counted, Tensor) else steps

    def _link(self) -> None:
        """Stages 1 and 2 link the moments to the parameters in the first step of the first group,
        when other groups have none yet (DeepSpeed 0.19): they could not be gathered."""
        zero = self.engine.optimizer
        if hasattr(zero, "_lazy_init_hp_params_optimizer_state"):
            zero._hp_optimizer_states_linked = False
            zero._lazy_init_hp_params_optimizer_state()

    def close(self) -> None:
        """Give back what the engine holds; the gang may train another model."""
        self.engine.destroy()


def _adamw(deepspeed: Any, config: Config) -> Any:
    """DeepSpeed's for a state that is kept on the host, unless its file says otherwise."""
    if not offloaded(config, "offload_optimizer") or not config.get(
        "zero_force_ds_cpu_optimizer", True
    ):
        return torch.optim.AdamW
    from deepspeed.ops.op_builder import CPUAdamBuilder

    try:
        CPUAdamBuilder().load(verbose=False)
    except Exception as error:  # of a compiler, a missing ninja, a wrong CUDA
        reason = (str(error).strip().splitlines() or [""])[0][:160]
        raise InputError(
            f"train.deepspeed: offload_optimizer needs DeepSpeed's CPUAdam, which does not build "
            f"here ({type(error).__name__}: {reason}); install a C++ compiler and ninja, leave the "
            'offload out, or set "zero_force_ds_cpu_optimizer": false'
        ) from None
    return deepspeed.ops.adam.DeepSpeedCPUAdam


def _imported(device: torch.device) -> Any:
    """DeepSpeed, quietly, for this kind of device."""
    refuse_missing()
    os.environ.setdefault("DS_ACCELERATOR", device.type)
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    return deepspeed


def _join(deepspeed: Any, collective: Collective, device: torch.device) -> None:
    """DeepSpeed in this gang's process group, and in none that a gang before it had here."""
    if collective.size == 1 and not dist.is_initialized():
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, store=dist.HashStore(), rank=0, world_size=1)
    if _joined and _joined[-1] is not dist.group.WORLD:
        deepspeed.utils.groups._release_process_group_references(group=None)
        deepspeed.comm.comm.cdb = None
    _joined[:] = [dist.group.WORLD]
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False)


_joined: list[Any] = []  # the process group that DeepSpeed knows


@contextmanager
def environment(collective: Collective) -> Iterator[None]:
    """What a `Zero` reads there as long as it is used, and others would misread later; a worker
    sees one GPU."""
    own = {"RANK": collective.rank, "WORLD_SIZE": collective.size, "LOCAL_RANK": 0}
    before = {name: os.environ.get(name) for name in own}
    os.environ.update({name: str(value) for name, value in own.items()})
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value

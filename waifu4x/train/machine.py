"""Where a training computes: the device, the number format, and the processes that share it."""

from __future__ import annotations

import atexit
import inspect
import logging
import os
from typing import Any, Literal

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.slurm import SLURMEnvironment
from lightning_fabric.plugins.precision.amp import MixedPrecision
from lightning_fabric.plugins.precision.precision import Precision
from lightning_fabric.strategies.ddp import DDPStrategy
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

_MIXED: dict[torch.dtype, Literal["16-mixed", "bf16-mixed"]] = {
    torch.float16: "16-mixed",
    torch.bfloat16: "bf16-mixed",
}


class Autocast(MixedPrecision):
    """Autocast, and a gradient scaler for fp16, with pictures and residual sums in float32.

    Fabric's own rounds a network's input to the 8 bits of a bfloat16's mantissa, and with it what
    VDSR adds its residual to.
    """

    def convert_input(self, data: Any) -> Any:
        return data


def open_fabric(device: torch.device, dtype: torch.dtype) -> Fabric:
    """A launched Fabric: float32 weights, convolutions in `dtype`, DDP where there are processes.

    Processes are those that torchrun or Slurm's srun started; none are started here.
    """
    # It says at every start which precision was asked for, and at which address processes meet.
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    local, nodes = processes()
    is_shared = local * nodes > 1
    picked: int | list[int] = local
    if device.type == "cuda" and not is_shared:
        picked = [device.index or 0]
    precision = Precision() if dtype == torch.float32 else Autocast(_MIXED[dtype], device.type)
    fabric = Fabric(
        accelerator=device.type,
        devices=picked,
        num_nodes=nodes,
        strategy=_shared() if is_shared else "auto",
        plugins=[precision],
    )
    if is_shared:
        # Not before: the next run of the same command finds its processes connected.
        atexit.register(_leave)
    fabric.launch()
    return fabric


def _shared() -> DDPStrategy:
    """Batch statistics stay each process's own.

    Sending them at every forward pass would change buffers between a discriminator's two passes.
    """
    # torch 2.13 warns of the name that older ones know it by.
    known = inspect.signature(DistributedDataParallel).parameters
    name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {name: False}
    return DDPStrategy(**options)


def processes() -> tuple[int, int]:
    """How many processes there are on each machine, and how many machines; (1, 1) when alone."""
    if "LOCAL_WORLD_SIZE" in os.environ and "WORLD_SIZE" in os.environ:  # torchrun's
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        return local, int(os.environ["WORLD_SIZE"]) // local
    if SLURMEnvironment.detect():
        nodes = int(os.environ.get("SLURM_NNODES", "1"))
        return int(os.environ.get("SLURM_NTASKS", "1")) // nodes, nodes
    return 1, 1


def scaler_of(fabric: Fabric) -> torch.amp.GradScaler | None:
    """What keeps gradients of fp16 from vanishing; None for other formats."""
    return getattr(fabric.strategy.precision, "scaler", None)


def largest(fabric: Fabric, values: list[float]) -> list[float]:
    """The largest of each value over all processes."""
    if fabric.world_size == 1:
        return values
    told = torch.tensor(values, dtype=torch.float64, device=fabric.device)
    return _reduced(fabric, told, "max").tolist()


def mean(fabric: Fabric, value: Tensor) -> float:
    """A scalar's mean over all processes."""
    return float(value if fabric.world_size == 1 else _reduced(fabric, value.clone(), "mean"))


def _reduced(fabric: Fabric, tensor: Tensor, how: str) -> Tensor:
    reduced = fabric.all_reduce(tensor, reduce_op=how)
    assert isinstance(reduced, Tensor)
    return reduced


def _leave() -> None:
    """Say goodbye to the other processes, as torch asks before a process ends."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()

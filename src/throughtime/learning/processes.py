"""Devices, precision, and one process among several."""

from __future__ import annotations

import atexit
import logging
import os
from typing import TYPE_CHECKING, Any, cast

import torch

from throughtime.errors import UserError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

    from throughtime.learning.training import Training


def first_process() -> bool:
    """Whether this is the process that writes and speaks: the only one, or the first of those torchrun started."""
    return os.environ.get("RANK", "0") == "0"


def make_fabric(training: Training) -> Fabric:
    """The device, the precision and, under torchrun, the processes.

    Raises:
        UserError: the device is absent, or cannot compute in the precision asked for.
    """
    from lightning_fabric import Fabric

    device = training.device
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no CUDA device here, or torch cannot use it; train with --device cpu")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if training.precision == "16-mixed" and device == "cpu":
        raise UserError("precision 16-mixed needs a GPU; on this CPU use 32-true")
    if training.precision == "bf16-mixed" and not _has_bfloat16(device):
        raise UserError(f"this {device.upper()} does not compute in bfloat16; use precision 32-true")
    several = "LOCAL_WORLD_SIZE" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1
    logging.getLogger("lightning_fabric").setLevel(logging.WARNING)
    fabric = Fabric(
        accelerator=device,
        devices=int(os.environ["LOCAL_WORLD_SIZE"]) if several else 1,
        num_nodes=int(os.environ.get("GROUP_WORLD_SIZE", "1")) if several else 1,
        strategy="ddp" if several else "auto",
        precision=cast(Any, training.precision),
    )
    fabric.launch()
    if several:
        atexit.unregister(_part)
        atexit.register(_part)  # not before: a second run in these processes goes on with the same group
    return fabric


def _part() -> None:
    """Ends the group in order; its threads would otherwise bring a process that exits down."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _has_bfloat16(device: str) -> bool:
    if device == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())

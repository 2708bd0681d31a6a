"""The processes of a training: what they must agree on, and the error when one of them is gone."""

import re
from typing import Any, List, Optional, Tuple

import torch
from torch import nn

from i2srf_kd.system.errors import UserError

# What gloo and NCCL say when a peer is gone.
_LOST_PEER = (
    r"(?i)connection (closed|reset) by peer|remote process exited|broken pipe|socket closed|store.*(closed|broken)"
)


class Ranks:
    """This process among those of the training; with one process everything is local.

    Args:
        distributed: the processes have met (``torch.distributed`` is set up).
        rank: of this process.
        world_size: number of processes.
        device: where they exchange tensors.
    """

    def __init__(self, distributed: bool = False, rank: int = 0, world_size: int = 1, device: str = "cpu"):
        self.distributed = distributed
        self.rank = rank
        self.world_size = world_size
        self.device = device

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def any(self, *flags: bool) -> Tuple[bool, ...]:
        """For each flag, whether it is set on any rank."""
        if not self.distributed:
            return flags
        tensor = torch.tensor([int(flag) for flag in flags], device=self.device)
        torch.distributed.all_reduce(tensor, torch.distributed.ReduceOp.MAX)
        return tuple(bool(flag) for flag in tensor.tolist())

    def gather(self, value: Any) -> List[Any]:
        """Values of all ranks, on every rank."""
        if not self.distributed:
            return [value]
        values: List[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(values, value)
        return values

    def broadcast(self, value: Any) -> Any:
        """The first rank's value, on every rank."""
        if not self.distributed:
            return value
        holder = [value]
        torch.distributed.broadcast_object_list(holder, src=0)
        return holder[0]

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.distributed:
            torch.distributed.barrier()

    def data_parallel(
        self, model: nn.Module, unused_parameters: bool, bucket_view: bool, comm_hook: Optional[str]
    ) -> nn.Module:
        """The model whose gradients are averaged over the ranks.

        Args:
            model: of this rank.
            unused_parameters: some parameters may take no part in a step.
            bucket_view: gradients lie in the memory that is exchanged.
            comm_hook: name of one of torch's default hooks of the exchange.
        """
        if not self.distributed:
            return model
        devices = [torch.cuda.current_device()] if self.device == "cuda" else None
        wrapped = nn.parallel.DistributedDataParallel(
            model,
            device_ids=devices,
            output_device=devices[0] if devices else None,
            find_unused_parameters=unused_parameters,
            gradient_as_bucket_view=bucket_view,
        )
        if comm_hook is not None:
            from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

            wrapped.register_comm_hook(None, getattr(default_hooks, comm_hook))
        return wrapped


def lost_process(error: RuntimeError, world_size: int) -> Optional[UserError]:
    """What to tell when another process of the training has died; None for any other error.

    Args:
        error: raised by torch.
        world_size: number of ranks.
    """
    text = str(error)
    if "DataLoader worker" in text:
        return UserError(
            f"a process that reads the data has died ({text.splitlines()[0]}), perhaps for lack of memory; run the "
            "same command again to go on from the last saved state"
        )
    if world_size > 1 and re.search(_LOST_PEER, text):
        return UserError(
            "another process of this training has died: look for its error above this line or in its log; run the same "
            "command again to go on from the last saved state"
        )
    return None

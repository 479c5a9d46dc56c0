"""The processes of one training: alone, or several that share every batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, reduce

T = TypeVar("T")
# Others wait while the main process makes what is not shared: hours for a decoder and a student on a slow machine.
PATIENCE = timedelta(days=7)


class Team:
    """One process alone: nothing is sent, and every value is what it would be without a team.

    Attributes:
        rank: number of this process; 0 is the main one, which alone writes files and reports.
        size: number of processes.
    """

    rank, size = 0, 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and reports."""
        return self.rank == 0

    def own(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """This process's share of a batch: every `size`-th row of each tensor."""
        return tensors

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        """The sum of a tensor over all processes; gradients reach this process's part alone, see `reduce_gradients`."""
        return value

    def reduce_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        """Adds up the gradients of all processes, in place."""

    def from_main(self, make: Callable[[], T]) -> T:
        """What the main process makes; the others wait for it."""
        return make()

    def copy_from_main(self, tensors: Sequence[torch.Tensor]) -> None:
        """Overwrites tensors by those of the main process."""

    def wait(self) -> None:
        """Waits until all have come here."""


class Processes(Team):
    """Several processes, as `accelerate launch` or `torchrun` starts them; all must be able to read one run folder.

    Args:
        state: of accelerate.
    """

    def __init__(self, state: PartialState) -> None:
        self._state = state
        self.rank, self.size = state.process_index, state.num_processes

    def own(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(tensor[self.rank :: self.size] for tensor in tensors)

    def sum(self, value: torch.Tensor) -> torch.Tensor:
        return _Sum.apply(value)  # type: ignore[no-untyped-call]

    def reduce_gradients(self, parameters: Sequence[torch.nn.Parameter]) -> None:
        given = torch.tensor([parameter.grad is not None for parameter in parameters], dtype=torch.float32, device=parameters[0].device)
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten().float() for p in parameters])
        # One message: which parameters have a gradient anywhere, and the gradients.
        summed = reduce(torch.cat([given, flat]), "sum")
        is_given, start = summed[: len(given)].tolist(), len(given)
        for parameter, known in zip(parameters, is_given, strict=True):
            part = summed[start : start + parameter.numel()].view_as(parameter).to(parameter.dtype)
            parameter.grad = part if known else None  # what no process has must not decay either
            start += parameter.numel()

    def from_main(self, make: Callable[[], T]) -> T:
        made: list[Any] = [make() if self.is_main else None]
        broadcast_object_list(made, from_process=0)
        return made[0]

    def copy_from_main(self, tensors: Sequence[torch.Tensor]) -> None:
        for tensor in tensors:
            torch.distributed.broadcast(tensor.data, src=0)

    def wait(self) -> None:
        self._state.wait_for_everyone()


class _Sum(torch.autograd.Function):
    """The sum over all processes; backward hands the gradient through to this process's part.

    Every process then holds the same loss, computed from the sums, and the gradient of its own share of the batch. The sum of the gradients
    over the processes is the gradient of the whole batch, also where the loss is no mean (a ratio of sums).
    """

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        return reduce(value, "sum")

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0]


def join_team(device: str) -> tuple[Team, str]:
    """The team that this process was started in, and the device that it trains on: on several GPUs each process has its own.

    Args:
        device: torch device asked for.
    """
    state = PartialState(cpu=device == "cpu", timeout=PATIENCE)
    if state.num_processes == 1:
        return Team(), device
    return Processes(state), str(state.device) if device != "cpu" else device

"""Counts what really passes through a network, apart from the counter that the code keeps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def batch_sizes(network: torch.nn.Module) -> Iterator[list[int]]:
    """Batch size of every forward call of a network, by a forward hook."""
    sizes: list[int] = []

    def note(_module: torch.nn.Module, inputs: tuple[Any, ...], _output: Any) -> None:
        sizes.append(int(inputs[0].shape[0]))

    hook = network.register_forward_hook(note)
    try:
        yield sizes
    finally:
        hook.remove()


@contextmanager
def out_of_memory_above(network: torch.nn.Module, images: int) -> Iterator[list[int]]:
    """Makes a network run out of memory in calls of more images; gives the batch size of every call that did."""
    refused: list[int] = []

    def refuse(_module: torch.nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs[0].shape[0] > images:
            refused.append(int(inputs[0].shape[0]))
            raise torch.OutOfMemoryError("CUDA out of memory")

    hook = network.register_forward_pre_hook(refuse)
    try:
        yield refused
    finally:
        hook.remove()


@contextmanager
def timesteps_seen(unet: torch.nn.Module) -> Iterator[list[list[int]]]:
    """Timesteps of every image of every forward call of a U-Net, by a forward hook."""
    seen: list[list[int]] = []

    def note(_module: torch.nn.Module, inputs: tuple[Any, ...], _output: Any) -> None:
        seen.append(inputs[1].tolist())

    hook = unet.register_forward_hook(note)
    try:
        yield seen
    finally:
        hook.remove()

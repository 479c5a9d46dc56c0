"""Checkpoints that resume exactly: networks, averages, optimizer and random state, as safetensors, written atomically."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

CHECKPOINT_SUFFIX = ".checkpoint.safetensors"


class CheckpointError(ValueError):
    """A checkpoint does not belong to the run that wants to resume from it, or cannot be read."""


def save_checkpoint(path: Path, tensors: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
    """Writes tensors and a JSON state to one file; a reader sees the old or the new file, never a part.

    Raises:
        OSError: the disk is full or the folder not writable; the previous checkpoint stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        contiguous = {name: tensor.detach().contiguous().clone() for name, tensor in tensors.items()}
        save_file(contiguous, temporary, metadata={"state": json.dumps(state)})
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Reads what `save_checkpoint` wrote.

    Raises:
        CheckpointError: the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            state = json.loads(file.metadata()["state"])
            return {name: file.get_tensor(name) for name in file.keys()}, state  # noqa: SIM118
    except Exception as error:
        raise CheckpointError(f"{path.name} cannot be read ({error}): delete it to start over") from error


def check_run(path: Path, run_id: str) -> None:
    """Refuses a checkpoint of another run, so that nothing of it is read or overwritten; a missing one is no error.

    Raises:
        CheckpointError: the file is damaged, or was written with other settings or tags.
    """
    if path.exists() and load_checkpoint(path)[1].get("run_id") != run_id:
        raise CheckpointError(f"{path} was written with other settings or tags: choose another run folder, or delete it")


def pack_optimizer(optimizer: torch.optim.Optimizer, prefix: str) -> dict[str, torch.Tensor]:
    """The optimizer's per-parameter tensors under flat names."""
    state = optimizer.state_dict()["state"]
    return {f"{prefix}.{index}.{key}": torch.as_tensor(value) for index, entry in state.items() for key, value in entry.items()}


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor], prefix: str) -> None:
    """Puts back what `pack_optimizer` gave."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(f"{prefix}."):
            index, key = name.removeprefix(f"{prefix}.").split(".", 1)
            state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})

"""What a part of the benchmark is: a module with `measure` and `describe`."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Options:
    """What every part is given.

    Attributes:
        data: folder that holds lgg/ and dicom/.
        model: model folder.
        run: folder for what is written on the way.
        device: where networks run.
    """

    data: Path
    model: Path
    run: Path
    device: torch.device


class Part(Protocol):
    """A module of this package."""

    def measure(self, options: Options) -> dict[str, Any]:
        """Measures; what it returns is kept as JSON."""

    def describe(self, result: dict[str, Any]) -> list[str]:
        """Lines of Markdown, without a heading."""


def memory_mib(process: int, field: str) -> float:
    """Memory of a process by a field of its status, such as `VmHWM` (the most so far) or `VmRSS` (now); NaN where the system has none.

    The maximum that `getrusage` tells is no use for this: a process begins with that of its parent.
    """
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return float("nan")
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{field}:"))


def machine() -> str:
    """Processor, cores that may be used, threads, and versions: a figure is true there."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    accelerator = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{platform.machine()}, {cores} cores, {torch.get_num_threads()} threads{accelerator}, torch {torch.__version__}"

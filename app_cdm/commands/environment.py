"""The one module of this package that reads the environment: who started this process beside which others, and the login of a PACS."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import psutil

from app_cdm.cohort.holder import this_process

USER = "MONAI_LABEL_DICOMWEB_USERNAME"
PASSWORD = "MONAI_LABEL_DICOMWEB_PASSWORD"
# accelerate launch and torchrun, srun, mpirun.
RANK = ("RANK", "SLURM_PROCID", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
SIZE = ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
LOCAL_RANK = ("LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID")
LOCAL_SIZE = ("LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")  # srun binds its tasks to cores by itself


@dataclass(frozen=True)
class Launch:
    """How this process was started.

    Attributes:
        rank: its number among those that were started together.
        size: how many those are.
        local_rank: its number on this machine.
        local_size: how many are on this machine.
        threads: that the environment allows each; None where it does not say.
        identity: equal for all of one launch, also for those that the launcher starts again; empty for a process by itself.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    threads: int | None = None
    identity: str = ""


def read_launch(environment: Mapping[str, str] | None = None) -> Launch:
    """How this process was started, as launchers say in the environment; no process group is made.

    Raises:
        ValueError: what they say makes no sense.
    """
    given = os.environ if environment is None else environment
    size = _number(given, SIZE, 1)
    rank = _number(given, RANK, 0) if size > 1 else 0
    if not 0 <= rank < size:
        raise ValueError(f"{RANK[0]} = {rank} of {SIZE[0]} = {size}: must be smaller")
    threads = _number(given, ("OMP_NUM_THREADS",), 0) or None
    identity = _identity(given) if size > 1 else ""
    return Launch(rank, size, _number(given, LOCAL_RANK, 0), _number(given, LOCAL_SIZE, 1), threads, identity)


def read_login(user: str | None, environment: Mapping[str, str] | None = None) -> tuple[str, str] | None:
    """Name and password for a DICOMweb server; None where neither is given.

    Args:
        user: name from the command line, before that from the environment.
        environment: in place of the process's.

    Raises:
        ValueError: one of them is given without the other.
    """
    given = os.environ if environment is None else environment
    name, password = user or given.get(USER), given.get(PASSWORD)
    if bool(name) != bool(password):
        raise ValueError(f"--dicomweb-user (or {USER}) and the environment variable {PASSWORD} go together: give both or none")
    return (name, password) if name and password else None


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _number(given: Mapping[str, str], names: tuple[str, ...], default: int) -> int:
    for name in names:
        if given.get(name):
            try:
                return int(given[name].partition(",")[0])
            except ValueError as error:
                raise ValueError(f"{name} = {given[name]!r} in the environment: must be a number") from error
    return default


def _identity(given: Mapping[str, str]) -> str:
    elastic = given.get("TORCHELASTIC_RUN_ID", "")
    if elastic not in ("", "none"):  # what torchrun says where it was given no name
        return f"torchrun {elastic}"
    if given.get("SLURM_STEP_ID"):
        return f"slurm {given.get('SLURM_JOB_ID')}.{given['SLURM_STEP_ID']}"
    me, launcher = this_process(), psutil.Process().parent()
    return f"{me.host} {me.space} {launcher.pid} {int(launcher.create_time())}" if launcher else ""

"""Who holds a claim: a process that others can tell from every other one, also after it has died."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path

import psutil

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
PROCESS_NAMES = Path("/proc/self/ns/pid")
CLOCK_TOLERANCE_S = 5.0  # of the time at which a process started, which moves a little when clocks are set


@dataclass(frozen=True)
class Holder:
    """A process.

    Attributes:
        host: name of its machine.
        space: boot and process namespace in which its pid means something; empty where the system does not say.
        pid: its process id.
        started: when it started, seconds since the epoch; a pid is used again, at another time.
        token: what it draws to know its own claims again.
    """

    host: str
    space: str
    pid: int
    started: float
    token: str = ""

    @classmethod
    def read(cls, text: str) -> Holder | None:
        """What `write` wrote; None where the writer was stopped before it had."""
        try:
            values = json.loads(text)
            return cls(**{field.name: values[field.name] for field in fields(cls)})
        except (ValueError, KeyError, TypeError):
            return None

    def write(self) -> str:
        """As JSON."""
        return json.dumps(asdict(self))

    def is_known_dead(self) -> bool:
        """Whether it ran where this process can look, and does not any more; False of other machines and containers."""
        here = this_process()
        return bool(self.space) and (self.host, self.space) == (here.host, here.space) and not is_running(self.pid, self.started)


def is_running(pid: int, started: float) -> bool:
    """Whether a process of this machine runs; one that ended and was not asked for its exit code does not."""
    try:
        process = psutil.Process(pid)
        return bool(process.status() != psutil.STATUS_ZOMBIE and abs(process.create_time() - started) < CLOCK_TOLERANCE_S)
    except psutil.NoSuchProcess:
        return False


def this_process() -> Holder:
    """This process."""
    return _describe(os.getpid())


@cache
def _describe(pid: int) -> Holder:
    space = f"{BOOT_ID.read_text().strip()}/{os.readlink(PROCESS_NAMES)}" if BOOT_ID.exists() and PROCESS_NAMES.exists() else ""
    return Holder(platform.node(), space, pid, psutil.Process(pid).create_time())

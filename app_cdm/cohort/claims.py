"""Claims on cases: files in a folder that all processes see, of which each can be made only once."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
import time
import uuid
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

from app_cdm.cohort.holder import Holder, this_process

STALE_S = 120.0
MAX_ATTEMPTS = 3
WAITING, JOINED = ".waiting", ".process"  # of the file that says that a process lives
BEATS = 6  # of a claim, in the time after which it is stale
LABEL_LENGTH = 80


class Refusal(Enum):
    """Why a case cannot be claimed.

    Attributes:
        HELD: a living process holds it, or has just let go of it.
        EXHAUSTED: as many processes as may died over it.
    """

    HELD = "held"
    EXHAUSTED = "exhausted"


@dataclass(frozen=True)
class Claim:
    """A case that this process holds.

    Attributes:
        name: of the case.
        attempt: 1 for the first process that holds it, one more after each that died.
        path: the claim's file.
    """

    name: str
    attempt: int
    path: Path


class Claims:
    """The claims in one folder, as one process sees them.

    A claim is a file, made so that only one process can have made it, and touched by its holder `BEATS` times in `stale_s`. The claim of a
    process that died is not removed but followed by a file of the next number, which again only one can make: number and attempt are one.
    Times are those of the file system, by a file that this process touches itself; clocks of machines may differ.

    Args:
        folder: of the claims; made if absent.
        stale_s: seconds without a touch after which a holder counts as dead. A holder on this machine whose process is gone counts as
            dead at once.

    Raises:
        OSError: the folder cannot be made or written.
        ValueError: `stale_s` is not positive.
    """

    def __init__(self, folder: Path, stale_s: float = STALE_S) -> None:
        if stale_s <= 0:
            raise ValueError(f"stale_s = {stale_s}: must be positive")
        self.folder, self.stale_s = folder, stale_s
        self._me = replace(this_process(), token=uuid.uuid4().hex)
        self._presence = folder / f"{self._me.token}{WAITING}"
        self._held: dict[str, Claim] = {}
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._beat, name="claims", daemon=True)
        self._clock_offset = 0.0

    def __enter__(self) -> Claims:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._make(self._presence)
        except OSError as error:
            raise OSError(f"cannot write to {self.folder.parent}: {error.strerror or error}") from error
        self._touch()
        self._heart.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._ended.set()
        self._heart.join()
        for claim in list(self._held.values()):
            self.release(claim)
        self._presence.unlink(missing_ok=True)

    def take(self, name: str, attempts: int | None = MAX_ATTEMPTS) -> Claim | Refusal:
        """Claims a case.

        Args:
            name: of the case.
            attempts: how many processes may die over it; None for any number.

        Raises:
            OSError: the folder cannot be written.
        """
        attempt = 0
        while attempts is None or attempt < attempts:
            attempt += 1
            claim = Claim(name, attempt, self._path(name, attempt))
            if self._make(claim.path):
                with self._lock:
                    self._held[name] = claim
                return claim
            if self._look(claim.path) in (True, None):
                return Refusal.HELD
        return Refusal.EXHAUSTED

    def owns(self, claim: Claim) -> bool:
        """Whether a claim is still this process's own: nobody took it for dead."""
        if self._path(claim.name, claim.attempt + 1).exists():
            return False
        holder = self._read(claim.path)
        return holder is not None and holder[0] is not None and holder[0].token == self._me.token

    def release(self, claim: Claim) -> None:
        """Lets go of a case that is not settled; that this process had it is no attempt that died."""
        with self._lock:
            self._held.pop(claim.name, None)
        if self.owns(claim):
            claim.path.unlink(missing_ok=True)

    def forget(self, claim: Claim) -> None:
        """Lets go of a case that is settled, and of the attempts before."""
        if self.owns(claim):
            # The own one last: as long as it is there, nobody who still sees an earlier one makes a second of this number.
            for attempt in range(1, claim.attempt):
                self._path(claim.name, attempt).unlink(missing_ok=True)
        self.release(claim)

    def abandon(self, claim: Claim) -> None:
        """Lets go of a case as if this process had died over it, which it is about to."""
        with self._lock:
            self._held.pop(claim.name, None)

    def forget_dead(self, name: str, attempts: int = MAX_ATTEMPTS) -> None:
        """Removes the claims on a case over which too many died."""
        for attempt in range(1, attempts + 1):
            self._path(name, attempt).unlink(missing_ok=True)

    def tidy(self, names: Iterable[str]) -> None:
        """Removes what is left of the claims on cases that are all settled."""
        left = {path.name for path in self.folder.glob("*.claim")}
        for name in names if left else ():
            for path in (self._path(name, attempt) for attempt in range(1, MAX_ATTEMPTS + 1)):
                if path.name in left:
                    path.unlink(missing_ok=True)

    def join(self) -> None:
        """Has others count this process among those that are at the folder.

        Raises:
            OSError: the folder cannot be written.
        """
        with self._lock:
            waiting, self._presence = self._presence, self._presence.with_suffix(JOINED)
            self._make(self._presence)
            if waiting != self._presence:
                waiting.unlink(missing_ok=True)

    def others(self) -> int:
        """How many other processes have joined and live; what the dead left to say that they live is removed."""
        living = 0
        for path in [path for suffix in (WAITING, JOINED) for path in self.folder.glob(f"*{suffix}") if path != self._presence]:
            is_alive = self._look(path)
            living += bool(is_alive) and path.suffix == JOINED
            if is_alive is False:
                path.unlink(missing_ok=True)
        return living

    def _path(self, name: str, attempt: int) -> Path:
        digest = hashlib.sha256(name.encode()).hexdigest()[:16]
        return self.folder / f"{quote(name, safe='')[:LABEL_LENGTH]}-{digest}.{attempt}.claim"

    def _make(self, path: Path) -> bool:
        try:
            file = path.open("x")
        except FileExistsError:
            return False
        try:
            with file:
                file.write(self._me.write())
        except OSError:
            path.unlink(missing_ok=True)
            raise
        return True

    def _read(self, path: Path) -> tuple[Holder | None, float] | None:
        """Holder and time of the last touch; None where the file is gone."""
        try:
            with path.open() as file:
                return Holder.read(file.read()), os.fstat(file.fileno()).st_mtime
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno == errno.ESTALE:  # removed on another machine while it was read
                return None
            raise

    def _look(self, path: Path) -> bool | None:
        """Whether the holder of a file lives; None where the file is gone."""
        found = self._read(path)
        if found is None:
            return None
        holder, touched = found
        if holder is not None and holder.is_known_dead():
            return False
        return time.monotonic() + self._clock_offset - touched < self.stale_s

    def _beat(self) -> None:
        while not self._ended.wait(self.stale_s / BEATS):
            self._touch()

    def _touch(self) -> None:
        """Says that this process lives and works on what it holds, unless others have taken that for dead."""
        with self._lock:
            held = [claim for claim in self._held.values() if not self._path(claim.name, claim.attempt + 1).exists()]
            presence = self._presence
            # A share may be away for a moment, and others may have removed a file; who comes too late finds out in `owns`.
            with suppress(OSError):
                if not presence.exists():
                    self._make(presence)
        for path in [presence, *(claim.path for claim in held)]:
            with suppress(OSError):
                os.utime(path)
        with suppress(OSError):
            self._clock_offset = presence.stat().st_mtime - time.monotonic()

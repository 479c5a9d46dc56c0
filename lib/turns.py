"""Who uses the networks when: one at a time, in the order in which they came; work in the background gives them back after each call."""

from __future__ import annotations

import copy
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)


class Line:
    """A lock that those who wait get in the order in which they came; `threading.Lock` gives it to whoever is quickest."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._waiting: deque[object] = deque()

    def __len__(self) -> int:
        """How many hold it or wait for it."""
        return len(self._waiting)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Waits, and holds it until the end of the block."""
        own = object()
        with self._changed:
            self._waiting.append(own)
            try:
                self._changed.wait_for(lambda: self._waiting[0] is own)
            except BaseException:  # such as Ctrl-C: whoever comes after must not wait for this one
                self._leave(own)
                raise
        try:
            yield
        finally:
            with self._changed:
                self._leave(own)

    def _leave(self, own: object) -> None:
        self._waiting.remove(own)
        self._changed.notify_all()


class StoppedError(Exception):
    """The work in the background is to end."""


@dataclass(frozen=True)
class Turns:
    """Takes the network for one call at a time, so that a request waits for a call and not for the whole work.

    Attributes:
        take: a turn of those who use the networks, as `ModelStore.network_turn`.
        rest_share: rest after each call, as a multiple of what it took.
        stop: set when the work is to end.
    """

    take: Callable[[], AbstractContextManager[None]]
    rest_share: float = 0.0
    stop: threading.Event = field(default_factory=threading.Event)

    def wrap(self, module: M) -> M:
        """A copy of a network, of which every call waits for its turn and is followed by a rest.

        The copy's calls raise `StoppedError` once the work is to end.
        """
        copied = copy.deepcopy(module)
        forward = copied.forward

        def in_turn(*args: Any, **kwargs: Any) -> Any:
            with self.turn():
                return forward(*args, **kwargs)

        copied.forward = in_turn
        return copied

    @contextmanager
    def turn(self) -> Iterator[None]:
        """One turn with its rest.

        Raises:
            StoppedError: the work is to end.
        """
        if self.stop.is_set():
            raise StoppedError
        with self.take():
            start = time.perf_counter()
            yield
            taken_s = time.perf_counter() - start
        self.stop.wait(self.rest_share * taken_s)

"""Work in the background of the server: network calls one at a time, with room for the requests of viewers in between."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import nn

M = TypeVar("M", bound=nn.Module)
# A lock is not fair: without a rest, whoever gives it back takes it again before those who wait have woken up.
MIN_REST_S = 0.02


class StoppedError(Exception):
    """The work in the background is to end."""


@dataclass(frozen=True)
class Turns:
    """Takes the network for one call at a time, so that a request waits for a call and not for the whole work.

    Attributes:
        take: the network's lock, as `ModelStore.network_turn`.
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
        self.stop.wait(max(MIN_REST_S, self.rest_share * taken_s))

"""An answer that takes long is kept, and asked for anew behind the back of those who read it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")

PATIENCE_S = 0.3
# Of the time there is, an archive that answers slowly spends at most a tenth on these questions.
REST_SHARE = 9.0


class Kept(Generic[T]):
    """The last answer to a question. One thread asks, all others wait for its answer.

    The first answer is waited for. When it is older than `refresh_s` the question is asked anew; whoever reads waits until `PATIENCE_S`
    of that are over, and else takes the old answer. So a quick archive is always fresh, and a slow one never keeps anybody waiting; nor is
    it asked all the time: what took longer than `PATIENCE_S` is kept for nine times as long. After an error nothing is kept: the next
    reader waits again, and hears what is wrong.

    Args:
        ask: the question.
        refresh_s: how old an answer may be at least.
    """

    def __init__(self, ask: Callable[[], T], refresh_s: float) -> None:
        self._ask, self._refresh_s = ask, refresh_s
        self._lock = threading.Lock()
        self._answer: tuple[T, float] | None = None  # and when it is due
        self._pending: Future[T] | None = None
        self._asked = 0.0

    def forget(self) -> None:
        """Makes the next reader wait for an answer to a question that is asked from now on."""
        with self._lock:
            self._answer = self._pending = None

    def get(self) -> T:
        """The answer.

        Raises:
            Exception: whatever the question raised.
        """
        with self._lock:
            answer = self._answer
            if answer is not None and time.monotonic() < answer[1]:
                return answer[0]
            pending = self._pending = self._pending or self._begin()
            patience_s = max(0.0, self._asked + PATIENCE_S - time.monotonic())
        if answer is None:
            return pending.result()
        try:
            return pending.result(patience_s)
        except TimeoutError:
            if pending.done():  # the question itself timed out
                raise
            return answer[0]

    def _begin(self) -> Future[T]:
        pending: Future[T] = Future()
        self._asked = time.monotonic()
        threading.Thread(target=self._work, args=(pending,), daemon=True).start()
        return pending

    def _work(self, pending: Future[T]) -> None:
        began = time.monotonic()
        try:
            value = self._ask()
        except BaseException as error:  # readers hear of it, whatever it is
            self._settle(pending, None)
            pending.set_exception(error)
            return
        now = time.monotonic()
        rest_s = REST_SHARE * (now - began) if now - began > PATIENCE_S else 0.0
        self._settle(pending, (value, now + max(self._refresh_s, rest_s)))
        pending.set_result(value)

    def _settle(self, pending: Future[T], answer: tuple[T, float] | None) -> None:
        """Keeps an answer, unless it was asked for before all was forgotten."""
        with self._lock:
            if self._pending is pending:
                self._answer, self._pending = answer, None

"""The host's background tasks as threads of the server: one of a kind at a time, with their status at the stock routes.

The host starts a process for each, which takes seconds to load the app again and overwrites the datastore's index.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable
from datetime import datetime
from typing import Any

from monailabel.utils.async_tasks import utils as async_tasks

from lib.busy import BusyError
from lib.plain import plain
from lib.turns import StoppedError

logger = logging.getLogger(__name__)

Task = dict[str, Any]
Say = Callable[[str], None]
# Given an event that asks it to stop, and a function that adds a line to the status; gives the result.
Work = Callable[[threading.Event, Say], Any]
MAX_LINES = 20


class ServerTask:
    """One kind of background task.

    Args:
        kind: under which the host looks for it, such as `scoring`.
        route: where its status is, for messages.
    """

    def __init__(self, kind: str, route: str) -> None:
        self._kind, self._route = kind, route
        self._starting = threading.Lock()

    def start(self, request: dict[str, Any], work: Work, wait: bool = False) -> Task:
        """Starts the work and gives its status, which changes as it goes on.

        Args:
            request: shown in the status.
            work: what is to be done.
            wait: come back when it has ended.

        Raises:
            BusyError: one is running already.
        """
        stop = threading.Event()
        with self._starting:
            running = async_tasks.background_processes.setdefault(self._kind, {})
            if running:
                raise BusyError(f"one is running: wait for GET {self._route} to say DONE, or stop it with DELETE {self._route}")
            # Every key from the beginning: a reply must not meet a dictionary that grows.
            task = {"id": str(uuid.uuid4()), "status": "RUNNING", "request": plain(request), "start_ts": now()}
            task |= {"details": [], "result": None, "end_ts": None}
            running[task["id"]] = stop
            async_tasks.background_tasks.setdefault(self._kind, []).append(task)
        thread = threading.Thread(target=self._run, args=(task, work, stop), name=self._kind, daemon=True)
        thread.start()
        if wait:
            thread.join()
        return dict(task)

    def stop(self) -> Task | None:
        """Asks the running task to stop at its next opportunity; None when there is none."""
        running = dict(async_tasks.background_processes.get(self._kind, {}))
        for stop in running.values():
            stop.set()
        tasks = [task for task in async_tasks.background_tasks.get(self._kind, []) if task["id"] in running]
        return dict(tasks[-1]) if tasks else None

    def _run(self, task: Task, work: Work, stop: threading.Event) -> None:
        def say(line: str) -> None:
            task["details"] = [*task["details"], line][-MAX_LINES:]

        status = "ERROR"
        try:
            task["result"] = plain(work(stop, say))
            status = "STOPPED" if stop.is_set() else "DONE"
        except StoppedError:
            status = "STOPPED"
        except Exception as error:
            logger.exception("The task %s failed", self._kind)
            say(f"{type(error).__name__}: {error}")
        finally:
            async_tasks.background_processes[self._kind].pop(task["id"], None)
            task |= {"status": status, "end_ts": now()}


def now() -> str:
    """Local time as the host writes it."""
    return datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S")

"""`/batch/infer` inside the server process.

The host starts a second process, which loads the app again and then overwrites the datastore's index with its own copy:
labels submitted meanwhile are lost. Here a batch is a thread of the server; status stays at the stock route.
"""

from __future__ import annotations

import logging
import threading
import uuid
from datetime import datetime
from typing import Any

from monailabel.interfaces.app import MONAILabelApp
from monailabel.utils.async_tasks import utils as async_tasks

from lib.infers.batch import STOP_KEY
from lib.server.errors import UnusableRequestError

logger = logging.getLogger(__name__)

METHOD = "batch_infer"
_starting = threading.Lock()


def start_batch(app: MONAILabelApp, arguments: dict[str, Any]) -> dict[str, Any]:
    """Runs a batch: to its end with `run_sync`, else in the background.

    Raises:
        UnusableRequestError: one is running already.
    """
    request = {**arguments["params"], "model": arguments["model"], "images": arguments["images"]}
    if arguments["run_sync"]:
        result: dict[str, Any] = app.batch_infer(request)
        return result
    stop = threading.Event()
    with _starting:
        running = async_tasks.background_processes.setdefault(METHOD, {})
        if running:
            raise UnusableRequestError("a batch is running: wait for GET /batch/infer to say DONE, or stop it with DELETE /batch/infer")
        task = {"id": str(uuid.uuid4()), "status": "RUNNING", "request": request, "start_ts": now(), "details": []}
        running[task["id"]] = stop
        async_tasks.background_tasks.setdefault(METHOD, []).append(task)
    threading.Thread(target=run_batch, args=(app, task, stop), name="BatchInfer", daemon=True).start()
    return dict(task)


def run_batch(app: MONAILabelApp, task: dict[str, Any], stop: threading.Event) -> None:
    """Runs a batch and keeps its status."""
    status = "ERROR"
    try:
        task["result"] = app.batch_infer({**task["request"], STOP_KEY: stop})
        failed = [image for image, answer in task["result"].items() if "error" in answer]
        task["details"] += [
            f"{len(task['result']) - len(failed)} images done",
            *(f"{image}: {task['result'][image]['error']}" for image in failed),
        ]
        status = "STOPPED" if stop.is_set() else "DONE"
    except Exception:
        logger.exception("Batch inference failed")
        raise
    finally:
        async_tasks.background_processes[METHOD].pop(task["id"], None)
        task |= {"status": status, "end_ts": now()}


def stop_batch(app: MONAILabelApp, arguments: dict[str, Any]) -> dict[str, Any] | None:
    """Asks the running batch to stop after its current image; None when there is none."""
    running = dict(async_tasks.background_processes.get(METHOD, {}))
    for stop in running.values():
        stop.set()
    tasks = [task for task in async_tasks.background_tasks.get(METHOD, []) if task["id"] in running]
    return dict(tasks[-1]) if tasks else None


def now() -> str:
    """Local time as the host writes it."""
    return datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S")

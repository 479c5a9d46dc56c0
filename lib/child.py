"""A training that a server has started ends with the server, however that ends.

The host leaves it running: nobody would see it or could stop it, and the next Train would find the model taken.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys

from monailabel.utils.async_tasks import utils as async_tasks

logger = logging.getLogger(__name__)

SERVER_PROCESS = "APP_CDM_SERVER_PROCESS"
PR_SET_PDEATHSIG = 1


def announce_server() -> None:
    """Tells the processes that this one will start whose they are."""
    os.environ[SERVER_PROCESS] = str(os.getpid())


def end_with_server() -> None:
    """Has Linux kill this process when the server that started it ends; does nothing where no server did.

    A training loses what it did since its last checkpoint by that, 45 seconds at most; the next Train resumes it.

    Raises:
        SystemExit: the server has ended already.
    """
    server = os.environ.get(SERVER_PROCESS)
    if server is None:
        return
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(server):
        logger.error("The server that started this process has ended: so does the process")
        raise SystemExit(1)


def stop_trainings() -> None:
    """Ends the trainings of this server at once; the interpreter would wait for them before it ends, for hours."""
    while async_tasks.background_processes.get("train"):
        async_tasks.stop_background_task("train")

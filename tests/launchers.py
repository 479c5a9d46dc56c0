"""A module in two processes of this machine: by the command lines of launchers, or forked as a launcher would start it."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.host.server_process import free_port
from tests.preloaded import Preloaded

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
# Without a GPU accelerate puts the processes on the CPU, over gloo; everything is said, so that nobody's own configuration counts.
ACCELERATE = (
    sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--machine_rank", "0",
    "--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no", "-m",
)  # fmt: skip


def run_both(module: str, arguments: Sequence[str], folder: Path, log: Path, limit_s: float) -> None:
    """Runs a module in two processes to their end; they are told what launchers tell, and fork from one that has imported what takes long.

    Args:
        module: what `python -m` would be told.
        arguments: of both.
        folder: where they work.
        log: receives what they print.
        limit_s: seconds that they may take.
    """
    both = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": "1"}
    environments = [{**os.environ, **both, "RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")]
    processes = [Preloaded(module, arguments, folder, environment, log) for environment in environments]
    try:
        codes = [process.wait(limit_s) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0, 0], log.read_text()[-4000:]

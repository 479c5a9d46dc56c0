"""Command lines that start a module in two processes of this machine."""

from __future__ import annotations

import sys

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
# Without a GPU accelerate puts the processes on the CPU, over gloo; everything is said, so that nobody's own configuration counts.
ACCELERATE = (
    sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--machine_rank", "0",
    "--main_process_port", "0", "--mixed_precision", "no", "--dynamo_backend", "no", "-m",
)  # fmt: skip

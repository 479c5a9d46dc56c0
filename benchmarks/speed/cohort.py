"""Two processes at one cohort against one, each on a core of its own; and what a worker that is killed midway costs.

APP_CDM_COHORT=8 in the environment tries it with eight volumes.
"""

from __future__ import annotations

import csv
import hashlib
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

from app_cdm.cohort.holder import Holder
from benchmarks.speed.part import ROOT, Options

VOLUMES = int(os.environ.get("APP_CDM_COHORT", "200"))
ROUNDS = 2
METHOD = "student"
LIMIT_S = 7200.0


@dataclass(frozen=True)
class Worker:
    """A process at the cohort.

    Attributes:
        process: it.
        log: what it says.
    """

    process: subprocess.Popen[bytes]
    log: Path

    @classmethod
    def start(cls, options: Options, output: Path, name: str, core: int) -> Worker:
        """Starts the command on one core with one thread, as by hand: no launcher."""
        command = [sys.executable, "-m", "app_cdm", "--verbose", "infer", "--model", str(options.model), "--device", options.device.type]
        command += ["--method", METHOD, "--input", str(options.run / "images"), "--output", str(output)]
        log = output.with_name(f"{output.name}_{name}.log")
        with log.open("wb") as file:
            process = subprocess.Popen(
                command, cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=file, stderr=file,
                stdin=subprocess.DEVNULL, preexec_fn=partial(os.sched_setaffinity, 0, {core}),
            )  # fmt: skip
        return cls(process, log)

    def end(self) -> None:
        """Waits for it; what goes wrong is an error with the end of its log."""
        if self.process.wait(LIMIT_S):
            raise RuntimeError(f"{self.log.name}: exit code {self.process.returncode}\n{self.log.read_text()[-2000:]}")

    def segmented(self) -> list[str]:
        """The cases that it says it has written."""
        return [line.rpartition("done: ")[2] for line in self.log.read_text().splitlines() if "done: " in line]


def measure(options: Options) -> dict[str, Any]:
    """One process, two processes, in turns; then two of which one is killed when half is done, and started again."""
    cores = sorted(os.sched_getaffinity(0))
    names = copy_volumes(options, VOLUMES)
    try:
        rounds = []
        for number in range(ROUNDS):
            one, two = (measure_rate(options, f"{kind}{number}", cores, kind) for kind in (1, 2))
            print(f"round {number}: {one['volumes_per_s']:.3f} and {two['volumes_per_s']:.3f} volumes a second", flush=True)
            rounds.append({"one": one, "two": two, "ratio": two["volumes_per_s"] / one["volumes_per_s"]})
        killed = measure_kill(options, names, cores)
        sizes = {kind: mean_bytes(options.run / folder, names) for kind, folder in (("image", "images"), ("result", "masks_killed"))}
    finally:
        for folder in (options.run / "images", *options.run.glob("masks*")):
            if folder.is_dir():
                shutil.rmtree(folder)
    return {"volumes": len(names), "method": METHOD, "cores_used": min(2, len(cores)), "rounds": rounds, "killed": killed, "bytes": sizes}


def mean_bytes(folder: Path, names: Sequence[str]) -> float:
    """Bytes on disk that belong to a case, on average."""
    return sum(path.stat().st_size for path in folder.glob("copy_*") if path.is_file()) / len(names)


def copy_volumes(options: Options, count: int) -> list[str]:
    """Copies the training volumes, over and over, until there are so many; returns the names of the cases."""
    with (options.data / "lgg" / "patients.csv").open(newline="") as file:
        patients = [row["patient_id"] for row in csv.DictReader(file) if row["split"] == "train"]
    folder = options.run / "images"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    names = [f"copy_{number:04d}_{patient}" for number, patient in enumerate(islice(cycle(patients), count))]
    for name, patient in zip(names, cycle(patients), strict=False):
        shutil.copy(options.data / "lgg" / "images" / f"{patient}_flair.nii.gz", folder / f"{name}.nii.gz")
    return names


def measure_rate(options: Options, name: str, cores: Sequence[int], count: int) -> dict[str, float]:
    """Volumes a second between the first and the last result, and seconds with the start of the processes.

    The first case of every process is not counted: what was done of it before the first result cannot be told.
    """
    output = options.run / f"masks_{name}"
    output.mkdir()
    started = time.perf_counter()
    workers = [Worker.start(options, output, str(number), cores[number % len(cores)]) for number in range(count)]
    for worker in workers:
        worker.end()
    wall_s = time.perf_counter() - started
    times_s = sorted(path.stat().st_mtime for path in output.glob("copy_*.json"))
    return {"volumes_per_s": (len(times_s) - count) / (times_s[-1] - times_s[0]), "wall_s": wall_s}


def measure_kill(options: Options, names: Sequence[str], cores: Sequence[int]) -> dict[str, Any]:
    """Kills one of two workers while it holds a case, starts another in its place, and counts."""
    output = options.run / "masks_killed"
    output.mkdir()
    workers = [Worker.start(options, output, str(number), cores[number % len(cores)]) for number in range(2)]
    victim = workers[1]
    held: list[str] = []
    deadline = time.monotonic() + LIMIT_S
    while len(list(output.glob("copy_*.json"))) < len(names) // 2 or not (held := claims_of(output, victim.process.pid)):
        if time.monotonic() > deadline or any(worker.process.poll() is not None for worker in workers):
            raise RuntimeError(f"no worker to kill: see {victim.log}")
        time.sleep(0.01)
    victim.process.send_signal(signal.SIGKILL)
    victim.process.wait()
    workers.append(Worker.start(options, output, "again", cores[1 % len(cores)]))
    for worker in (workers[0], workers[2]):
        worker.end()
    written = Counter(name for worker in workers for name in worker.segmented())
    reference = options.run / "masks_10"
    return {
        "done_by": [len(worker.segmented()) for worker in workers],
        "held_when_killed": len(held),
        "lost": sum(not (output / f"{name}.json").exists() for name in names),
        "doubled": sum(count - 1 for count in written.values()),
        "different_masks": sum(digest(output / f"{name}_mask.nii.gz") != digest(reference / f"{name}_mask.nii.gz") for name in names),
        "failed": len(list(output.glob("*.error.json"))),
    }


def claims_of(output: Path, pid: int) -> list[str]:
    """The claims on cases that a process holds."""
    found = []
    for path in (output / ".claims").glob("copy_*.claim"):
        try:
            holder = Holder.read(path.read_text())
        except FileNotFoundError:
            continue
        if holder is not None and holder.pid == pid:
            found.append(path.name)
    return found


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def describe(result: dict[str, Any]) -> list[str]:
    """A table of the rounds, and the count after the kill."""
    rounds, killed, count = result["rounds"], result["killed"], result["volumes"]
    ratio = statistics.mean(item["ratio"] for item in rounds)
    place = "on a core of its own" if result["cores_used"] == 2 else "on the one core that there was, so that their ratio says nothing"
    first, victim, successor = killed["done_by"]
    rows = [
        f"| {number} | {item['one']['volumes_per_s']:.3f} | {item['two']['volumes_per_s']:.3f} | {item['ratio']:.2f} "
        f"| {item['one']['wall_s']:.0f} | {item['two']['wall_s']:.0f} |"
        for number, item in enumerate(rounds, start=1)
    ]
    return [
        f"`app_cdm infer` with `{result['method']}` over {count} volumes (copies of the training volumes), every process {place},",
        "one thread each, started by hand without a launcher. Rates are between the first and the last result.",
        "",
        "| round | one process, volumes/s | two, volumes/s | ratio | one, s with start | two, s with start |",
        "|---|---|---|---|---|---|",
        *rows,
        "",
        f"Two processes have **{ratio:.2f} times** the rate of one.",
        "",
        f"One of two processes killed (SIGKILL) when half was done, and started again: **{killed['lost']} lost,",
        f"{killed['doubled']} doubled**, {killed['failed']} failed. The first did {first}, the killed one {victim}, its successor",
        f"{successor}.",
        f"{count - killed['different_masks']} of {count} masks equal those of one process bit for bit.",
    ]

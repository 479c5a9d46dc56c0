"""What grows with the number of cases and of slices: answers, seconds and memory of a real server."""

from __future__ import annotations

import json
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import requests

from benchmarks.speed.part import ROOT, Options, memory_mib
from demo.client import multipart
from demo.server import LabelServer, find_free_port

NUM_CASES = (10, 1_000, 20_000)
NUM_SLICES = (20, 50, 100, 200, 500, 1_000)
METHODS = ("student", "cldf", "cdm_saliency")
LARGE = (512, 512, 1_000)
SIDE = 256
REPEATS = 7
COLD_STARTS = 3
NUM_PACKAGES = 8
TIMEOUT_S = 3_600
LIMIT_S = 1.0
BUSY_LIMIT_S = 0.3
# A fraction makes a quick run of everything, to see that it works: APP_CDM_GROWTH=0.05
SCALE = float(os.environ.get("APP_CDM_GROWTH", "1"))


class Session:
    """A running server and questions to it.

    Args:
        url: where it listens.
        process: its process id.
    """

    def __init__(self, url: str, process: int) -> None:
        self.url, self._process = url, process

    def ask(self, method: str, route: str, **options: Any) -> requests.Response:
        """One answer, which must be a good one."""
        response = requests.request(method, self.url + route, timeout=TIMEOUT_S, **options)
        response.raise_for_status()
        return response

    def seconds(self, method: str, route: str, **options: Any) -> float:
        """How long one answer takes."""
        start = time.perf_counter()
        self.ask(method, route, **options)
        return time.perf_counter() - start

    def infer(self, task: str, image: str, **params: Any) -> tuple[float, dict[str, Any]]:
        """Seconds of one inference, until the mask has arrived, and what the server says of it."""
        start = time.perf_counter()
        reply = self.ask("POST", f"/infer/{task}?image={image}", data={"params": json.dumps(params)})
        return time.perf_counter() - start, json.loads(multipart(reply)["params"])

    def peak_mib(self) -> float:
        """The most memory that the process has held so far; NaN where the system does not tell."""
        return memory_mib(self._process, "VmHWM")


@contextmanager
def serving(studies: Path | str, options: Options, work: Path, *extra: str) -> Iterator[tuple[Session, float]]:
    """A server on a folder or PACS, and the seconds until its first answer."""
    work.mkdir(parents=True, exist_ok=True)
    arguments = ("--model-dir", str(options.model.parent), "--model", options.model.name, "--device", options.device.type, *extra)
    start = time.perf_counter()
    with LabelServer(studies, find_free_port(), work / "server.log", work / "cache", arguments) as server:
        process = server._process
        assert process is not None
        yield Session(server.url, process.pid), time.perf_counter() - start


def measure(options: Options) -> dict[str, Any]:
    """Runs everything; about ten minutes on two cores."""
    return {
        "scale": SCALE,
        "cases": measure_cases(options),
        "cold": measure_cold_start(options),
        "imports": measure_imports(),
        "slices": measure_slices(options),
        "memory": measure_memory(options),
    }


def measure_cases(options: Options) -> list[dict[str, Any]]:
    """Answers of servers with few and with many cases, three quarters of them tagged."""
    rows = []
    for num_cases in dict.fromkeys(max(10, round(count * SCALE)) for count in NUM_CASES):
        work = options.run / f"cases_{num_cases}"
        studies = work / "studies"
        if not studies.exists():
            studies.mkdir(parents=True)
            one = write_volume(work / "one.nii.gz", (48, 40, 6))
            for number in range(num_cases):
                (studies / f"case{number:05d}.nii.gz").hardlink_to(one)
        with serving(studies, options, work, "--classes", "tumor") as (session, start_s):
            rows.append({"cases": num_cases, "start_s": start_s, **ask_everything(session, num_cases, work / "one.nii.gz")})
    return rows


def ask_everything(session: Session, num_cases: int, image_file: Path) -> dict[str, Any]:
    """Median and longest seconds of each kind of question."""
    tags = {f"case{number:05d}": {"tumor": number % 3 == 0} for number in range(0, num_cases, 4) for number in range(number, number + 3)}
    tags = {image: by_class for image, by_class in tags.items() if int(image[4:]) < num_cases}
    import_s = session.seconds("POST", "/tags/bulk", json={"tags": tags, "user": "benchmark"})
    last = f"case{num_cases - 1:05d}"
    label = image_file.with_name("label.nii.gz")
    source = nib.load(image_file)
    nib.save(nib.Nifti1Image((np.asarray(source.dataobj) > 500).astype(np.uint8), source.affine), label)
    form = {"params": json.dumps({"label_info": [{"name": "tumor", "idx": 1}]})}
    questions: dict[str, Callable[[], float]] = {
        "`GET /info/`": lambda: session.seconds("GET", "/info/"),
        "`GET /datastore/`": lambda: session.seconds("GET", "/datastore/"),
        "`GET /datastore/?output=all`": lambda: session.seconds("GET", "/datastore/?output=all"),
        "`GET /datastore/?output=train`": lambda: session.seconds("GET", "/datastore/?output=train"),
        "`GET /tagging/cases`, a page": lambda: session.seconds("GET", "/tagging/cases?state=open"),
        "`GET /tags/summary`": lambda: session.seconds("GET", "/tags/summary"),
        "`POST /activelearning/first`": lambda: session.seconds("POST", "/activelearning/first", json={}),
        "`POST /activelearning/untagged`": lambda: session.seconds("POST", "/activelearning/untagged", json={}),
        "`POST /activelearning/uncertain`": lambda: session.seconds("POST", "/activelearning/uncertain", json={}),
        "`POST /activelearning/random`": lambda: session.seconds("POST", "/activelearning/random", json={}),
        "`PUT /tags/<image>`": lambda: session.seconds("PUT", f"/tags/{last}", json={"tags": {"tumor": True}, "user": "benchmark"}),
        "`GET /datastore/image/info`": lambda: session.seconds("GET", f"/datastore/image/info?image={last}"),
        "`PUT /datastore/label`": lambda: session.seconds(
            "PUT", f"/datastore/label?image={last}", files={"label": ("label.nii.gz", label.read_bytes())}, data=form
        ),
    }
    answers = {}
    for question, ask in questions.items():
        seconds = [ask() for _ in range(REPEATS)]
        answers[question] = {"median_s": statistics.median(seconds), "max_s": max(seconds)}
    return {"import_s": import_s, "answers": answers, "peak_mib": session.peak_mib()}


def measure_cold_start(options: Options) -> list[dict[str, float]]:
    """Seconds from the start of the process to the first answer and to the first mask of a 160x160x40 volume."""
    work = options.run / "cold"
    studies = work / "studies"
    studies.mkdir(parents=True, exist_ok=True)
    write_volume(studies / "case.nii.gz", (160, 160, 40))
    runs = []
    for _ in range(COLD_STARTS):
        with serving(studies, options, work) as (session, start_s):
            (first_s, _), (second_s, _) = session.infer("student", "case"), session.infer("student", "case")
            runs.append({"first_answer_s": start_s, "first_mask_s": start_s + first_s, "second_mask_s": second_s})
    return runs


def measure_imports() -> dict[str, Any]:
    """Seconds that a server spends on importing, by package: what a package imports of others counts for these."""
    command = [sys.executable, "-X", "importtime", "-c", "import main, monailabel.app"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stderr
    microseconds = Counter[str]()
    for own, module in re.findall(r"^import time:\s*(\d+) \|\s*\d+ \|\s*([\w.]+)", told, re.MULTILINE):
        microseconds[module.split(".")[0]] += int(own)
    packages = [(name, count / 1e6) for name, count in microseconds.most_common(NUM_PACKAGES)]
    return {"total_s": microseconds.total() / 1e6, "packages": packages}


def measure_slices(options: Options) -> dict[str, Any]:
    """Seconds by number of 256x256 slices; and what `/info/` takes during the longest of them."""
    work = options.run / "slices"
    studies = work / "studies"
    studies.mkdir(parents=True, exist_ok=True)
    counts = sorted({max(20, round(count * SCALE)) for count in NUM_SLICES})
    for count in counts:
        write_volume(studies / f"slices{count:04d}.nii.gz", (SIDE, SIDE, count))
    rows: list[dict[str, Any]] = []
    with serving(studies, options, work, "--classes", "") as (session, _):
        session.infer("student", f"slices{counts[0]:04d}")
        for method in METHODS:
            for count in counts:
                answers = Meanwhile(session)
                with answers:
                    wall_s, told = session.infer(method, f"slices{count:04d}")
                row = {"method": method, "slices": count, "wall_s": wall_s, "info": answers.result()}
                rows.append(row | {"evaluations": told["network_evaluations"]})
    return {"rows": rows}


def measure_memory(options: Options) -> list[dict[str, Any]]:
    """Peak memory of a server of its own for each method, before and after a large CT."""
    work = options.run / "memory"
    studies = work / "studies"
    studies.mkdir(parents=True, exist_ok=True)
    shape = (LARGE[0], LARGE[1], max(20, round(LARGE[2] * SCALE)))
    write_volume(studies / "large.nii", shape)
    rows = []
    for method in METHODS:
        with serving(studies, options, work / method) as (session, _):
            before = session.peak_mib()
            wall_s, _ = session.infer(method, "large")
            rows.append({"method": method, "shape": shape, "before_mib": before, "peak_mib": session.peak_mib(), "wall_s": wall_s})
    (studies / "large.nii").unlink()
    return rows


class Meanwhile:
    """Asks for `/info/` over and over in a thread, as viewers do, while something else goes on."""

    PAUSE_S = 0.02

    def __init__(self, session: Session) -> None:
        self._session, self._seconds, self._is_over = session, [], threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> Meanwhile:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def result(self) -> dict[str, float]:
        """How often it was asked, and the seconds: median, 95th percentile, longest."""
        p50, p95 = np.percentile(self._seconds, [50, 95])
        return {"count": len(self._seconds), "p50_s": float(p50), "p95_s": float(p95), "max_s": max(self._seconds)}

    def _ask(self) -> None:
        while True:
            self._seconds.append(self._session.seconds("GET", "/info/"))
            if self._is_over.wait(self.PAUSE_S):
                return


def write_volume(path: Path, shape: tuple[int, int, int]) -> Path:
    """A body-like int16 volume with noise and one bright lesion, slice by slice; uncompressed where the name says so."""
    generator = np.random.default_rng(0)
    x, y = np.meshgrid(*(np.linspace(-1, 1, size, dtype=np.float32) for size in shape[:2]), indexing="ij")
    array = np.empty(shape, dtype=np.int16)
    for index, z in enumerate(np.linspace(-1, 1, shape[2])):
        body = (x / 0.85) ** 2 + (y / 0.9) ** 2 < 1
        lesion = (x - 0.3) ** 2 + (y - 0.2) ** 2 + (z / 2) ** 2 < 0.04
        noise = generator.normal(0, 12, shape[:2]).astype(np.float32)
        array[:, :, index] = np.where(body, 300 + 400 * lesion + noise, 0.0)
    nib.save(nib.Nifti1Image(array, np.diag([0.7, 0.7, 1.5, 1.0])), path)
    return path


def describe(result: dict[str, Any]) -> list[str]:
    """The tables."""
    lines = [] if result["scale"] == 1 else [f"**A quick run at {result['scale']:g} of the full size.**", ""]
    lines += [*_describe_cases(result["cases"]), "", *_describe_cold(result["cold"], result["imports"]), ""]
    return [*lines, *_describe_slices(result["slices"]["rows"]), "", *_describe_memory(result["memory"])]


def _describe_cases(rows: list[dict[str, Any]]) -> list[str]:
    longest_s, question = slowest_answer(rows[-1])
    return [
        "### Cases in the studies folder",
        "",
        f"Milliseconds until a real server has answered over HTTP, median of {REPEATS}, the longest in brackets; three quarters of",
        f"the cases are tagged. With {rows[-1]['cases']} cases the slowest answer of all took {longest_s:.2f} s ({question}); the",
        f"limit is {LIMIT_S:g} s.",
        "",
        *answer_table(rows, "cases", {"start of the server": "start_s", "tagging three quarters at once": "import_s"}),
    ]


def _describe_cold(runs: list[dict[str, float]], imports: dict[str, Any]) -> list[str]:
    answer, first, second = (statistics.median(run[f"{name}_s"] for run in runs) for name in ("first_answer", "first_mask", "second_mask"))
    return [
        "### Cold start",
        "",
        f"From the start of the process, median of {len(runs)}: the first answer of `/info/` after {answer:.1f} s, the first mask",
        f"(`student`, 160x160x40) after {first:.1f} s; a second mask takes {second:.2f} s.",
        "",
        f"Imports take {imports['total_s']:.1f} s of it by Python's own clock, which slows them down: "
        + ", ".join(f"{name} {seconds:.1f}" for name, seconds in imports["packages"])
        + ". MONAI Label imports all of MONAI, which imports scipy and matplotlib; diffusers imports torch's compiler.",
        "What can be left out is not installed (pytorch-ignite).",
    ]


def _describe_slices(rows: list[dict[str, Any]]) -> list[str]:
    longest = max(rows, key=lambda row: row["wall_s"])
    info = longest["info"]
    lines = [
        "### Slices",
        "",
        f"Request over HTTP on volumes of {SIDE}x{SIDE} slices, until the mask has arrived; the ratio is that of milliseconds a slice",
        "to those of the row above, and 1 is linear. Meanwhile a second client asks for `/info/`: during the longest request",
        f"({longest['method']}, {longest['slices']} slices, {longest['wall_s']:.1f} s) it got {info['count']} answers, half of them within",
        f"{1e3 * info['p50_s']:.0f} ms, 95 % within {1e3 * info['p95_s']:.0f} ms; the limit is {1e3 * BUSY_LIMIT_S:.0f} ms.",
        "The diffusion model evaluates only the slices that the gate lets through, here few of a short volume: hence the evaluations.",
        "",
        table_row("method", ["slices", "U-Net evaluations", "s", "ms a slice", "ratio", "`/info/` p50, ms", "p95, ms", "longest, ms"]),
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    before: dict[str, float] = {}
    for row in rows:
        method, a_slice = row["method"], row["wall_s"] / row["slices"]
        ratio = f"{a_slice / before[method]:.2f}" if method in before else ""
        before[method] = a_slice
        meanwhile = [f"{1e3 * row['info'][name]:.0f}" for name in ("p50_s", "p95_s", "max_s")]
        counted, seconds = [str(row["slices"]), str(row["evaluations"])], [f"{row['wall_s']:.2f}", f"{1e3 * a_slice:.1f}"]
        lines.append(table_row(method, [*counted, *seconds, ratio, *meanwhile]))
    return lines


def _describe_memory(rows: list[dict[str, Any]]) -> list[str]:
    shape = rows[0]["shape"]
    volume = float(np.prod(shape)) * 4 / 2**20
    return [
        "### Memory",
        "",
        f"Peak resident memory of the server's process on a {shape[0]}x{shape[1]}x{shape[2]} CT of int16, {volume / 2:.0f} MiB in the",
        f"file and {volume:.0f} MiB as the float32 that is worked on. The server scores the",
        "same untagged image for Next Sample meanwhile, and reads it a second time.",
        "",
        table_row("method", ["before, MiB", "peak, MiB", "added, in float32 volumes", "s"]),
        "|---|---:|---:|---:|---:|",
        *(
            table_row(
                row["method"],
                [
                    f"{row['before_mib']:.0f}",
                    f"{row['peak_mib']:.0f}",
                    f"{(row['peak_mib'] - row['before_mib']) / volume:.2f}",
                    f"{row['wall_s']:.0f}",
                ],
            )
            for row in rows
        ),
    ]


def slowest_answer(row: dict[str, Any]) -> tuple[float, str]:
    """Seconds of the slowest answer of all, and to which question."""
    return max((answer["max_s"], question) for question, answer in row["answers"].items())


def answer_table(rows: list[dict[str, Any]], unit: str, further: dict[str, str]) -> list[str]:
    """Milliseconds by question and number of things: median, and the longest in brackets.

    Args:
        rows: a number of things each, under the name of the unit.
        unit: what is counted.
        further: what else took time, and the key of its seconds.
    """
    answers = {name: [row["answers"][name] for row in rows] for name in rows[0]["answers"]}
    return [
        table_row("", [f"{row[unit]} {unit}" for row in rows]),
        "|---|" + "---:|" * len(rows),
        *(table_row(name, [f"{1e3 * one['median_s']:.0f} ({1e3 * one['max_s']:.0f})" for one in found]) for name, found in answers.items()),
        *(table_row(name, [f"{1e3 * row[key]:.0f}" for row in rows]) for name, key in further.items()),
        table_row("peak memory, MiB", [f"{row['peak_mib']:.0f}" for row in rows]),
    ]


def table_row(name: str, values: list[str]) -> str:
    """A line of a Markdown table."""
    return f"| {name} | {' | '.join(values)} |"

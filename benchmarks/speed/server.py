"""What a request takes beside the network: reading, resampling, writing and HTTP, against a real server."""

from __future__ import annotations

import json
import statistics
import time
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import requests
from nibabel.affines import voxel_sizes

from app_cdm.data.volume import read_volume
from benchmarks.speed.part import Options
from demo.server import LabelServer, find_free_port

SHAPE = (160, 160, 40)
METHODS = ("cdm_saliency", "cldf", "student")
NETWORK = ("gate", "saliency")  # what the reply calls the stages in which networks run
TURNS = 7
TIMEOUT_S = 600
LIMIT_S, LIMIT_SHARE = 0.5, 0.15
IMAGE = "volume"


def measure(options: Options) -> dict[str, Any]:
    """Seconds of each request as its client sees them, and those that the networks took."""
    studies = options.run / "studies"
    studies.mkdir(exist_ok=True)
    write_volume(options.data, studies / f"{IMAGE}.nii.gz")
    extra = ("--model-dir", str(options.model.parent), "--model", options.model.name, "--device", options.device.type)
    rows: dict[str, list[dict[str, float]]] = {method: [] for method in METHODS}
    with LabelServer(studies, find_free_port(), options.run / "server.log", options.run / "cache", extra) as server:
        for turn in range(TURNS + 1):
            for method in METHODS:
                found = request(server.url, method)
                if turn:  # the first one warms the networks
                    rows[method].append(found)
    return {"requests": rows}


def write_volume(data: Path, path: Path) -> None:
    """A train volume with as many slices as are asked for, its own repeated."""
    source = read_volume(sorted((data / "lgg" / "images").glob("*_flair.nii.gz"))[0])
    index = np.arange(SHAPE[2]) % source.array.shape[2]
    array = np.resize(source.array[:, :, index], SHAPE)
    image = nib.nifti1.Nifti1Image(np.rint(array).astype(np.int16), np.diag([*voxel_sizes(source.affine), 1.0]))
    nib.save(image, path)


def request(url: str, method: str) -> dict[str, float]:
    """One mask over REST, as a client gets it: seconds in all, and of the networks."""
    began = time.perf_counter()
    reply = requests.post(f"{url}/infer/{method}", params={"image": IMAGE, "output": "all"}, timeout=TIMEOUT_S)
    reply.raise_for_status()
    taken = time.perf_counter() - began
    timings = timings_of(reply)
    return {"seconds": taken, "network": sum(timings[stage] for stage in NETWORK), "inside": timings["request"], "read": timings["read"]}


def timings_of(reply: requests.Response) -> dict[str, float]:
    """The stages that the reply's JSON part names."""
    boundary = reply.headers["Content-Type"].split("boundary=")[1].encode()
    for part in reply.content.split(b"--" + boundary):
        _, _, body = part.partition(b"\r\n\r\n")
        if body.lstrip().startswith(b"{"):
            found: dict[str, float] = json.loads(body)["timings"]
            return found
    raise RuntimeError("the reply has no JSON part")


def describe(result: dict[str, Any]) -> list[str]:
    """A table of medians."""
    lines = [
        f"A real server on a {' x '.join(map(str, SHAPE))} volume; requests in turns, one after the other, medians of {TURNS}. Networks: "
        "the gate and the maps with their refinement. Asked: beside them under "
        f"{100 * LIMIT_SHARE:.0f} % of a `cdm_saliency` request, and under {LIMIT_S:g} s.",
        "",
        "| method | request, s | networks, s | everything else, s | its share |",
        "|---|---|---|---|---|",
    ]
    for method, rows in result["requests"].items():
        taken, network = (statistics.median(row[name] for row in rows) for name in ("seconds", "network"))
        rest = statistics.median(row["seconds"] - row["network"] for row in rows)
        lines.append(f"| `{method}` | {taken:.3f} | {network:.3f} | {rest:.3f} | {100 * rest / taken:.0f} % |")
    return lines

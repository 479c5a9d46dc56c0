"""What each method costs a slice: `python -m benchmarks.cost`.

Network evaluations and multiply-adds are counted; milliseconds and peak memory are measured, each method in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from app_cdm.cldf.features import FeatureSettings, extract_features
from app_cdm.data.volume import Volume
from app_cdm.pipeline import CDMPipeline
from app_cdm.saliency.base import SaliencyInputs
from app_cdm.saliency.combine import METHODS
from benchmarks.speed.part import memory_mib

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = "reference"
# AnoFPDM averages over many noise levels; with the single draw of `cdm_saliency` it would be a weakened baseline.
FORWARD_PROCESS = {"mode": "forward_process", "num_draws": 2}
# Slices of the volume that is timed, all of them positive.
NUM_SLICES = 40
SIDE = 160
REPEATS = 3
FORGET_PEAK = "5"  # proc(5), clear_refs: what loading the model took is not the method's


@dataclass(frozen=True)
class Footprint:
    """What a method was measured to take.

    Attributes:
        ms_a_slice: milliseconds a positive slice, median of the repeats.
        added_mib: peak of the resident memory above what the process held before, in MiB.
    """

    ms_a_slice: float
    added_mib: float


def main() -> int:
    """Prints a Markdown table; with `--measure`, the figures of one method as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=ROOT / "model" / "cdm_lgg_flair")
    parser.add_argument("--measure", metavar="METHOD", help="only this method, in this process")
    options = parser.parse_args()
    pipeline = CDMPipeline.from_pretrained(options.model)
    if options.measure:
        print(json.dumps(asdict(_measure(pipeline, options.measure))))
        return 0
    print("\n".join(cost_table(pipeline, footprints(options.model, method_names(pipeline)))))
    return 0


def cost_table(pipeline: CDMPipeline, measured: Mapping[str, Footprint]) -> list[str]:
    """Lines of the table: a positive slice of one class; the gate is not counted, because all methods share it."""
    found = costs(pipeline)
    published = found[PUBLISHED][1]
    lines = [
        "| method | U-Net evaluations a slice | multiply-adds a slice (10^9) | share of CDM as published | ms a slice | memory, MiB |",
        "|---|---|---|---|---|---|",
    ]
    for name, (evaluations, multiply_adds) in found.items():
        share = f"1 / {published / multiply_adds:.0f}" if 0 < multiply_adds <= published / 2 else f"{multiply_adds / published:.2f}"
        taken = measured.get(name)
        figures = f"{taken.ms_a_slice:.0f} | {taken.added_mib:.0f}" if taken else "not measured | not measured"
        lines.append(f"| `{name}` | {evaluations} | {multiply_adds / 1e9:.3f} | {share} | {figures} |")
    return lines


def footprints(model: Path, methods: list[str]) -> dict[str, Footprint]:
    """Measures methods one after the other, each in a process of its own."""
    found = {}
    for method in methods:
        command = [sys.executable, "-m", "benchmarks.cost", "--model", str(model), "--measure", method]
        told = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
        found[method] = Footprint(**json.loads(told))
    return found


def _measure(pipeline: CDMPipeline, name: str) -> Footprint:
    """Times a method on a volume of noise with the gate's answer given, and takes the memory that it adds."""
    settings = pipeline.settings_for(name if name in ("student", "cldf") else "cdm_saliency")
    if name in METHODS:
        settings = settings.replace(saliency=settings.saliency.replace(**_changes(name)))
    array = np.random.default_rng(0).normal(100, 20, (SIDE, SIDE, NUM_SLICES)).astype(np.float32)
    volume, given = Volume(array, np.eye(4)), {pipeline.class_names[0]: [True] * NUM_SLICES}
    before = memory_mib(os.getpid(), "VmRSS")
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text(FORGET_PEAK)
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        pipeline.segment(volume, settings, class_names=pipeline.class_names[:1], positive_slices=given)
        seconds.append(time.perf_counter() - start)
    return Footprint(1e3 * float(np.median(seconds)) / NUM_SLICES, memory_mib(os.getpid(), "VmHWM") - before)


def _changes(name: str) -> dict[str, object]:
    return FORWARD_PROCESS if name == FORWARD_PROCESS["mode"] else {"mode": name}


def method_names(pipeline: CDMPipeline) -> list[str]:
    """The methods of the table."""
    return [name for name in ["student", "cldf", *METHODS] if name in METHODS or name in pipeline.methods]


def costs(pipeline: CDMPipeline) -> dict[str, tuple[int, float]]:
    """Method -> U-Net evaluations and multiply-adds of one positive slice of one class, without the gate."""
    return {name: _cost(pipeline, name) for name in method_names(pipeline)}


def _cost(pipeline: CDMPipeline, name: str) -> tuple[int, float]:
    """U-Net evaluations and multiply-adds of one slice, all networks; a backward pass counts as two forward ones."""
    size = pipeline.description.preprocess.image_size
    slices = torch.zeros(1, 1, size, size)
    if name == "student":
        neighbours = pipeline.student.config.num_neighbours
        return 0, _multiply_adds(pipeline.student, torch.zeros(1, 2 * neighbours + 1, size, size))
    model = pipeline.saliency_model()
    inputs = SaliencyInputs(slices, torch.tensor([0.5]), (0,), 0)
    classified: list[int] = []
    handle = pipeline.classifier.norm_out.register_forward_hook(
        lambda _module, given, _output: classified.append(len(given[0]) * (3 if torch.is_grad_enabled() else 1))
    )
    extra = 0.0
    if name == "cldf":
        features = extract_features(model, inputs, FeatureSettings.from_dict(dict(pipeline.pixel_decoder.config.features)))
        extra = _multiply_adds(pipeline.pixel_decoder, features)
    else:
        with torch.no_grad():
            METHODS[name](model, inputs, pipeline.settings_for("cdm_saliency").saliency.replace(**_changes(name)))
    handle.remove()
    timesteps, patch = torch.zeros(1, dtype=torch.long), pipeline.description.patch_size
    embedding = pipeline.condition_embedding(torch.zeros(1, len(pipeline.class_names), 3), torch.tensor([0.5]))
    unet = _multiply_adds(pipeline.unet, torch.zeros(1, patch**2, size // patch, size // patch), timesteps, embedding)
    classifier = _multiply_adds(pipeline.classifier, slices, timesteps)
    return model.counter.images, extra + model.counter.images * unet + sum(classified) * classifier


def _multiply_adds(network: torch.nn.Module, *inputs: object) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(*inputs)
    return float(counter.get_total_flops()) / 2


if __name__ == "__main__":
    raise SystemExit(main())

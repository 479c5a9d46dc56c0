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
from dataclasses import asdict, dataclass, replace
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


@dataclass(frozen=True)
class Work:
    """What networks have to do.

    Attributes:
        multiply_adds: counted by torch.
        activation_bytes: what layers read and write when each reads its input once and writes its output once; weights apart.
        evaluations: of the U-Net.
    """

    multiply_adds: float = 0.0
    activation_bytes: float = 0.0
    evaluations: int = 0

    def __add__(self, other: Work) -> Work:
        return Work(
            self.multiply_adds + other.multiply_adds,
            self.activation_bytes + other.activation_bytes,
            self.evaluations + other.evaluations,
        )

    def times(self, number: int) -> Work:
        """The same some times over."""
        return Work(self.multiply_adds * number, self.activation_bytes * number, self.evaluations * number)


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
    published = found[PUBLISHED].multiply_adds
    lines = [
        "| method | U-Net evaluations a slice | multiply-adds a slice (10^9) | share of CDM as published | ms a slice | memory, MiB |",
        "|---|---|---|---|---|---|",
    ]
    for name, work in found.items():
        multiply_adds = work.multiply_adds
        share = f"1 / {published / multiply_adds:.0f}" if 0 < multiply_adds <= published / 2 else f"{multiply_adds / published:.2f}"
        taken = measured.get(name)
        figures = f"{taken.ms_a_slice:.0f} | {taken.added_mib:.0f}" if taken else "not measured | not measured"
        lines.append(f"| `{name}` | {work.evaluations} | {multiply_adds / 1e9:.3f} | {share} | {figures} |")
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


def costs(pipeline: CDMPipeline) -> dict[str, Work]:
    """Method -> work of one positive slice of one class, all networks, without the gate; a backward pass counts as two forward ones."""
    return {name: _cost(pipeline, name) for name in method_names(pipeline)}


def _cost(pipeline: CDMPipeline, name: str) -> Work:
    size = pipeline.description.preprocess.image_size
    slices = torch.zeros(1, 1, size, size)
    if name == "student":
        neighbours = pipeline.student.config.num_neighbours
        return _work(pipeline.student, torch.zeros(1, 2 * neighbours + 1, size, size))
    model = pipeline.saliency_model()
    inputs = SaliencyInputs(slices, torch.tensor([0.5]), (0,), 0)
    classified: list[int] = []
    handle = pipeline.classifier.norm_out.register_forward_hook(
        lambda _module, given, _output: classified.append(len(given[0]) * (3 if torch.is_grad_enabled() else 1))
    )
    total = Work()
    if name == "cldf":
        features = extract_features(model, inputs, FeatureSettings.from_dict(dict(pipeline.pixel_decoder.config.features)))
        total += _work(pipeline.pixel_decoder, features)
    else:
        with torch.no_grad():
            METHODS[name](model, inputs, pipeline.settings_for("cdm_saliency").saliency.replace(**_changes(name)))
    handle.remove()
    timesteps, patch = torch.zeros(1, dtype=torch.long), pipeline.description.patch_size
    embedding = pipeline.condition_embedding(torch.zeros(1, len(pipeline.class_names), 3), torch.tensor([0.5]))
    unet = _work(pipeline.unet, torch.zeros(1, patch**2, size // patch, size // patch), timesteps, embedding)
    total += replace(unet, evaluations=1).times(model.counter.images)
    return total + _work(pipeline.classifier, slices, timesteps).times(sum(classified))


def _work(network: torch.nn.Module, *inputs: object) -> Work:
    moved: list[int] = []

    def note(_module: torch.nn.Module, given: tuple[object, ...], output: object) -> None:
        moved.extend(one.nbytes for one in (*given, output) if isinstance(one, torch.Tensor))

    handles = [module.register_forward_hook(note) for module in network.modules() if not any(module.children())]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(*inputs)
    for handle in handles:
        handle.remove()
    return Work(float(counter.get_total_flops()) / 2, float(sum(moved)))


if __name__ == "__main__":
    raise SystemExit(main())

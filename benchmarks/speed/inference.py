"""Whole volumes, method by method in turns, against the published algorithm slice by slice on the same weights."""

from __future__ import annotations

import statistics
import time
from typing import Any

import numpy as np
from torch.utils.flop_counter import FlopCounterMode

from app_cdm.config import SegmentationSettings
from app_cdm.data.volume import Volume, read_volume
from app_cdm.metrics.overlap import dice
from app_cdm.metrics.reference import find_reference_cases, read_reference
from app_cdm.pipeline import CDMPipeline
from benchmarks.speed.floor import matrix_rate
from benchmarks.speed.part import Options

PUBLISHED = "reference"
TARGETS = {"cdm_saliency": 10, "cldf": 20, "student": 100}
STAGES = {"read_slices": "reading and cutting", "gate": "gate", "saliency": "maps and masks", "mask": "merging"}


def measure(options: Options) -> dict[str, Any]:
    """Seconds, evaluations and Dice of every validation volume by every method, one after the other on each volume."""
    pipeline = CDMPipeline.from_pretrained(options.model).to(options.device)
    methods: dict[str, SegmentationSettings] = {PUBLISHED: published(pipeline)}
    methods |= {method: pipeline.settings_for(method) for method in reversed(pipeline.methods)}
    scored = methods | {PUBLISHED: gated(pipeline)}
    cases = find_reference_cases(options.data / "lgg", "val", modality="flair")
    rate = matrix_rate(options.device)
    rows: list[dict[str, Any]] = []
    for number, case in enumerate(cases):
        volume = read_volume(case.image)
        reference = read_reference(case, volume)
        if not number:  # networks warm, as in a server
            for settings in methods.values():
                pipeline.segment(first_slices(volume), settings)
        row: dict[str, Any] = {"case": case.image_id, "slices": len(case.tags), "methods": {}}
        for name, settings in methods.items():
            began = time.perf_counter()
            result = pipeline.segment(volume, settings)
            taken = time.perf_counter() - began
            mask = result.mask if settings is scored[name] else pipeline.segment(volume, scored[name]).mask
            row["methods"][name] = {
                "seconds": taken,
                "stages": result.timings,
                "evaluations": result.network_evaluations,
                "dice": dice(mask > 0, reference),
            }
            if not number:
                row["methods"][name]["multiply_adds"] = multiply_adds(pipeline, volume, settings)
        rows.append(row)
        print(case.image_id, {name: round(one["seconds"], 2) for name, one in row["methods"].items()}, flush=True)
    return {"matrix_product": rate, "cases": rows}


def multiply_adds(pipeline: CDMPipeline, volume: Volume, settings: SegmentationSettings) -> float:
    """Of one segmentation, the gate included; counted in a run that is not timed."""
    with FlopCounterMode(display=False) as counter:
        pipeline.segment(volume, settings)
    return float(counter.get_total_flops()) / 2


def published(pipeline: CDMPipeline) -> SegmentationSettings:
    """Algorithm 1 slice by slice: two conditions a batch, ten sequential steps, every slice."""
    settings = gated(pipeline)
    return settings.replace(saliency=settings.saliency.replace(batch_images=2), mask=settings.mask.replace(gate="off"))


def gated(pipeline: CDMPipeline) -> SegmentationSettings:
    """The same with the gate that the others have, which its Dice is taken with: without it every slice would get a mask."""
    settings = pipeline.settings_for("cdm_saliency")
    return settings.replace(saliency=settings.saliency.replace(mode="reference"))


def first_slices(volume: Volume) -> Volume:
    """Two slices of a volume."""
    return Volume(np.ascontiguousarray(volume.array[:, :, :2]), volume.affine)


def describe(result: dict[str, Any]) -> list[str]:
    """Ratios of the sums over all volumes, and where the time goes."""
    rows = result["cases"]
    total = {name: sum(row["methods"][name]["seconds"] for row in rows) for name in rows[0]["methods"]}
    lines = [
        f"{len(rows)} `lgg` validation volumes ({sum(row['slices'] for row in rows)} slices), from the image in memory to the mask on its "
        "grid. Each volume goes through all methods in turn, in one process. As published: two conditions a batch, ten sequential steps, "
        "slice by slice, every slice; its Dice is that with the gate that all have. Share of the floor: of the first volume, the time "
        "that its multiply-adds would take at the rate of the matrix product, against the time it took, everything included.",
        "",
        "| method | seconds a volume | median | times faster | asked | U-Net evaluations a slice | share of the floor | volume Dice |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, seconds in total.items():
        own = [row["methods"][name] for row in rows]
        evaluations = sum(one["evaluations"] for one in own) / sum(row["slices"] for row in rows)
        shown = "as published" if name == PUBLISHED else f"`{name}`"
        lines.append(
            f"| {shown} | {seconds / len(rows):.3f} | {statistics.median(one['seconds'] for one in own):.3f} "
            f"| {total[PUBLISHED] / seconds:.1f} | {TARGETS.get(name, '')} | {evaluations:.1f} "
            f"| {100 * own[0]['multiply_adds'] / result['matrix_product'] / own[0]['seconds']:.0f} % "
            f"| {np.nanmean([one['dice'] for one in own]):.3f} |"
        )
    lines += ["", "Seconds a volume by stage:", "", "| method | " + " | ".join(STAGES.values()) + " |", "|---|" + "---|" * len(STAGES)]
    for name in total:
        shown = "as published" if name == PUBLISHED else f"`{name}`"
        means = [statistics.mean(row["methods"][name]["stages"].get(stage, 0.0) for row in rows) for stage in STAGES]
        lines.append(f"| {shown} | " + " | ".join(f"{mean:.3f}" for mean in means) + " |")
    return lines

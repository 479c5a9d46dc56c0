"""`infer`: masks of images, each written whole beside a JSON of its scores."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from app_cdm.commands.options import Subparsers, add_model, load_model
from app_cdm.config import SegmentationSettings
from app_cdm.data.dataset import SUFFIXES
from app_cdm.data.volume import DicomSeries, Volume, find_dicom_series, read_dicom_series, read_volume, write_map, write_mask
from app_cdm.pipeline import CDMPipeline, Segmentation

Source = Path | DicomSeries


def add_parser(commands: Subparsers) -> None:
    """Adds the command."""
    parser = commands.add_parser("infer", help="segment images: files, folders of images, or folders of DICOM series")
    add_model(parser)
    parser.add_argument("--input", type=Path, required=True, nargs="+", help="images, or folders that hold images or DICOM series")
    parser.add_argument("--output", type=Path, required=True, help="folder for <name>_mask and <name>.json")
    parser.add_argument("--format", choices=[".nii.gz", ".nii", ".nrrd", ".png"], help="default: PNG for pictures, else .nii.gz")
    parser.add_argument("--saliency", action="store_true", help="also write <name>_saliency_<class>")
    parser.add_argument("--overwrite", action="store_true", help="segment again what already has a JSON")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Segments every image; one that fails is named and the others go on. Returns 1 if any failed."""
    pipeline, settings = load_model(options)
    images = find_inputs(options.input)
    options.output.mkdir(parents=True, exist_ok=True)
    failed = 0
    for name, source in (bar := tqdm(images, desc="infer", unit="image")):
        bar.set_postfix_str(name[-40:])
        if (options.output / f"{name}.json").exists() and not options.overwrite:
            continue
        try:
            volume = read_source(source)
            result = pipeline.segment(volume, settings)
            (options.output / name).parent.mkdir(parents=True, exist_ok=True)
            write_result(result, volume, options.output / name, options.format, options.saliency, pipeline, settings)
        except (ValueError, OSError) as error:
            failed += 1
            tqdm.write(f"error: {name}: {error}", file=sys.stderr)
    print(json.dumps({"images": len(images), "failed": failed, "output": str(options.output)}))
    return 1 if failed else 0


def find_inputs(inputs: Sequence[Path]) -> list[tuple[str, Source]]:
    """Output name (with its subfolder) and source (a file or a DICOM series) of every image in files and folders.

    Raises:
        FileNotFoundError: a path does not exist or a folder holds no image.
        ValueError: two images would write to the same name.
    """
    found: list[tuple[str, Source]] = []
    for path in inputs:
        if path.is_file():
            found.append((_stem(path), path))
            continue
        if not path.is_dir():
            raise FileNotFoundError(f"{path} does not exist")
        files = sorted(item for item in path.rglob("*") if item.name.endswith(SUFFIXES) and not item.name.startswith("."))
        series = find_dicom_series(path)
        if not files and not series:
            raise FileNotFoundError(f"{path} holds no image ({', '.join(SUFFIXES)}) and no DICOM series")
        found += [(str(item.relative_to(path).parent / _stem(item)), item) for item in files] + [(item.uid, item) for item in series]
    names = [name for name, _ in found]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise ValueError(f"several inputs are named {doubled[:3]}: infer them into different output folders")
    return found


def _stem(path: Path) -> str:
    suffix = next((suffix for suffix in SUFFIXES if path.name.endswith(suffix)), path.suffix)
    return path.name.removesuffix(suffix)


def read_source(source: Source) -> Volume:
    """Reads a file or a DICOM series."""
    return read_volume(source) if isinstance(source, Path) else read_dicom_series(source)


def write_result(
    result: Segmentation,
    volume: Volume,
    base: Path,
    suffix: str | None,
    with_saliency: bool,
    pipeline: CDMPipeline,
    settings: SegmentationSettings,
) -> None:
    """Writes mask and maps, then the JSON, whose presence says that the others are complete."""
    suffix = suffix or (".png" if volume.kind == "image" else ".nii.gz")
    write_mask(result.mask, volume, base.with_name(f"{base.name}_mask{suffix}"))
    if with_saliency:
        for name, saliency_map in result.saliency.items():
            write_map(saliency_map, volume, base.with_name(f"{base.name}_saliency_{name}.nii.gz"))
    voxel_ml = float(abs(np.linalg.det(volume.affine[:3, :3]))) / 1000.0
    voxels = {name: int((result.mask == index + 1).sum()) for index, name in enumerate(pipeline.class_names)}
    summary = {
        "image": volume.path.name if volume.path else base.name,
        "model_version": result.model_version,
        "labels": {name: index + 1 for index, name in enumerate(pipeline.class_names)},
        "method": result.method,
        "class_scores": result.class_scores,
        "slice_scores": result.slice_scores,
        "slice_uncertainty": result.slice_uncertainty,
        "slicing_axis": result.slicing_axis,
        "voxels": voxels,
        "ml": {name: count * voxel_ml for name, count in voxels.items()},
        "timings": result.timings,
        "network_evaluations": result.network_evaluations,
        "settings": settings.to_dict(),
    }
    temporary = base.with_name(f".{base.name}.json.{os.getpid()}")
    temporary.write_text(json.dumps(summary, indent=1))
    os.replace(temporary, base.with_name(f"{base.name}.json"))

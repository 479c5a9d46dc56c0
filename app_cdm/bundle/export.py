"""Writes the bundle folder: MONAI's layout, weights as safetensors, there whole or not at all."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from app_cdm.bundle import cdm_student
from app_cdm.bundle.inference import inference_config
from app_cdm.bundle.metadata import bundle_metadata
from app_cdm.bundle.readme import bundle_readme
from app_cdm.data.publishing import publish_folder
from app_cdm.pipeline import CDMPipeline


def export_bundle(pipeline: CDMPipeline, folder: Path, license_file: Path | None = None) -> None:
    """Writes the student of a model as a MONAI bundle.

    Args:
        pipeline: the model.
        folder: of the bundle, which is named after it; an older bundle there is replaced.
        license_file: licence of the weights, copied.

    Raises:
        ValueError: the model has no student, or its mask has no fixed threshold.
        FileExistsError: the folder holds something other than a bundle.
        OSError: the disk refuses; what stood there stays.
    """
    if pipeline.student is None:
        raise ValueError(f"this model has been trained for {list(pipeline.methods)}: a bundle needs a student (train --stages student)")
    if pipeline.description.student_mask.threshold_rule != "fixed":
        raise ValueError(f"student_mask.threshold_rule = {pipeline.description.student_mask.threshold_rule!r}: a bundle knows only 'fixed'")
    final = folder.resolve()
    if final.exists() and not (final / "configs" / "metadata.json").is_file() and (not final.is_dir() or any(final.iterdir())):
        raise FileExistsError(f"{folder} holds something other than a bundle: name another folder")
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = final.with_name(f".{final.name}.{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        _write(pipeline, temporary, final.name, license_file)
        publish_folder(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write(pipeline: CDMPipeline, folder: Path, name: str, license_file: Path | None) -> None:
    student, description = pipeline.student, pipeline.description
    assert student is not None
    for part in ("configs", "docs", "models", "scripts"):
        (folder / part).mkdir(parents=True)
    _write_json(folder / "configs" / "metadata.json", bundle_metadata(pipeline, name, license_file is not None))
    config = inference_config(student, description.preprocess, description.student_mask.fixed_threshold)
    _write_json(folder / "configs" / "inference.json", config)
    (folder / "docs" / "README.md").write_text(bundle_readme(pipeline, name))
    shutil.copyfile(Path(cdm_student.__file__), folder / "scripts" / "cdm_student.py")
    weights = {key: tensor.detach().cpu().contiguous() for key, tensor in student.net.state_dict().items()}
    save_file(weights, folder / "models" / "model.safetensors", metadata={"format": "pt"})
    (folder / "models" / "model.safetensors").chmod(0o644)
    if license_file is not None:
        shutil.copyfile(license_file, folder / "LICENSE")


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")

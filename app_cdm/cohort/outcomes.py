"""What becomes of a case: files beside each other in the output folder, of which the JSON says that the others are complete."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from app_cdm.config import SegmentationSettings
from app_cdm.data.volume import Volume, write_map, write_mask
from app_cdm.data.writing import write_atomically, write_once
from app_cdm.pipeline import Segmentation

MASK_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".png")


@dataclass(frozen=True)
class Failure:
    """Why a case has no mask.

    Attributes:
        reason: for a person.
        kind: name of the error.
        source: what was to be segmented.
        attempts: processes that have worked on it.
    """

    reason: str
    kind: str
    source: str
    attempts: int


class Outcomes:
    """The results and failures in an output folder.

    Args:
        folder: where they are.
        class_names: of the model; class i has mask value i + 1.
        suffix: of masks; by default `.png` for pictures and `.nii.gz` else.
        with_saliency: whether maps are written beside masks.
    """

    def __init__(self, folder: Path, class_names: tuple[str, ...], suffix: str | None = None, with_saliency: bool = False) -> None:
        self.folder, self.class_names, self.suffix, self.with_saliency = folder, class_names, suffix, with_saliency

    def is_done(self, name: str) -> bool:
        """Whether a case has its result."""
        return self._result(name).exists()

    def is_settled(self, name: str) -> bool:
        """Whether a case has its result, or a reason why not."""
        return self.is_done(name) or self._failure(name).exists()

    def result(self, name: str) -> dict[str, Any] | None:
        """What the JSON of a case says; None where it has none.

        Raises:
            ValueError: it is no JSON object.
        """
        try:
            values = json.loads(self._result(name).read_text())
        except FileNotFoundError:
            return None
        if not isinstance(values, dict):
            raise ValueError(f"{self._result(name).name}: no JSON object")
        return values

    def find_other(self, names: Iterable[str]) -> str | None:
        """A case that has a result here and is not among these; None where there is none."""
        known = set(names)
        for file in self.folder.rglob("*.json"):
            path = file.relative_to(self.folder)
            name = str(path.with_name(path.name.removesuffix(".json")))
            if name in known or any(part.startswith(".") for part in path.parts) or not file.is_file():
                continue
            with suppress(ValueError):
                if "model_version" in (self.result(name) or {}):  # which no failure, nor a file of anybody else, says
                    return name
        return None

    def failure(self, name: str) -> Failure | None:
        """Why a case failed; None where it did not."""
        try:
            values = json.loads(self._failure(name).read_text())
            return Failure(values["reason"], values["kind"], values["source"], values["attempts"])
        except FileNotFoundError:
            return None

    def write_result(
        self,
        name: str,
        result: Segmentation,
        volume: Volume,
        settings: SegmentationSettings,
        seconds: float,
        is_own: Callable[[], bool] = lambda: True,
    ) -> bool:
        """Writes mask and maps, then the JSON, unless there is one.

        Args:
            name: of the case.
            result: its segmentation.
            volume: its image.
            settings: the result's.
            seconds: that it took to read and segment.
            is_own: asked before anything is written; False where another process has taken the case over.

        Returns:
            Whether the case has this result now.

        Raises:
            ValueError: the image cannot be written in this format.
            OSError: the disk refuses.
        """
        base = self.folder / name
        base.parent.mkdir(parents=True, exist_ok=True)
        if not is_own() or self.is_done(name):
            return False
        suffix = self.suffix or (".png" if volume.kind == "image" else ".nii.gz")
        write_mask(result.mask, volume, base.with_name(f"{base.name}_mask{suffix}"))
        if self.with_saliency:
            for class_name, saliency_map in result.saliency.items():
                write_map(saliency_map, volume, base.with_name(f"{base.name}_saliency_{class_name}.nii.gz"))
        content = json.dumps(self._describe(name, result, volume, settings, seconds), indent=1).encode()
        is_first = write_once(self._result(name), content)
        self._failure(name).unlink(missing_ok=True)
        return is_first

    def write_failure(self, name: str, failure: Failure) -> None:
        """Writes why a case has no mask, unless it has one by now.

        Raises:
            OSError: the disk refuses.
        """
        if self.is_done(name):
            return
        self._failure(name).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._failure(name), json.dumps(vars(failure), indent=1).encode())

    def forget_failures(self, names: Iterable[str]) -> None:
        """Gives what failed another chance."""
        for name in names:
            self._failure(name).unlink(missing_ok=True)

    def forget_results(self, names: Iterable[str]) -> None:
        """Removes results, the JSON first, so that what is left of one is not taken for whole."""
        for name in names:
            if not self.is_done(name):
                continue
            self._result(name).unlink(missing_ok=True)
            base = self.folder / name
            endings = [f"_mask{suffix}" for suffix in MASK_SUFFIXES] + [f"_saliency_{item}.nii.gz" for item in self.class_names]
            for ending in endings:
                base.with_name(base.name + ending).unlink(missing_ok=True)

    def _result(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def _failure(self, name: str) -> Path:
        return self.folder / f"{name}.error.json"

    def _describe(self, name: str, result: Segmentation, volume: Volume, settings: SegmentationSettings, seconds: float) -> dict[str, Any]:
        voxel_ml = float(abs(np.linalg.det(volume.affine[:3, :3]))) / 1000.0
        voxels = {item: int((result.mask == index + 1).sum()) for index, item in enumerate(self.class_names)}
        return {
            "image": volume.path.name if volume.path else Path(name).name,
            "model_version": result.model_version,
            "labels": {item: index + 1 for index, item in enumerate(self.class_names)},
            "method": result.method,
            "class_scores": result.class_scores,
            "slice_scores": result.slice_scores,
            "slice_uncertainty": result.slice_uncertainty,
            "slicing_axis": result.slicing_axis,
            "voxels": voxels,
            "ml": {item: count * voxel_ml for item, count in voxels.items()},
            "seconds": seconds,
            "timings": result.timings,
            "network_evaluations": result.network_evaluations,
            "settings": settings.to_dict(),
        }

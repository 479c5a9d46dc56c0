"""The trained model as one object: a folder in diffusers' layout in and out, volumes to masks."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, get_args

import numpy as np
import torch
from diffusers import DDPMScheduler, DiffusionPipeline, UNet2DModel

from app_cdm.config import MaskSettings, Method, PreprocessSettings, SaliencySettings, SegmentationSettings, Settings, SettingsError, ranged
from app_cdm.data.publishing import publish_folder
from app_cdm.data.slices import SliceGeometry, SliceStack, cut_slices
from app_cdm.data.volume import Volume
from app_cdm.networks.classifier import NoiseConditionalClassifier
from app_cdm.networks.condition import ConditionEmbedding
from app_cdm.networks.decoder import PixelDecoder
from app_cdm.networks.student import StudentNetwork
from app_cdm.saliency.base import SaliencyModel
from app_cdm.saliency.batches import BatchLimit
from app_cdm.segmentation.gate import decide, joint_logits, map_logits, slice_logits, slice_scores
from app_cdm.segmentation.maps import StudentMaps, map_source, slice_uncertainty
from app_cdm.segmentation.mask import LEAST_PEAK, keep_components, masks_on_source_grid, raise_peaks, smooth_along_slices, thresholds
from app_cdm.segmentation.refinement import refine

Progress = Callable[[float], None]
SLICES_PER_CALL = 8
MODULES = ("unet", "condition_embedding", "classifier", "pixel_decoder", "student")

# Maps of the decoder and the student are probabilities: their threshold is known, and several components are no noise.
PROBABILITY_MASK = MaskSettings(
    threshold_rule="fixed",
    fixed_threshold=0.5,
    least_peak=LEAST_PEAK,
    refinement="appearance",
    components="all",
    saliency_smoothing_mm=0.0,
)

# One draw, no mirror image: a quarter of the evaluations that the maps have which decoder and student learn from.
FAST_SALIENCY = SegmentationSettings(saliency=SaliencySettings(num_draws=1, flip=False))


@dataclass(frozen=True)
class ModelDescription(Settings):
    """What a model must say of itself to be used; stored in its `model_index.json`.

    Attributes:
        class_names: the classes, alphabetically; class i has mask value i + 1.
        patch_size: space-to-depth factor of the U-Net.
        preprocess: how volumes become slices.
        segmentation: default settings of `cdm_saliency`, chosen without pixel labels.
        cldf_mask: how the map of `cldf` becomes a mask; its gate is that of `segmentation`.
        student_mask: the same for `student`.
        exclusive_classes: whether a slice holds one class at most; then the gate decides for the likeliest.
    """

    class_names: tuple[str, ...]
    patch_size: int = ranged(1, 1, 8)
    preprocess: PreprocessSettings = field(default_factory=PreprocessSettings)
    segmentation: SegmentationSettings = FAST_SALIENCY
    cldf_mask: MaskSettings = PROBABILITY_MASK
    student_mask: MaskSettings = PROBABILITY_MASK
    exclusive_classes: bool = False

    def check(self) -> None:
        if not self.class_names or list(self.class_names) != sorted(set(self.class_names)):
            raise SettingsError(f"ModelDescription.class_names = {self.class_names}: must be distinct and in alphabetical order")


@dataclass(frozen=True)
class Segmentation:
    """The answer for one volume.

    Attributes:
        mask: `(X, Y, Z)` uint8 on the source voxel grid; 0 background, i + 1 for class i of the model.
        slice_maps: class -> `(S, H, W)` float32 in [0, 1] at network resolution, in stack order, as the networks made them: smoothed along
            the slices where the settings say so, but not raised or refined as for the mask; see `saliency`.
        geometry: how slices were cut.
        class_scores: class -> probability that the volume holds it (that of its best slice).
        slice_scores: class -> probability of each slice, in the file's voxel order along `slicing_axis`.
        slice_uncertainty: class -> how unsure the mask of each slice is, same order; empty for `cdm_saliency`, whose map is no probability.
        method: what made the maps.
        timings: stage -> seconds.
        network_evaluations: U-Net evaluations, one an image; what is repeated for want of memory counts again.
        model_version: of the weights.
    """

    mask: np.ndarray
    slice_maps: dict[str, np.ndarray]
    geometry: SliceGeometry
    class_scores: dict[str, float]
    slice_scores: dict[str, list[float]]
    slice_uncertainty: dict[str, list[float]]
    method: Method
    timings: dict[str, float]
    network_evaluations: int
    model_version: str

    @property
    def slicing_axis(self) -> int:
        """The file's voxel axis along which slices were taken."""
        return self.geometry.slicing_axis

    @property
    def saliency(self) -> dict[str, np.ndarray]:
        """Class -> `(X, Y, Z)` float32 map in [0, 1] on the source voxel grid; made when asked for."""
        return {name: self.geometry.to_volume(torch.from_numpy(maps)) for name, maps in self.slice_maps.items()}

    @property
    def uncertainty(self) -> dict[str, np.ndarray]:
        """Class -> `(X, Y, Z)` float32 4 p (1 - p) on the source voxel grid, 1 where the map is undecided; empty for `cdm_saliency`."""
        if self.method == "cdm_saliency":
            return {}
        return {name: 4 * saliency * (1 - saliency) for name, saliency in self.saliency.items()}


class CDMPipeline(DiffusionPipeline):  # type: ignore[misc]
    """Segments volumes with a conditional diffusion model that was trained on image-level tags.

    Args:
        unet: the denoising network.
        condition_embedding: tags and slice position to an embedding.
        classifier: of clean and noised slices; gate, guidance and activation maps.
        scheduler: the noise schedule of training.
        description: a `ModelDescription` as plain values.
        training: record of the training run.
        pixel_decoder: of `cldf`, if it has been trained.
        student: of `student`, if it has been trained.

    Example:
        >>> pipeline = CDMPipeline.from_pretrained("model/cdm_lgg_flair")  # doctest: +SKIP
        >>> result = pipeline.segment(read_volume("case.nii.gz"))  # doctest: +SKIP
    """

    _optional_components: ClassVar[list[str]] = ["pixel_decoder", "student"]

    def __init__(
        self,
        unet: UNet2DModel,
        condition_embedding: ConditionEmbedding,
        classifier: NoiseConditionalClassifier,
        scheduler: DDPMScheduler,
        description: dict[str, Any] | None = None,
        training: dict[str, Any] | None = None,
        pixel_decoder: PixelDecoder | None = None,
        student: StudentNetwork | None = None,
    ) -> None:
        super().__init__()
        if not description:  # optional only because diffusers takes every required argument for a network
            raise ValueError("a CDMPipeline needs a description: see ModelDescription")
        self.register_modules(
            unet=unet,
            condition_embedding=condition_embedding,
            classifier=classifier,
            scheduler=scheduler,
            pixel_decoder=pixel_decoder,
            student=student,
        )
        self.register_to_config(description=description, training=training or {})
        self.description = ModelDescription.from_dict(dict(description))
        for module in self.networks.values():
            module.eval().requires_grad_(False)
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
        self._lock = threading.Lock()
        self._version: str | None = None

    @classmethod
    def from_pretrained(cls, folder: str | Path, **options: Any) -> CDMPipeline:
        """Loads a model folder; weights must be safetensors.

        Args:
            folder: written by `save_pretrained`.
            options: of `DiffusionPipeline.from_pretrained`; `disable_mmap=True` lets the files be overwritten while in use.

        Raises:
            FileNotFoundError: the folder holds no model.
            OSError: weights are damaged, missing, or not safetensors.
            ValueError: the description is missing or not allowed.
        """
        if not (Path(folder) / "model_index.json").is_file():
            raise FileNotFoundError(f"{folder} holds no model (no model_index.json): train one or name another folder")
        defaults = {"use_safetensors": True, "local_files_only": True, "dtype": torch.float32, "low_cpu_mem_usage": False}
        pipeline: CDMPipeline = super().from_pretrained(str(folder), **{**defaults, **options})
        return pipeline

    def save_pretrained(self, save_directory: str | Path, dtype: torch.dtype = torch.float32, **options: Any) -> None:
        """Writes the model folder as a whole: a reader sees the old or the new one, never a part.

        Args:
            save_directory: the folder; an existing one is replaced.
            dtype: precision on disk; loading always gives float32.
            options: of `DiffusionPipeline.save_pretrained`.

        Raises:
            OSError: the disk is full or not writable; what stood there stays.
        """
        final = Path(save_directory)
        final.parent.mkdir(parents=True, exist_ok=True)
        temporary = final.with_name(f".{final.name}.{os.getpid()}")
        shutil.rmtree(temporary, ignore_errors=True)
        try:
            networks: dict[str, Any] = {name: torch.nn.Module.to(copy.deepcopy(module), dtype) for name, module in self.networks.items()}
            converted = self.with_networks(**networks)
            DiffusionPipeline.save_pretrained(converted, str(temporary), safe_serialization=True, **options)
            for path in temporary.rglob("*.json"):
                _forget_origin(path)
            for path in temporary.rglob("*"):
                path.chmod(0o755 if path.is_dir() else 0o644)
            publish_folder(temporary, final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    @property
    def networks(self) -> dict[str, torch.nn.Module]:
        """The networks that this model has, by name."""
        return {name: getattr(self, name) for name in MODULES if getattr(self, name) is not None}

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes, alphabetically; class i has mask value i + 1."""
        return self.description.class_names

    @property
    def methods(self) -> tuple[Method, ...]:
        """What this model has been trained for, the most accurate first."""
        has = {"cdm_saliency": True, "cldf": self.pixel_decoder is not None, "student": self.student is not None}
        return tuple(method for method in reversed(get_args(Method)) if has[method])

    @property
    def default_settings(self) -> SegmentationSettings:
        """Settings stored with the weights, for the most accurate method."""
        return self.settings_for(self.methods[0])

    def settings_for(self, method: Method) -> SegmentationSettings:
        """Settings stored with the weights, for one method; all methods share the gate.

        Raises:
            ValueError: the model has not been trained for it.
        """
        if method not in self.methods:
            raise ValueError(f"method = {method!r}: this model has been trained for {list(self.methods)}")
        shared = self.description.segmentation
        if method == "cdm_saliency":
            return shared.replace(method=method)
        own = self.description.cldf_mask if method == "cldf" else self.description.student_mask
        gate = {name: getattr(shared.mask, name) for name in ("gate", "gate_threshold", "gate_smoothing_mm", "slice_consistency")}
        return shared.replace(method=method, mask=own.replace(**gate))

    @property
    def model_version(self) -> str:
        """First 12 hexadecimal digits of the SHA-256 of all weights and of the description."""
        if self._version is None:
            digest = hashlib.sha256(json.dumps(self.description.to_dict(), sort_keys=True).encode())
            for module in self.networks.values():
                for name, tensor in sorted(module.state_dict().items()):
                    digest.update(name.encode())
                    digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
            self._version = digest.hexdigest()[:12]
        return self._version

    def with_settings(self, segmentation: SegmentationSettings, training: Mapping[str, Any] | None = None) -> CDMPipeline:
        """The same networks with other default settings.

        Args:
            segmentation: the new defaults of `cdm_saliency`, and the gate of all methods.
            training: added to the record of the training run.
        """
        description = replace(self.description, segmentation=segmentation.replace(method="cdm_saliency"))
        return self.with_networks(description=description, training=training)

    def with_networks(
        self, description: ModelDescription | None = None, training: Mapping[str, Any] | None = None, **networks: torch.nn.Module | None
    ) -> CDMPipeline:
        """A model of which some networks, the description or the record are others.

        Args:
            description: in place of this one's.
            training: added to the record of the training run.
            networks: by component name; None leaves one out.
        """
        described = (description or self.description).to_dict()
        record = {**dict(self.config.training), **(training or {})}
        modules = {name: getattr(self, name) for name in MODULES} | networks
        return CDMPipeline(scheduler=self.scheduler, description=described, training=record, **modules)

    def __call__(self, volume: Volume, settings: SegmentationSettings | None = None, **options: Any) -> Segmentation:
        """The same as `segment`."""
        return self.segment(volume, settings, **options)

    def segment(
        self,
        volume: Volume,
        settings: SegmentationSettings | None = None,
        class_names: Sequence[str] | None = None,
        positive_slices: Mapping[str, Sequence[bool]] | None = None,
        progress: Progress | None = None,
    ) -> Segmentation:
        """Segments one volume.

        Args:
            volume: the image.
            settings: what to do; the defaults of the model's most accurate method where None.
            class_names: only these classes.
            positive_slices: class -> whether each slice holds it (file order), in place of the gate: the papers' protocol.
            progress: called with the share done, 0 to 1.

        Raises:
            VolumeError: the image cannot be used.
            ValueError: a class name or the number of given slices is wrong, settings contradict each other, or the model has not been
                trained for the method.
            torch.OutOfMemoryError: one slice alone does not fit on the device.
        """
        settings = settings or self.default_settings
        chosen = self._check_classes(class_names)
        clock = _Clock()
        stack = cut_slices(volume, self.description.preprocess, settings.slicing_axis)
        given = {name: _given_slices(stack, name, positive_slices) for name in chosen}
        clock.lap("read_slices")
        # One volume at a time: two would only slow each other down and double the memory.
        with self._lock:
            clock.lap("wait")
            model = self.saliency_model()
            batch = BatchLimit(settings.saliency.batch_images)
            student = None if self.student is None else StudentMaps(self.student, stack, batch)
            logits = self.gate_logits(stack, batch, student)
            spacing, smoothing = stack.geometry.slice_spacing_mm, settings.mask.gate_smoothing_mm
            scores = np.stack([slice_scores(of_class, spacing, smoothing) for of_class in logits.T], axis=1)
            decided = decide(scores, settings.mask, self.description.exclusive_classes)
            clock.lap("gate")
            source = map_source(model, self.pixel_decoder, student, stack, settings, batch)
            answers = {}
            for number, name in enumerate(chosen):
                index = self.class_names.index(name)
                part = None if progress is None else _part_of(progress, number, len(chosen))
                told = given[name]
                positive = decided[:, index] if told is None else told
                answers[name] = self._segment_class(partial(source, index), stack, scores[:, index], positive, settings, part)
            clock.lap("saliency")
        mask = self._merge(volume, answers)
        clock.lap("mask")
        order = stack.geometry.to_file_order
        unsure = {} if settings.method == "cdm_saliency" else {name: slice_uncertainty(answer.maps) for name, answer in answers.items()}
        return Segmentation(
            mask=mask,
            slice_maps={name: answer.maps for name, answer in answers.items()},
            geometry=stack.geometry,
            class_scores={name: float(answer.scores.max()) for name, answer in answers.items()},
            slice_scores={name: [float(s) for s in order(answer.scores)] for name, answer in answers.items()},
            slice_uncertainty={name: [float(u) for u in order(values)] for name, values in unsure.items()},
            method=settings.method,
            timings=clock.laps,
            network_evaluations=model.counter.images,
            model_version=self.model_version,
        )

    def gate_logits(self, stack: SliceStack, batch: BatchLimit | None = None, student: StudentMaps | None = None) -> np.ndarray:
        """`(S, C)` log-odds that slices hold each class, before they are smoothed: the classifier's, with a student the joint ones.

        Args:
            stack: the slices of a volume.
            batch: most images in one call; that of `BatchLimit` itself by default.
            student: maps of the same stack, if some are there already.
        """
        limit = batch or BatchLimit()

        def classify(indices: np.ndarray) -> np.ndarray:
            return limit.run(partial(slice_logits, self.classifier, stack.slices[indices])).numpy()

        every = np.arange(stack.slices.shape[0])
        if self.student is None:
            return classify(every)
        maps = student or StudentMaps(self.student, stack, limit)
        of_maps = np.stack([map_logits(maps(index, every)) for index in range(len(self.class_names))], axis=1)
        return joint_logits(of_maps, classify, stack.geometry.slice_spacing_mm, self.description.exclusive_classes)

    def saliency_model(self) -> SaliencyModel:
        """The networks of the diffusion model, with a new counter of evaluations."""
        description = self.description
        return SaliencyModel(
            self.unet, self.condition_embedding, self.classifier, self.scheduler, description.patch_size, description.exclusive_classes
        )

    def _check_classes(self, class_names: Sequence[str] | None) -> list[str]:
        unknown = sorted(set(class_names or ()) - set(self.class_names))
        if unknown:
            raise ValueError(f"unknown class(es) {unknown}: this model knows {list(self.class_names)}")
        return [name for name in self.class_names if class_names is None or name in class_names]

    def _segment_class(
        self,
        find_maps: Callable[[np.ndarray], np.ndarray],
        stack: SliceStack,
        scores: np.ndarray,
        positive: np.ndarray,
        settings: SegmentationSettings,
        progress: Progress | None,
    ) -> _ClassAnswer:
        geometry = stack.geometry
        wanted = np.flatnonzero(positive)
        maps = np.zeros((len(scores), *stack.slices.shape[2:]), dtype=np.float32)
        for start in range(0, len(wanted), SLICES_PER_CALL):
            part = wanted[start : start + SLICES_PER_CALL]
            maps[part] = find_maps(part)
            if progress is not None and start + len(part) < len(wanted):
                progress((start + len(part)) / len(wanted))
        if progress is not None:
            progress(1.0)
        images = stack.slices[:, 0].numpy()
        maps = smooth_along_slices(maps, positive, geometry.slice_spacing_mm, settings.mask.saliency_smoothing_mm)
        raised = maps.copy()
        raised[positive] = raise_peaks(maps[positive], settings.mask.least_peak)
        limits = thresholds(raised, images, positive, settings.mask)
        refined, limits = refine(raised, limits, images, settings.mask.refinement)
        kept = keep_components(refined > limits[:, None, None], refined, settings.mask)
        return _ClassAnswer(scores, maps, masks_on_source_grid(refined, limits, kept, geometry))

    def _merge(self, volume: Volume, answers: dict[str, _ClassAnswer]) -> np.ndarray:
        """One label map; where classes overlap the one with the higher volume score wins."""
        mask = np.zeros(volume.array.shape, dtype=np.uint8)
        for name in sorted(answers, key=lambda n: float(answers[n].scores.max())):
            mask[answers[name].mask] = self.class_names.index(name) + 1
        return mask


@dataclass(frozen=True)
class _ClassAnswer:
    scores: np.ndarray
    maps: np.ndarray
    mask: np.ndarray


class _Clock:
    """Seconds of each stage."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name] = self.laps.get(name, 0.0) + now - self._last
        self._last = now


def _forget_origin(path: Path) -> None:
    """Takes out of a configuration where its network was loaded from: a path of this machine, which is nobody's business elsewhere."""
    values = json.loads(path.read_text())
    if values.pop("_name_or_path", None) is not None:
        path.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")


def _part_of(progress: Progress, number: int, count: int) -> Progress:
    return lambda share: progress((number + share) / count)


def _given_slices(stack: SliceStack, name: str, positive_slices: Mapping[str, Sequence[bool]] | None) -> np.ndarray | None:
    if positive_slices is None:
        return None
    given = np.asarray(positive_slices.get(name, ()), dtype=bool)
    if given.shape != (stack.slices.shape[0],):
        raise ValueError(f"positive_slices[{name!r}] has {given.size} entries; the volume has {stack.slices.shape[0]} slices")
    return np.ascontiguousarray(stack.geometry.to_file_order(given))

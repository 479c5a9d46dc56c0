"""Typed, validated settings: one frozen dataclass per concern, JSON in and out."""

from __future__ import annotations

import dataclasses
import json
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

T = TypeVar("T", bound="Settings")

Method = Literal["cdm_saliency", "cldf", "student"]
SaliencyMode = Literal[
    "parallel",
    "reference",
    "cg_cdm",
    "derivative",
    "cg_diff",
    "forward_process",
    "gradient",
    "grad_cam",
    "layer_cam",
    "intensity",
]
ThresholdRule = Literal["otsu", "otsu_volume", "fixed"]
GateRule = Literal["auto", "off"]
Components = Literal["largest", "all"]
Refinement = Literal["none", "random_walk", "appearance"]
Sign = Literal["positive", "negative", "magnitude"]


class SettingsError(ValueError):
    """A setting is unknown, of the wrong type or out of range; the message names field, value and allowed range."""


@dataclass(frozen=True)
class Settings:
    """Base of every settings class: checks types on construction and reads or writes JSON.

    Raises:
        SettingsError: a value has the wrong type or lies outside its allowed range.
    """

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for item in dataclasses.fields(self):
            value = _coerce(f"{type(self).__name__}.{item.name}", getattr(self, item.name), hints[item.name])
            object.__setattr__(self, item.name, value)
            low, high = item.metadata.get("range", (None, None))
            for number in value if isinstance(value, tuple) else (value,):
                if low is not None and isinstance(number, int | float) and not low <= number <= high:
                    raise SettingsError(f"{type(self).__name__}.{item.name} = {number!r}: must lie in [{low}, {high}]")
        self.check()

    def check(self) -> None:
        """Checks that involve several fields; overridden where there are any."""

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; tuples become lists."""
        result: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return result

    @classmethod
    def from_dict(cls: type[T], values: dict[str, Any]) -> T:
        """Builds settings from plain values.

        Raises:
            SettingsError: a key is unknown or missing, or a value is not allowed.
        """
        known = {item.name for item in dataclasses.fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise SettingsError(f"{cls.__name__}: unknown setting(s) {unknown}; known are {sorted(known)}")
        required = {f.name for f in dataclasses.fields(cls) if f.default is f.default_factory is dataclasses.MISSING}
        if required - set(values):
            raise SettingsError(f"{cls.__name__}: setting(s) {sorted(required - set(values))} are missing")
        return cls(**values)

    def replace(self: T, **changes: Any) -> T:
        """A copy with some fields changed, checked again."""
        return self.from_dict({**{f.name: getattr(self, f.name) for f in dataclasses.fields(self)}, **changes})

    @classmethod
    def load(cls: type[T], path: Path) -> T:
        """Reads a JSON file written by `save`."""
        return cls.from_dict(json.loads(Path(path).read_text()))


def _coerce(name: str, value: Any, hint: Any) -> Any:
    """Checks `value` against a type hint; ints pass as floats and lists as tuples, nothing else is converted."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        if value not in arguments:
            raise SettingsError(f"{name} = {value!r}: must be one of {list(arguments)}")
        return value
    if origin is tuple:
        if not isinstance(value, tuple | list):
            raise SettingsError(f"{name} = {value!r}: must be a list")
        return tuple(_coerce(name, item, arguments[0]) for item in value)
    if isinstance(hint, type) and issubclass(hint, Settings):
        value = hint.from_dict(value) if isinstance(value, dict) else value
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise SettingsError(f"{name} = {value!r}: must be of type {getattr(hint, '__name__', hint)}")
    if hint is float and value != value:
        raise SettingsError(f"{name} = {value!r}: must be a number")
    return value


def ranged(default: Any, low: float, high: float) -> Any:
    """A dataclass field with a default and an inclusive allowed range."""
    return field(default=default, metadata={"range": (low, high)})


@dataclass(frozen=True)
class PreprocessSettings(Settings):
    """How a volume becomes slices; stored with the weights, so training and inference cannot differ.

    Attributes:
        image_size: side of the square slice a network sees, in pixels.
        lower_percentile: intensity percentile of the foreground that maps to -1.
        upper_percentile: intensity percentile of the foreground that maps to +1.
        crop_foreground: crop in-plane to the bounding box of the foreground before resizing.
        crop_margin: margin around that box, as a fraction of its longer side.
    """

    image_size: int = ranged(64, 16, 1024)
    lower_percentile: float = ranged(0.5, 0.0, 50.0)
    upper_percentile: float = ranged(99.5, 50.0, 100.0)
    crop_foreground: bool = True
    crop_margin: float = ranged(0.02, 0.0, 0.5)

    def check(self) -> None:
        if self.image_size % 8:
            raise SettingsError(f"PreprocessSettings.image_size = {self.image_size}: must be a multiple of 8")


@dataclass(frozen=True)
class SaliencySettings(Settings):
    """How a saliency map is made from the conditional diffusion model.

    Attributes:
        mode: of the conditional diffusion model `parallel` (several noise levels, each one's draws in one batch), `reference`
            (Hu et al. 2023, Algorithm 1), `cg_cdm` (the same with classifier guidance) or `derivative` (exact directional
            derivative); the baselines `cg_diff` (noise and classifier-guided return to health), `forward_process`
            (AnoFPDM), `gradient`, `grad_cam` and `layer_cam` (of the classifier) and `intensity` (the slice itself).
        noise_levels: sigma = sqrt(1 - alpha_bar) of each level of `parallel` and `derivative`.
        num_draws: noise draws a level, of `forward_process` too.
        flip: also evaluate the left-right mirrored slice and average.
        condition_mix: tau of Algorithm 1; the second branch sees tau f(present) + (1 - tau) f(absent).
        num_denoising_steps: R of Algorithm 1.
        reference_noise_level: sigma_Q at which `reference` and `cg_cdm` start.
        guidance_scale: s of classifier guidance in `parallel`, `derivative` and `reference`; 0 switches it off.
        cg_cdm_guidance_scale: s of `cg_cdm`, which always needs guidance.
        cg_diff_noise_level: sigma at which `cg_diff` starts.
        cg_diff_num_steps: denoising steps of `cg_diff` from `cg_diff_noise_level` down to the clean image.
        cg_diff_guidance_scale: s of `cg_diff`, which always needs guidance.
        forward_process_noise_levels: sigma of each step of `forward_process`, ascending.
        gradient_noise_level: largest sigma of `gradient`; 0.46 is t = 300 of 1000.
        sign: whether the target makes the image brighter (`positive`), darker (`negative`) or either (`magnitude`).
        cam_weight: weight of the classifier's LayerCAM added to the mode's map, both scaled to unit peak; 0 leaves it out.
        smoothing_px: standard deviation of Gaussian smoothing at network resolution, in pixels.
        seed: of the noise; every slice draws from its own stream, so batch mates and order cannot matter.
        batch_images: most network images in one forward call, but those of one slice at least; fewer once memory has run out.
    """

    mode: SaliencyMode = "parallel"
    noise_levels: tuple[float, ...] = ranged((0.35, 0.5, 0.65, 0.8), 0.02, 0.995)
    num_draws: int = ranged(2, 1, 64)
    flip: bool = True
    condition_mix: float = ranged(0.95, 0.0, 0.999)
    num_denoising_steps: int = ranged(10, 1, 200)
    reference_noise_level: float = ranged(0.6, 0.02, 0.995)
    guidance_scale: float = ranged(0.0, 0.0, 10000.0)
    cg_cdm_guidance_scale: float = ranged(10.0, 0.0, 10000.0)
    cg_diff_noise_level: float = ranged(0.6, 0.02, 0.995)
    cg_diff_num_steps: int = ranged(50, 1, 1000)
    cg_diff_guidance_scale: float = ranged(100.0, 0.0, 10000.0)
    forward_process_noise_levels: tuple[float, ...] = ranged((0.35, 0.5, 0.65, 0.8), 0.02, 0.995)
    gradient_noise_level: float = ranged(0.46, 0.02, 0.995)
    sign: Sign = "positive"
    cam_weight: float = ranged(0.0, 0.0, 10.0)
    smoothing_px: float = ranged(1.0, 0.0, 10.0)
    seed: int = ranged(0, 0, 2**31 - 1)
    batch_images: int = ranged(64, 2, 4096)

    def check(self) -> None:
        if not self.noise_levels:
            raise SettingsError("SaliencySettings.noise_levels = (): name at least one noise level")
        levels = self.forward_process_noise_levels
        if not levels or list(levels) != sorted(set(levels)):
            raise SettingsError(f"SaliencySettings.forward_process_noise_levels = {levels}: must be distinct and in ascending order")


@dataclass(frozen=True)
class MaskSettings(Settings):
    """How saliency and slice scores become a mask.

    Attributes:
        gate: `auto` lets student (where there is one) and classifier decide which slices hold a class, `off` segments every slice.
        gate_threshold: probability from which a slice counts as positive.
        gate_smoothing_mm: standard deviation of the smoothing of slice scores along the slicing axis, in mm; 0 is none.
        saliency_smoothing_mm: the same for the saliency maps of neighbouring positive slices.
        threshold_rule: `otsu` per slice, `otsu_volume` once over the positive slices of a volume, or `fixed`.
        fixed_threshold: threshold on the map scaled to [0, 1], for `fixed`.
        least_peak: a positive slice whose map peaks lower is scaled up to it for the mask, which must not be empty; 0 leaves maps alone.
        refinement: `appearance` keeps what looks like the rest of the target and moves the boundary to edges of the image; `random_walk`
            does the latter alone; `none` leaves the map as it is.
        components: keep the `largest` component of a slice or `all` of at least `min_component_px`.
        min_component_px: smallest component kept, in network-resolution pixels.
        slice_consistency: drop positive runs shorter than this many slices unless the whole volume has fewer (1 keeps all).
    """

    gate: GateRule = "auto"
    gate_threshold: float = ranged(0.5, 0.0, 1.0)
    gate_smoothing_mm: float = ranged(4.0, 0.0, 100.0)
    saliency_smoothing_mm: float = ranged(4.0, 0.0, 100.0)
    threshold_rule: ThresholdRule = "otsu"
    fixed_threshold: float = ranged(0.5, 0.0, 1.0)
    least_peak: float = ranged(0.0, 0.0, 1.0)
    refinement: Refinement = "none"
    components: Components = "largest"
    min_component_px: int = ranged(4, 1, 10000)
    slice_consistency: int = ranged(2, 1, 100)


@dataclass(frozen=True)
class SegmentationSettings(Settings):
    """Everything that a caller may choose for one segmentation.

    Attributes:
        method: what makes the map: `cdm_saliency` (the conditional diffusion model alone), `cldf` (the pixel decoder on its
            features) or `student` (one pass of a small network).
        saliency: how the map of `cdm_saliency` is made; the others use its `batch_images` alone.
        mask: how the map becomes a mask.
        slicing_axis: voxel axis of the file to slice along (0, 1 or 2); -1 takes the axis with the largest spacing.
    """

    method: Method = "cdm_saliency"
    saliency: SaliencySettings = field(default_factory=SaliencySettings)
    mask: MaskSettings = field(default_factory=MaskSettings)
    slicing_axis: int = ranged(-1, -1, 2)

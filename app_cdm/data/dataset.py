"""Tagged slices in memory: what training sees, and how it draws from it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch

from app_cdm.config import PreprocessSettings
from app_cdm.data.slices import cut_slices
from app_cdm.data.tags import ABSENT, PRESENT, UNKNOWN, TagError, TagTable
from app_cdm.data.volume import VolumeError, read_volume

logger = logging.getLogger(__name__)
SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".png", ".jpg", ".jpeg")
POSITION_BINS = 10
MIN_BY_CHANCE = 5.0  # slices with two classes, from which on it is no accident that there is none


@dataclass(frozen=True)
class TaggedSlices:
    """Slices with their tags.

    Attributes:
        slices: `(N, 1, H, W)` float32 in [-1, 1].
        states: `(N, C)` int8, PRESENT, ABSENT or UNKNOWN.
        positions: `(N,)` float32 in [0, 1] along the slicing axis, NaN where unknown.
        volume_index: `(N,)` int64, which volume a slice belongs to.
        image_ids: the volumes, in order.
        class_names: the classes, in order.
        bags: `(B, 2)` int64, volume and class of every tag that says "present somewhere" of a volume of several slices.
        spacing_mm: of each volume, between its slices; empty where unknown.
    """

    slices: torch.Tensor
    states: torch.Tensor
    positions: torch.Tensor
    volume_index: torch.Tensor
    image_ids: tuple[str, ...]
    class_names: tuple[str, ...]
    bags: torch.Tensor = field(default_factory=lambda: torch.zeros(0, 2, dtype=torch.long))
    spacing_mm: tuple[float, ...] = ()

    @property
    def holds_classes_together(self) -> bool:
        """Whether a slice is tagged with two classes."""
        return bool(((self.states == PRESENT).sum(dim=1) > 1).any())

    @property
    def has_empty_slices(self) -> bool:
        """Whether there is a slice that is known to hold no class."""
        return bool((self.states == ABSENT).all(dim=1).any())

    @property
    def allows_exclusive_classes(self) -> bool:
        """Whether no slice is tagged with two classes, and some hold none: else nothing but the others would show what a class is."""
        return self.has_empty_slices and not self.holds_classes_together

    @property
    def has_exclusive_classes(self) -> bool:
        """Whether the tags say that a slice holds one class at most, as benign and malignant lesions of a picture.

        They allow it, and for each two classes so many slices would hold both, if one had nothing to do with the other, that this is no
        accident.
        """
        present = (self.states == PRESENT).float()
        by_chance = torch.outer(present.sum(dim=0), present.sum(dim=0)) / max(1, len(present))
        pairs = ~torch.eye(len(self.class_names), dtype=torch.bool)
        return self.allows_exclusive_classes and bool(pairs.any()) and bool((by_chance[pairs] >= MIN_BY_CHANCE).all())

    def beside_empty_slices(self) -> TaggedSlices:
        """The same slices, each class told apart from slices without any class alone: on those of another one it is UNKNOWN.

        Where classes exclude each other, a slice of another one shows the like in its place, which says nothing of where a class is.
        """
        has_another = (self.states == PRESENT).any(dim=1, keepdim=True) & (self.states == ABSENT)
        return replace(self, states=torch.where(has_another, UNKNOWN, self.states))


def find_images(folder: Path, image_ids: Mapping[str, object] | list[str], pattern: str = "{image}{suffix}") -> dict[str, Path]:
    """Finds the file of each image id.

    Args:
        folder: where images lie.
        image_ids: the ids of a tag table.
        pattern: file name with `{image}`, and `{suffix}` for any known suffix; for instance `{image}_flair.nii.gz`.

    Raises:
        FileNotFoundError: some images have no file; names the first few.
    """
    found: dict[str, Path] = {}
    for image in image_ids:
        names = [pattern.format(image=image, suffix=suffix) for suffix in SUFFIXES]
        path = next((folder / name for name in dict.fromkeys(names) if (folder / name).is_file()), None)
        if path is not None:
            found[image] = path
    missing = [image for image in image_ids if image not in found]
    if missing:
        raise FileNotFoundError(f"{len(missing)} tagged image(s) have no file {pattern!r} in {folder}: {missing[:5]}")
    return found


def load_tagged_slices(paths: Mapping[str, Path], tags: TagTable, settings: PreprocessSettings) -> TaggedSlices:
    """Reads, cuts and tags every volume; one unreadable volume is an error that names it.

    Raises:
        VolumeError: an image cannot be used.
        TagError: a tag does not fit its image.
    """
    slices, states, positions, volume_index = [], [], [], []
    bags: list[tuple[int, int]] = []
    spacing_mm: list[float] = []
    for index, (image, path) in enumerate(paths.items()):
        try:
            stack = cut_slices(read_volume(path), settings)
        except VolumeError as error:
            raise VolumeError(f"{path.name}: {error}") from error
        in_file_order = tags.states(image, stack.slices.shape[0])
        slices.append(stack.slices)
        states.append(torch.from_numpy(np.ascontiguousarray(stack.geometry.to_file_order(in_file_order))))
        positions.append(stack.positions)
        spacing_mm.append(float(stack.geometry.slice_spacing_mm))
        volume_index.append(torch.full((stack.slices.shape[0],), index))
        if stack.slices.shape[0] > 1:
            bags += [(index, number) for number, name in enumerate(tags.class_names) if tags.tags[image].get(name) is True]
    data = TaggedSlices(
        torch.cat(slices),
        torch.cat(states),
        torch.cat(positions),
        torch.cat(volume_index),
        tuple(paths),
        tags.class_names,
        torch.tensor(bags, dtype=torch.long).reshape(-1, 2),
        tuple(spacing_mm),
    )
    logger.info("loaded %d slices of %d images", len(data.slices), len(paths))
    return data


class BalancedSampler:
    """Draws slices so that for every class present and absent are equally likely.

    Half of the absent slices are drawn to match where along the slicing axis the class is present, so that a network
    cannot tell the classes apart by position alone.

    Args:
        data: the tagged slices.
        generator: source of randomness; its state is all that resuming needs.

    Raises:
        TagError: a class has no absent slice, or neither a present one nor a volume where it is present somewhere.
    """

    def __init__(self, data: TaggedSlices, generator: torch.Generator) -> None:
        self.generator = generator
        bins = (torch.nan_to_num(data.positions, nan=0.0) * (POSITION_BINS - 1e-3)).long()
        in_bags = set(data.bags[:, 1].tolist())
        self.weights = [_class_weights(data.states[:, c], bins, name, c in in_bags) for c, name in enumerate(data.class_names)]

    def draw(self, count: int) -> torch.Tensor:
        """`(count,)` int64 slice indices, shared evenly among classes and states."""
        pairs = [weights for both in self.weights for weights in both]
        sizes = torch.full((len(pairs),), count // len(pairs))
        if count % len(pairs):  # the rest goes to pairs by lot, or the last classes would never be drawn from a small batch
            sizes[torch.randperm(len(pairs), generator=self.generator)[: count % len(pairs)]] += 1
        chosen = [(weights, size) for weights, size in zip(pairs, sizes.tolist(), strict=True) if size]
        return torch.cat([torch.multinomial(weights, size, replacement=True, generator=self.generator) for weights, size in chosen])


def _class_weights(states: torch.Tensor, bins: torch.Tensor, name: str, has_bags: bool) -> tuple[torch.Tensor, ...]:
    """Weights of the present and of the absent slices; of the absent ones alone where only bags are present."""
    present, absent = states == PRESENT, states == ABSENT
    if has_bags and absent.any() and not present.any():
        return (absent.double() / absent.sum(),)
    if not present.any() or not absent.any():
        lacking = "present" if not present.any() else "absent"
        raise TagError(f"class {name!r}: no slice is tagged {lacking}; tag at least one image where it is {lacking}")
    present_per_bin = torch.bincount(bins[present], minlength=POSITION_BINS).double()
    absent_per_bin = torch.bincount(bins[absent], minlength=POSITION_BINS).double()
    matched = (present_per_bin / absent_per_bin.clamp_min(1))[bins] * absent
    uniform = absent.double() / absent.sum()
    if matched.sum() > 0:
        uniform = 0.5 * uniform + 0.5 * matched / matched.sum()
    return present.double() / present.sum(), uniform

"""The feature cache: what it holds, its bounds, interruption and removal; and seeds at the resolution of the features."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from app_cdm.cldf.cache import SLICES_PER_CALL, FeatureCache, half_resolution
from app_cdm.cldf.features import FeatureSettings, extract_features
from app_cdm.saliency.base import SaliencyInputs
from tests.tiny_networks import tiny_inputs, tiny_saliency_model

SETTINGS = FeatureSettings((0.2,), (0.5,), (0, 1))
COUNT = SLICES_PER_CALL + 3
BYTES_A_SLICE = 2 * 2 * (32 * 4 * 4 + 16 * 8 * 8)  # float16, two views


def test_holds_the_features_of_every_slice_in_float16(tmp_path: Path) -> None:
    model, inputs, done = tiny_saliency_model(), tiny_inputs(COUNT), list[int]()
    found = FeatureCache(tmp_path / "a" / "b", 1.0).fill(model, inputs, SETTINGS, done.append)
    assert done == [SLICES_PER_CALL, COUNT]
    for array, expected in zip(found, extract_features(model, inputs, SETTINGS), strict=True):
        assert array.dtype == np.float16
        assert array.shape == expected.shape
        assert isinstance(array, np.memmap)
        assert not array.flags.writeable
        np.testing.assert_allclose(array, expected.numpy(), atol=2e-3, rtol=2e-3)
    assert sum(array.nbytes for array in found) == COUNT * BYTES_A_SLICE


def test_finished_features_are_not_computed_again(tmp_path: Path) -> None:
    model, inputs, done = tiny_saliency_model(), tiny_inputs(2), list[int]()
    first = [np.array(array) for array in FeatureCache(tmp_path / "f", 1.0).fill(model, inputs, SETTINGS)]
    evaluated = model.counter.images
    again = FeatureCache(tmp_path / "f", 1.0).fill(model, inputs, SETTINGS, done.append)
    assert model.counter.images == evaluated
    assert done == []
    for one, other in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_features_of_other_slices_or_settings_are_not_taken_for_these(tmp_path: Path) -> None:
    model, inputs, cache = tiny_saliency_model(), tiny_inputs(2), FeatureCache(tmp_path / "f", 1.0)
    cache.fill(model, inputs, SETTINGS)
    for other, settings in (
        (tiny_inputs(2, seed=5), SETTINGS),
        (tiny_inputs(2, class_index=0), SETTINGS),
        (inputs, FeatureSettings((0.3,), (0.5,), (0, 1))),
    ):
        found = cache.fill(model, other, settings)
        for array, expected in zip(found, extract_features(model, other, settings), strict=True):
            np.testing.assert_allclose(array, expected.numpy(), atol=2e-3, rtol=2e-3)


def test_interrupted_features_are_computed_again(tmp_path: Path) -> None:
    model, inputs, cache = tiny_saliency_model(), tiny_inputs(COUNT), FeatureCache(tmp_path / "f", 1.0)

    def interrupt(_done: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cache.fill(model, inputs, SETTINGS, interrupt)
    assert list((tmp_path / "f").glob("block_*.npy")), "the first part was written"
    (tmp_path / "f" / "left over").touch()
    found = cache.fill(model, inputs, SETTINGS)
    assert {path.name for path in (tmp_path / "f").iterdir()} == {"block_0.npy", "block_1.npy", "done.json"}
    np.testing.assert_allclose(found[1], extract_features(model, inputs, SETTINGS)[1].numpy(), atol=2e-3, rtol=2e-3)


def test_remove_deletes_the_folder_and_nothing_else(tmp_path: Path) -> None:
    cache = FeatureCache(tmp_path / "f", 1.0)
    cache.fill(tiny_saliency_model(), tiny_inputs(1), SETTINGS)
    (tmp_path / "other").touch()
    cache.remove()
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
    cache.remove()  # nothing there


def test_more_than_allowed_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    model, inputs = tiny_saliency_model(), tiny_inputs(4)
    allowed = 4 * BYTES_A_SLICE / 2**30
    with pytest.raises(OSError, match=r"the features take .* GiB, more than the .* GiB allowed: use fewer levels, blocks or slices"):
        FeatureCache(tmp_path / "f", allowed * 0.999).fill(model, inputs, SETTINGS)
    assert not list((tmp_path / "f").glob("*"))
    assert len(FeatureCache(tmp_path / "f", allowed).fill(model, inputs, SETTINGS)[0]) == 4


def test_full_disk_is_told_before_anything_is_written(tmp_path: Path) -> None:
    one = tiny_inputs(1)
    many = SaliencyInputs(one.slices, one.positions, range(2**45), 0)  # type: ignore[arg-type]
    message = re.escape(f"and {tmp_path / 'f'} has ") + r"\d+\.\d GiB free: make room and start again"
    with pytest.raises(OSError, match=message) as caught:
        FeatureCache(tmp_path / "f", 1e12).fill(tiny_saliency_model(), many, SETTINGS)
    assert str(caught.value).startswith(f"the features take {2**45 * BYTES_A_SLICE / 2**30:.1f} GiB")
    assert not list((tmp_path / "f").glob("*"))


@examples(max_examples=30)
@given(st.integers(0, 999), st.sampled_from([(4, 4), (2, 4), (8, 8)]))
def test_seed_of_a_cell_needs_three_quarters_of_its_pixels(seed: int, size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(seed)
    seeds = torch.randint(-1, 2, (2, 8, 8), generator=generator).to(torch.int8)
    seeds[:, :4] = seeds[:, :1, :1]  # where all agree
    found = half_resolution(seeds, size)
    assert found.dtype == torch.int8
    assert found.shape == (2, *size)
    rows, columns = 8 // size[0], 8 // size[1]
    for s, row, column in np.ndindex(2, *size):
        cell = seeds[s, row * rows : (row + 1) * rows, column * columns : (column + 1) * columns].flatten().tolist()
        expected = next((value for value in (0, 1) if cell.count(value) >= 0.75 * len(cell)), -1)
        assert found[s, row, column] == expected

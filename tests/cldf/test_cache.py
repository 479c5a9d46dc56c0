"""The feature cache: what it holds, its bounds, interruption and removal; and seeds at the resolution of the features."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from app_cdm.cldf import cache as cache_module
from app_cdm.cldf.cache import SLICES_PER_CALL, SPARE_BYTES, FeatureCache, half_resolution
from app_cdm.cldf.features import FeatureSettings, extract_features
from app_cdm.saliency.base import SaliencyInputs, SaliencyModel
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


@pytest.mark.parametrize("finished", [0, 1, 2])
@pytest.mark.parametrize("moment", ["while a block is computed", "while a block is written"])
def test_interrupted_features_go_on_behind_the_last_finished_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finished: int, moment: str
) -> None:
    inputs, whole = tiny_inputs(2 * SLICES_PER_CALL + 3), FeatureCache(tmp_path / "whole", 1.0)
    count = len(inputs.slice_indices)
    expected = whole.fill(tiny_saliency_model(), inputs, SETTINGS)
    computed = list[int]()

    def extract(model: SaliencyModel, part: SaliencyInputs, settings: FeatureSettings) -> list[torch.Tensor]:
        if len(part.slice_indices) == 1:  # for its size alone
            return extract_features(model, part, settings)
        if len(computed) == finished and moment == "while a block is computed":
            raise KeyboardInterrupt
        computed.append(len(part.slice_indices))
        return extract_features(model, part, settings)

    def write(path: Path, content: bytes) -> None:
        if len(computed) > finished:  # its features are in the arrays, and nothing says so
            raise KeyboardInterrupt
        path.write_bytes(content)

    with monkeypatch.context() as interrupted, pytest.raises(KeyboardInterrupt):
        interrupted.setattr(cache_module, "extract_features", extract)
        interrupted.setattr(cache_module, "write_atomically", write)
        FeatureCache(tmp_path / "f", 1.0).fill(tiny_saliency_model(), inputs, SETTINGS)
    stops, done, model = [16, 32, count], list[int](), tiny_saliency_model()
    found = FeatureCache(tmp_path / "f", 1.0).fill(model, inputs, SETTINGS, done.append)
    assert done == stops[finished:]
    a_slice = SETTINGS.num_evaluations
    assert model.counter.images == a_slice * (1 + count - [0, *stops][finished])
    assert {path.name for path in (tmp_path / "f").iterdir()} == {"block_0.npy", "block_1.npy", "done.json"}
    for array, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(array, other)


def test_interrupted_features_of_other_slices_or_settings_are_not_gone_on_with(tmp_path: Path) -> None:
    model, inputs = tiny_saliency_model(), tiny_inputs(COUNT)

    def interrupt(_done: int) -> None:
        raise KeyboardInterrupt

    for other, settings in ((tiny_inputs(COUNT, seed=5), SETTINGS), (inputs, FeatureSettings((0.3,), (0.5,), (0, 1)))):
        with pytest.raises(KeyboardInterrupt):
            FeatureCache(tmp_path / "f", 1.0).fill(model, inputs, SETTINGS, interrupt)
        (tmp_path / "f" / "left over").touch()
        done = list[int]()
        found = FeatureCache(tmp_path / "f", 1.0).fill(model, other, settings, done.append)
        assert done == [SLICES_PER_CALL, COUNT]
        assert {path.name for path in (tmp_path / "f").iterdir()} == {"block_0.npy", "block_1.npy", "done.json"}
        np.testing.assert_allclose(found[1], extract_features(model, other, settings)[1].numpy(), atol=2e-3, rtol=2e-3)


def test_interrupted_removal_leaves_nothing_that_is_taken_for_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs, cache = tiny_saliency_model(), tiny_inputs(2), FeatureCache(tmp_path / "f", 1.0)
    expected = [np.array(array) for array in cache.fill(model, inputs, SETTINGS)]

    def interrupt(folder: Path, ignore_errors: bool) -> None:
        (folder / "block_0.npy").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as interrupted, pytest.raises(KeyboardInterrupt):
        interrupted.setattr("shutil.rmtree", interrupt)
        cache.remove()
    for array, other in zip(cache.fill(model, inputs, SETTINGS), expected, strict=True):
        np.testing.assert_array_equal(array, other)


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


@pytest.mark.parametrize("begun", [False, True])
def test_full_disk_is_told_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begun: bool) -> None:
    """What an interrupted call has written needs no more room."""
    model, inputs, cache = tiny_saliency_model(), tiny_inputs(COUNT), FeatureCache(tmp_path / "f", 1.0)
    if begun:
        cache.fill(model, inputs, SETTINGS)
        done = tmp_path / "f" / "done.json"
        done.write_text(json.dumps({**json.loads(done.read_text()), "num_slices": SLICES_PER_CALL}))
    before = {path: path.read_bytes() for path in (tmp_path / "f").glob("*")}
    needed = (COUNT - SLICES_PER_CALL * begun) * BYTES_A_SLICE + SPARE_BYTES
    monkeypatch.setattr("shutil.disk_usage", lambda _path: SimpleNamespace(free=needed - 1))
    size = f"{COUNT * BYTES_A_SLICE / 2**30:.1f}"
    message = re.escape(f"the features take {size} GiB and {tmp_path / 'f'} has 0.5 GiB free: make room and start again")
    with pytest.raises(OSError, match=message):
        cache.fill(model, inputs, SETTINGS)
    assert {path: path.read_bytes() for path in (tmp_path / "f").glob("*")} == before
    monkeypatch.setattr("shutil.disk_usage", lambda _path: SimpleNamespace(free=needed))
    assert len(cache.fill(model, inputs, SETTINGS)[0]) == COUNT


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

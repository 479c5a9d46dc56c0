"""Tagged slices in memory: found, cut, tagged in the right order, and drawn evenly."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from app_cdm.config import PreprocessSettings
from app_cdm.data.dataset import BalancedSampler, TaggedSlices, find_images, load_tagged_slices
from app_cdm.data.tags import ABSENT, PRESENT, UNKNOWN, TagError, TagTable
from app_cdm.data.volume import VolumeError

SIZE = PreprocessSettings(image_size=16, crop_foreground=False)


def save_marked_volume(path: Path, marked: tuple[int, int], num_slices: int, is_upside_down: bool) -> None:
    """A body with a very bright spot on a range of slices, in file order."""
    array = np.full((16, 16, num_slices), 50.0, dtype=np.float32)
    array[:2] = 0.0
    array[6:10, 6:10, marked[0] : marked[1] + 1] = 200.0
    nib.save(nib.Nifti1Image(array, np.diag([1.0, 1.0, -4.0 if is_upside_down else 4.0, 1.0])), path)


def tagged(states: list[list[int]], positions: list[float] | None = None) -> TaggedSlices:
    count = len(states)
    return TaggedSlices(
        torch.zeros(count, 1, 4, 4),
        torch.tensor(states, dtype=torch.int8),
        torch.linspace(0, 1, count) if positions is None else torch.tensor(positions),
        torch.zeros(count, dtype=torch.long),
        ("image",),
        tuple("abcdef"[: len(states[0])]),
    )


def test_images_are_found_with_any_suffix_or_a_pattern(tmp_path: Path) -> None:
    for name in ("a.nii.gz", "b.nrrd", "c.png", "d_flair.nii.gz"):
        (tmp_path / name).touch()
    assert find_images(tmp_path, ["c", "a", "b"]) == {"c": tmp_path / "c.png", "a": tmp_path / "a.nii.gz", "b": tmp_path / "b.nrrd"}
    assert find_images(tmp_path, ["d"], "{image}_flair.nii.gz") == {"d": tmp_path / "d_flair.nii.gz"}
    assert find_images(tmp_path, ["d"], "{image}_flair{suffix}") == {"d": tmp_path / "d_flair.nii.gz"}
    with pytest.raises(FileNotFoundError, match=r"2 tagged image\(s\) have no file .*\['x', 'y'\]"):
        find_images(tmp_path, ["a", "x", "y"])


def test_tags_meet_their_slices_whichever_way_the_file_is_stacked(tmp_path: Path) -> None:
    save_marked_volume(tmp_path / "up.nii.gz", (2, 3), 6, False)
    save_marked_volume(tmp_path / "down.nii.gz", (5, 6), 9, True)
    table = TagTable(("lesion",), {"up": {"lesion": ((2, 3),)}, "down": {"lesion": ((5, 6),)}}, {})
    data = load_tagged_slices(find_images(tmp_path, list(table.tags)), table, SIZE)
    is_marked = data.slices.amax(dim=(1, 2, 3)) > 0.9
    assert is_marked.tolist() == (data.states[:, 0] == PRESENT).tolist()
    assert (data.states[~is_marked, 0] == ABSENT).all()
    assert data.volume_index.tolist() == [0] * 6 + [1] * 9
    assert data.image_ids == ("up", "down")
    assert data.slices.shape == (15, 1, 16, 16)
    assert (data.positions[:6].diff() > 0).all()


def test_unusable_image_or_tag_is_named(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros((16, 16, 3), dtype=np.float32), np.eye(4)), tmp_path / "flat.nii.gz")
    save_marked_volume(tmp_path / "good.nii.gz", (0, 1), 3, False)
    table = TagTable(("lesion",), {"flat": {"lesion": False}, "good": {"lesion": ((2, 3),)}}, {})
    with pytest.raises(VolumeError, match=r"flat\.nii\.gz: the image holds a single intensity"):
        load_tagged_slices({"flat": tmp_path / "flat.nii.gz"}, table, SIZE)
    with pytest.raises(TagError, match=r"image 'good': slice range \[2, 3\]"):
        load_tagged_slices({"good": tmp_path / "good.nii.gz"}, table, SIZE)


def test_present_and_absent_are_drawn_equally_often_for_every_class() -> None:
    states = [[PRESENT, ABSENT]] * 2 + [[ABSENT, PRESENT]] * 50 + [[ABSENT, ABSENT]] * 300 + [[UNKNOWN, ABSENT]] * 40
    data = tagged(states)
    drawn = data.states[BalancedSampler(data, torch.Generator().manual_seed(0)).draw(8000)]
    # A quarter each for a present, a absent, b present and b absent.
    assert (drawn[:2000, 0] == PRESENT).all()
    assert (drawn[2000:4000, 0] == ABSENT).all()
    assert (drawn[4000:6000, 1] == PRESENT).all()
    assert (drawn[6000:, 1] == ABSENT).all()


def test_small_batches_reach_every_class_and_keep_their_size() -> None:
    data = tagged([[PRESENT, ABSENT, ABSENT], [ABSENT, PRESENT, ABSENT], [ABSENT, ABSENT, PRESENT], [ABSENT] * 3])
    sampler = BalancedSampler(data, torch.Generator().manual_seed(0))
    batches = [sampler.draw(2) for _ in range(600)]
    assert all(batch.shape == (2,) for batch in batches)
    share = (data.states[torch.cat(batches)] == PRESENT).float().mean(dim=0)
    # In a sixth of the draws the class itself is asked for; absent slices of the two others hold it now and then.
    assert (share > 1 / 6).all()
    assert share.max() - share.min() < 0.1


def test_unknown_slices_are_not_drawn_for_their_class() -> None:
    data = tagged([[UNKNOWN]] * 50 + [[PRESENT], [ABSENT]])
    assert set(BalancedSampler(data, torch.Generator().manual_seed(0)).draw(200).tolist()) == {50, 51}


def test_half_of_the_absent_slices_lie_where_the_class_is_present() -> None:
    positions = [0.55] * 10 + [0.55] * 10 + [0.05] * 90
    data = tagged([[PRESENT]] * 10 + [[ABSENT]] * 100, positions)
    absent = BalancedSampler(data, torch.Generator().manual_seed(0)).draw(20_000)[10_000:]
    share = float((absent < 20).float().mean())
    # Half are matched, all in the bin of the present ones; of the uniform half a tenth lies there anyway.
    assert share == pytest.approx(0.5 + 0.5 * 0.1, abs=0.02)
    assert len(absent.unique()) == 100


def test_positions_of_matched_slices_follow_those_of_present_ones() -> None:
    generator = torch.Generator().manual_seed(1)
    positions = torch.rand(4000, generator=generator)
    is_present = torch.rand(4000, generator=generator) < positions**2  # mostly towards 1
    data = tagged([[int(p)] for p in is_present], positions.tolist())
    drawn = BalancedSampler(data, torch.Generator().manual_seed(2)).draw(40_000)
    present, absent = positions[drawn[:20_000]].mean(), positions[drawn[20_000:]].mean()
    uniform = positions[~is_present].mean()
    assert absent == pytest.approx(float((present + uniform) / 2), abs=0.02)


def test_no_absent_slice_near_a_present_one_and_unknown_positions_work() -> None:
    data = tagged([[PRESENT]] * 3 + [[ABSENT]] * 3, [0.9] * 3 + [0.1] * 3)
    assert set(BalancedSampler(data, torch.Generator().manual_seed(0)).draw(64)[32:].tolist()) == {3, 4, 5}
    pictures = tagged([[PRESENT]] * 3 + [[ABSENT]] * 3, [float("nan")] * 6)
    assert set(BalancedSampler(pictures, torch.Generator().manual_seed(0)).draw(64).tolist()) == set(range(6))


def test_state_of_the_generator_is_all_that_resuming_needs() -> None:
    data = tagged([[PRESENT], [ABSENT]] * 20)
    generator = torch.Generator().manual_seed(5)
    BalancedSampler(data, generator).draw(7)
    state = generator.get_state()
    later = torch.Generator()
    later.set_state(state)
    assert torch.equal(BalancedSampler(data, generator).draw(9), BalancedSampler(data, later).draw(9))


@pytest.mark.parametrize(("state", "lacking"), [(PRESENT, "absent"), (ABSENT, "present"), (UNKNOWN, "present")])
def test_class_without_present_or_absent_slices_is_refused(state: int, lacking: str) -> None:
    with pytest.raises(TagError, match=f"class 'a': no slice is tagged {lacking}"):
        BalancedSampler(tagged([[state]] * 4), torch.Generator())


def test_classes_that_never_meet_exclude_each_other_unless_it_may_be_an_accident() -> None:
    benign, malignant, normal = [PRESENT, ABSENT], [ABSENT, PRESENT], [ABSENT, ABSENT]
    many = tagged([benign] * 20 + [malignant] * 10 + [normal] * 5)
    assert many.has_exclusive_classes
    assert not tagged([benign] * 4 + [malignant] * 2 + [normal] * 2).has_exclusive_classes  # one slice of both, by chance
    together = tagged([benign] * 20 + [malignant] * 10 + [normal] * 5 + [[PRESENT, PRESENT]])
    assert together.holds_classes_together
    assert not together.has_exclusive_classes
    assert not tagged([[PRESENT]] * 20 + [[ABSENT]] * 20).has_exclusive_classes
    no_empty = tagged([benign] * 20 + [malignant] * 15)  # benign is all that malignant can be told apart from
    assert not no_empty.has_empty_slices
    assert not no_empty.has_exclusive_classes
    rare = [[*state, ABSENT] for state in [benign] * 20 + [malignant] * 10 + [normal] * 5] + [[ABSENT, ABSENT, PRESENT]]
    assert not tagged(rare).has_exclusive_classes  # of the third class nobody can tell


def test_beside_empty_slices_a_class_is_unknown_where_another_is() -> None:
    states = [[PRESENT, ABSENT], [ABSENT, PRESENT], [ABSENT, ABSENT], [UNKNOWN, PRESENT], [UNKNOWN, ABSENT], [PRESENT, PRESENT]]
    data = tagged(states)
    expected = [[PRESENT, UNKNOWN], [UNKNOWN, PRESENT], [ABSENT, ABSENT], [UNKNOWN, PRESENT], [UNKNOWN, ABSENT], [PRESENT, PRESENT]]
    assert data.beside_empty_slices().states.tolist() == expected
    assert data.beside_empty_slices().states.dtype == torch.int8
    assert data.states.tolist() == states

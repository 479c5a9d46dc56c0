"""The student and the slices it sees: neighbours at the borders of volumes, classes, and its folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from app_cdm.networks.student import StudentNetwork, with_neighbours


def numbered(sizes: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Slices whose pixels are their number, and the volume of each."""
    count = sum(sizes)
    volume_index = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    return torch.arange(float(count)).view(count, 1, 1, 1).expand(count, 1, 2, 3), volume_index


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 4), st.integers(0, 99))
def test_neighbours_end_with_their_volume(sizes: list[int], num_neighbours: int, seed: int) -> None:
    slices, volume_index = numbered(sizes)
    indices = torch.randperm(len(slices), generator=torch.Generator().manual_seed(seed))
    found = with_neighbours(slices, indices, volume_index, num_neighbours)
    assert found.shape == (len(indices), 2 * num_neighbours + 1, 2, 3)
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    for row, index in zip(found, indices.tolist(), strict=True):
        volume = int(volume_index[index])
        low, high = starts[volume], starts[volume] + sizes[volume] - 1
        expected = [min(max(index + offset, low), high) for offset in range(-num_neighbours, num_neighbours + 1)]
        assert (row == row[:, :1, :1]).all()
        assert row[:, 0, 0].tolist() == expected


def test_neighbours_at_the_border_of_two_volumes() -> None:
    slices, volume_index = numbered([3, 2])
    found = with_neighbours(slices, torch.tensor([0, 2, 3, 4]), volume_index, 2)[:, :, 0, 0]
    assert found.tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 2, 2], [3, 3, 3, 4, 4], [3, 3, 4, 4, 4]]


def tiny_student(num_classes: int = 2, num_neighbours: int = 1) -> StudentNetwork:
    torch.manual_seed(0)
    return StudentNetwork(num_classes, num_neighbours, (8, 16), 1).eval().requires_grad_(False)


@pytest.mark.parametrize("num_neighbours", [0, 1, 2])
def test_log_odds_of_every_class_and_pixel_see_every_neighbour(num_neighbours: int) -> None:
    student = tiny_student(3, num_neighbours)
    sample = torch.randn(2, 2 * num_neighbours + 1, 16, 16, generator=torch.Generator().manual_seed(0))
    answer = student(sample)
    assert answer.shape == (2, 3, 16, 16)
    assert answer.dtype == torch.float32
    assert answer.min() < 0 < answer.max(), "log-odds, no probabilities"
    for channel in range(sample.shape[1]):
        changed = sample.clone()
        changed[1, channel, 8, 8] += 3
        torch.testing.assert_close(student(changed)[0], answer[0])
        assert (student(changed)[1] - answer[1]).abs().max() > 1e-3
    with pytest.raises(RuntimeError, match="channels"):
        student(torch.zeros(1, 2 * num_neighbours + 2, 16, 16))


def test_batch_mates_change_nothing_but_in_training() -> None:
    student, sample = tiny_student(), torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    together = student(sample)
    for row in range(4):
        torch.testing.assert_close(student(sample[row : row + 1])[0], together[row], atol=1e-5, rtol=1e-4)
    student.train()
    assert not torch.equal(student(sample), student(sample)), "dropout"


def test_averaged_weights_are_the_whole_network() -> None:
    assert not list(tiny_student().buffers()), "a running statistic belongs to the last weights, not to their average"


def test_folder(tmp_path: Path) -> None:
    student, sample = tiny_student(), torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    student.save_pretrained(tmp_path)
    again = StudentNetwork.from_pretrained(tmp_path)
    assert (again.config.num_classes, again.config.num_neighbours, list(again.config.channels)) == (2, 1, [8, 16])
    assert not again.training
    assert torch.equal(again(sample), student(sample))

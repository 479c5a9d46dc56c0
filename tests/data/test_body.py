"""The body: what is bright, with the dark places that it encloses; air and frame are what is dark from the edge on."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from app_cdm.data.body import find_body


def slices_of(*pictures: list[str]) -> np.ndarray:
    """`#` is tissue, `.` black."""
    return np.array([[[0.2 if letter == "#" else -1.0 for letter in row] for row in picture] for picture in pictures])


def test_a_dark_place_inside_is_of_the_body_and_air_is_not() -> None:
    cyst = ["......", ".####.", ".#..#.", ".#..#.", ".####.", "......"]
    open_to_the_edge = ["######", "#....#", "#.##.#", "#.##.#", "#.##.#", "##.###"]
    found = find_body(slices_of(cyst, open_to_the_edge))
    assert found[0].tolist() == np.pad(np.ones((4, 4), dtype=bool), 1).tolist()
    outside = ~found[1]
    assert outside.sum() == 1  # the dark pixel at the lower edge, which touches the place above it at a corner alone
    assert outside[5, 2]
    open_to_the_edge[5] = "#.####"
    assert (~find_body(slices_of(open_to_the_edge))[0]).sum() == 4 + 2 * 3 + 1


def test_neighbouring_slices_do_not_open_a_dark_place() -> None:
    closed = ["###", "#.#", "###"]
    opened = ["#.#", "#.#", "###"]
    found = find_body(slices_of(closed, opened, closed))
    assert found[0].all()
    assert found[2].all()
    assert found[1].tolist() == [[True, False, True], [True, False, True], [True, True, True]]


def test_is_filling_the_holes_of_every_slice() -> None:
    slices = np.random.default_rng(0).uniform(-1.05, -0.85, (6, 24, 20)).clip(-1, 1)
    expected = np.stack([ndimage.binary_fill_holes(one > -0.95) for one in slices])
    assert np.array_equal(find_body(slices), expected)
    assert not np.array_equal(expected, slices > -0.95)


def test_empty_and_black_slices_have_no_body() -> None:
    assert not find_body(np.full((2, 4, 4), -1.0)).any()
    assert find_body(np.zeros((2, 4, 4))).all()
    assert find_body(np.zeros((0, 4, 4))).shape == (0, 4, 4)

"""The body: what is bright, and the dark places within it, be they closed or open to one side; air and frame are not."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from app_cdm.data.body import find_body


def slices_of(*pictures: list[str]) -> np.ndarray:
    """`#` is tissue, `.` black."""
    return np.array([[[0.2 if letter == "#" else -1.0 for letter in row] for row in picture] for picture in pictures])


def body_of(*picture: str) -> list[str]:
    return ["".join("#" if inside else "." for inside in row) for row in find_body(slices_of(list(picture)))[0]]


def test_a_cyst_is_of_the_body_and_air_is_not() -> None:
    assert body_of("......", ".####.", ".#..#.", ".#..#.", ".####.", "......") == ["......", *[".####."] * 4, "......"]


def test_a_shadow_that_reaches_the_edge_is_of_the_body() -> None:
    assert body_of("######", "##..##", "#...##", "#...##") == ["######"] * 4
    assert body_of("......", "######", "##..##", "......") == ["......", "######", "######", "......"]  # a frame below


def test_air_beside_a_round_body_is_not_of_it() -> None:
    rows, columns = np.mgrid[0:40, 0:40]
    disc = np.hypot(rows - 20, columns - 17) < 14
    slices = np.where(disc & (np.hypot(rows - 22, columns - 15) > 4), 0.1, -1.0)[None]
    assert np.array_equal(find_body(slices)[0], disc)


def test_slices_do_not_see_each_other_and_hold_what_filling_their_holes_gives() -> None:
    slices = np.random.default_rng(0).uniform(-1.05, -0.85, (6, 24, 20)).clip(-1, 1)
    found = find_body(slices)
    for one, body in zip(slices, found, strict=True):
        assert np.array_equal(find_body(one[None])[0], body)
        assert not (ndimage.binary_fill_holes(one > -0.95) & ~body).any()


def test_empty_and_black_slices_have_no_body() -> None:
    assert not find_body(np.full((2, 4, 4), -1.0)).any()
    assert find_body(np.zeros((2, 4, 4))).all()
    assert find_body(np.zeros((0, 4, 4))).shape == (0, 4, 4)

"""The slice whose number is shown is the slice of the file, however the file is turned; and left is left."""

from __future__ import annotations

from tests.host.studies import SHAPE
from tests.page.reader import Reader
from tests.page.volumes import GREY_STEP, NUM_SLICES, RAMPS


def test_the_slice_shown_is_that_of_the_file(reader: Reader) -> None:
    reader.open("case0").hides_opinion()
    for name in sorted(RAMPS):
        reader.picks(f"ramp_{name}")
        for number, way in ((0, ["Home"]), (1, ["ArrowDown"]), (NUM_SLICES - 1, ["End"]), (NUM_SLICES - 3, ["ArrowUp", "ArrowLeft"])):
            reader.press(*way)
            reader.sees("slice-text", f"Slice {number} of 0–{NUM_SLICES - 1}")
            reader.sees_grey(GREY_STEP * number)
    reader.press("PageDown")
    reader.sees("slice-text", f"Slice {NUM_SLICES - 1} of")


def test_left_of_the_patient_is_on_the_right_and_the_nose_is_up(reader: Reader) -> None:
    reader.open("case0").hides_opinion()
    for name in ("halves_ras", "halves_las"):
        reader.picks(name)
        reader.sees_grey(200, 0.6, 0.4)
        assert [reader.grey(across, down) for across, down in ((0.4, 0.4), (0.4, 0.6), (0.6, 0.6))] == [0, 0, 0]


def test_a_picture_is_shown_as_it_is_and_is_present_or_absent(reader: Reader) -> None:
    reader.open("picture").hides_opinion()
    assert reader.text("slice-text") == ""
    assert not reader.page.locator("[data-action=first]").is_visible()
    assert not reader.page.locator("#strip").is_visible()
    reader.press("f")
    reader.sees_tag("edema", "present")
    assert reader.stored("picture") == {"edema": [[0, 0]], "tumor": None}
    reader.press("2", "a", "1", "p")
    reader.sees_tag("tumor", "absent")
    assert reader.stored("picture") == {"edema": [[0, 0]], "tumor": False}


def test_nrrd_and_dicom_are_shown(reader: Reader, series: str) -> None:
    for image in ("nrrd", series):
        reader.open(image).hides_opinion()
        reader.sees("slice-text", f"of 0–{SHAPE[2] - 1}")
        reader.sees_tissue()


def test_window_level_and_zoom_follow_the_keys(reader: Reader) -> None:
    reader.open("halves_ras").hides_opinion()
    before = reader.text("window-text")
    assert before == "Level 128, window 255"
    reader.press("e", "e", "e")
    reader.sees_grey(238, 0.6, 0.4)
    reader.press("q")
    reader.sees("window-text", "window 228")
    assert reader.grey(0.85, 0.2) == 0
    reader.press(*["+"] * 6)
    reader.sees("window-text", "zoom 3.0")
    reader.sees_grey(252, 0.6, 0.1)  # the left front reaches the upper edge
    reader.press(*["Shift+ArrowLeft"] * 6)
    reader.sees_grey(27, 0.6, 0.4)  # what lay to the left of the middle has moved there
    reader.press("0")
    reader.sees("window-text", before)
    reader.sees_grey(200, 0.6, 0.4)
    assert "zoom" not in reader.text("window-text")


def test_the_wheel_scrolls(reader: Reader) -> None:
    reader.open("ramp_axial_up")
    start = int(reader.text("slice-text").split()[1])
    reader.page.mouse.move(400, 300)
    reader.page.mouse.wheel(0, 100)
    reader.sees("slice-text", f"Slice {start + 1} of")
    reader.page.mouse.wheel(0, -100)
    reader.page.mouse.wheel(0, -100)
    reader.sees("slice-text", f"Slice {start - 1} of")

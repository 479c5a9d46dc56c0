"""Tags by keys alone, in a real browser: what is pressed is stored, shown with who gave it, and found again."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import requests
from playwright.sync_api import Browser, expect

from tests.host.server_process import Server
from tests.page.reader import Reader


@pytest.fixture(autouse=True)
def clean(server: Server) -> Iterator[None]:
    """No tag on the cases that are tagged here."""
    images = [f"case{number}" for number in range(4)]
    tags = {image: {"edema": None, "tumor": None} for image in images}
    requests.post(f"{server.url}/tags/bulk", json={"tags": tags, "user": "ann"}, timeout=30).raise_for_status()
    yield


def test_several_classes_and_ranges_are_tagged_undone_and_found_again(reader: Reader) -> None:
    reader.open("case0").goes_to(1).press("f")
    expect(reader.page.locator(".class[data-name=edema] .draft")).to_have_text("first slice 1: now press L on the last one")
    assert reader.stored("case0") == {"edema": None, "tumor": None}, "half a tag is none"
    reader.goes_to(2).press("l")
    reader.sees_tag("edema", "slices 1–2")
    reader.press("2", "a")
    reader.sees_tag("tumor", "absent")
    assert reader.stored("case0") == {"edema": [[1, 2]], "tumor": False}
    reader.sees("status", "Every class is tagged; N opens the next case.")

    reader.press("1", "r").goes_to(4).press("f").goes_to(5).press("l")  # another range
    reader.sees_tag("edema", "slices 1–2, slices 4–5")
    reader.goes_to(0).press("f")  # moves the end of the nearest one
    reader.sees_tag("edema", "slices 0–2, slices 4–5")
    reader.press("u")
    reader.sees_tag("edema", "slices 1–2, slices 4–5")
    assert reader.stored("case0")["edema"] == [[1, 2], [4, 5]]

    reader.page.reload()
    reader.sees_tag("edema", "slices 1–2, slices 4–5")
    reader.sees_tag("tumor", "absent")
    expect(reader.page.locator(".class[data-name=tumor] .by")).to_have_text(re.compile(r"^ann, \d+ \w+, \d\d:\d\d$"))

    reader.press("Control+z", "Control+z", "Control+z")
    reader.sees_tag("edema", "not tagged")
    reader.press("p")
    reader.sees_tag("edema", "present somewhere")
    reader.press("Delete")
    reader.sees_tag("edema", "not tagged")


def test_contradictions_get_the_words_of_the_server_and_nothing_is_stored(reader: Reader) -> None:
    reader.open("case1").goes_to(4).press("f").goes_to(2).press("l")
    reader.sees("status", "[4, 2]")
    reader.sees("status", "Not saved")
    assert reader.stored("case1")["edema"] is None
    expect(reader.page.locator(".class[data-name=edema] .draft")).to_contain_text("refused")
    reader.goes_to(5).press("l")  # the end that was wrong, marked again
    reader.sees_tag("edema", "slices 4–5")
    reader.press("r").goes_to(3).press("f").goes_to(4).press("l")
    reader.sees("status", "overlap")
    assert reader.stored("case1")["edema"] == [[4, 5]]


def test_what_is_half_marked_is_not_left_without_a_word(reader: Reader) -> None:
    reader.open("case1").press("f", "n")
    reader.sees("status", "edema is half marked and not saved")
    assert reader.text("case-name") == "case1"
    reader.press("u")
    expect(reader.page.locator(".class[data-name=edema] .draft")).to_be_hidden()
    reader.press("n")
    expect(reader.page.locator("#case-name")).not_to_have_text("case1", timeout=60_000)
    reader.press("b")
    reader.sees_case("case1")


def test_somebody_elses_tag_is_taken_back_at_the_second_press_only(reader: Reader) -> None:
    bob = {"tags": {"edema": False}, "user": "bob"}
    requests.put(f"{reader.url}/tags/case2", json=bob, timeout=30).raise_for_status()
    reader.open("case2").sees_tag("edema", "absent")
    expect(reader.page.locator(".class[data-name=edema] .by")).to_contain_text("bob")
    reader.press("u")
    reader.sees("status", "The last tag is by bob: press U again")
    assert reader.stored("case2")["edema"] is False
    reader.press("u")
    reader.sees_tag("edema", "not tagged")


def test_the_list_shows_who_tagged_what_and_finds_cases(reader: Reader) -> None:
    requests.put(f"{reader.url}/tags/case3", json={"tags": {"tumor": [[2, 4]]}, "user": "bob"}, timeout=30).raise_for_status()
    reader.open("case0").press("c")
    rows = reader.page.locator("#cases-list button")
    expect(rows.filter(has_text="case3")).to_contain_text("tumor: slices 2–4", timeout=60_000)
    reader.page.locator("#cases-query").focus()
    reader.page.keyboard.type("bob")
    expect(rows).to_have_count(1, timeout=60_000)
    expect(rows.first).to_contain_text("bob")
    assert reader.text("case-name") == "case0", "letters in a text field are no commands"
    reader.press("ArrowDown", "Enter")
    reader.sees_case("case3")
    assert "image=case3" in reader.page.url


def test_links_that_lead_nowhere_are_said_so(reader: Reader) -> None:
    reader.page.goto(f"{reader.url}/tagging/?image=nobody")
    reader.sees("status", "nobody cannot be opened: unknown image 'nobody'")
    reader.page.goto(f"{reader.url}/tagging/?study=1.2.3")
    reader.sees("status", "The study cannot be opened: unknown study '1.2.3'")
    reader.press("n")  # the page goes on working
    expect(reader.page.locator("#slice-text")).to_contain_text("Slice", timeout=60_000)


def test_a_study_opens_its_series(reader: Reader, series: str) -> None:
    study = requests.get(f"{reader.url}/tagging/case/{series}", timeout=60).json()["study"]
    reader.open(None, study=study)
    reader.sees_case(series)
    assert reader.text("case-name") == f"made FLAIR (MR) …{series[-6:]}", "a long id tells nobody what it is"
    reader.press("c")
    reader.page.locator("#cases-query").fill("flair")
    expect(reader.page.locator("#cases-list button")).to_have_text([re.compile(r"^made FLAIR \(MR\) …")], timeout=60_000)
    reader.press("Escape")
    assert not reader.page.locator("#ohif").is_visible(), "OHIF needs a DICOMweb server"


def test_the_opinion_is_shown_and_stays_hidden_once_hidden(reader: Reader) -> None:
    reader.open("case0")
    reader.sees("score-text", "edema here:")
    reader.sees("opinion-text", "in the image")
    assert "Beware" not in reader.text("opinion-text")
    reader.press("2").sees("opinion-text", "Beware: masks may lie anywhere (held-out slices hardly told apart, AUC 0.55)")
    reader.press("1").sees("score-text", "edema here:")
    reply = requests.post(f"{reader.url}/infer/student", params={"image": "case0", "output": "json"}, timeout=60).json()
    number = int(reader.text("slice-text").split()[1])
    reader.sees("score-text", f"{round(100 * reply['slice_scores']['edema'][number])} %")
    strip = reader.page.locator("#strip").screenshot()
    coloured = colours(reader)
    assert coloured > 1000, "the mask of the tiny model covers something"
    reader.press("h")
    best = max(reply["slice_scores"]["edema"])
    reader.sees("score-text", f"{round(100 * best)} %")

    reader.press("o")
    reader.sees("opinion-text", "Hidden")
    assert reader.text("score-text") == "" and colours(reader) == 0
    assert reader.page.locator("#strip").screenshot() != strip
    reader.page.reload()
    reader.sees("slice-text", "Slice")
    reader.sees("opinion-text", "Hidden")
    reader.press("o")
    reader.sees("score-text", "edema here:")
    while reader.text("overlay-text") != "Overlay: none":
        reader.press("m")
    assert colours(reader) == 0, "the overlay can be hidden alone"
    assert "here:" in reader.text("score-text")


def test_a_result_is_accepted_or_rejected_where_the_server_keeps_results(reader: Reader) -> None:
    keeps = requests.get(f"{reader.url}/results/", timeout=30).status_code == 200
    reader.open("case0")
    reader.sees("score-text", "here:")
    for button in ("accept", "reject"):
        assert reader.page.locator(f"#{button}").is_visible() == keeps
    reader.press("y")
    if not keeps:
        reader.sees("status", "This server keeps no results")
        return
    reader.sees("status", "Mask accepted")
    accepted = reader.stored("case0")
    assert None not in accepted.values()
    expect(reader.page.locator(".class[data-name=tumor] .by")).to_contain_text("by mask")
    reader.open("case1")
    reader.sees("score-text", "here:")
    reader.press("x")
    reader.sees("status", "Rejected")
    reader.sees_tag("tumor", "absent")
    assert reader.stored("case1") == {"edema": False, "tumor": False}


def test_a_stranger_is_asked_for_a_name_once(browser: Browser, server: Server) -> None:
    with Reader(browser, server.url, user=None) as reader:
        reader.open()
        reader.page.locator("#user-dialog[open]").wait_for()
        reader.page.keyboard.type("dr carol")
        reader.press("Enter")
        reader.sees("user", "dr carol")
        expect(reader.page.locator("#slice-text, #present-text").first).to_be_visible(timeout=60_000)
        reader.open("case3").press("a")
        reader.sees_tag("edema", "absent")
        reply = requests.get(f"{server.url}/tags/case3", timeout=30).json()
        assert reply["details"]["edema"]["user"] == "dr carol"


def colours(reader: Reader) -> int:
    """Pixels of the image area that are not grey, once two pictures in a row are the same."""
    seen = -1
    while True:
        shown = reader.picture()
        now = int((shown.max(axis=-1) - shown.min(axis=-1) > 24).sum())
        if now == seen:
            return now
        seen = now
        reader.page.wait_for_timeout(250)

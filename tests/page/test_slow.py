"""Answers that are late, lost or out of turn: what is shown and stored stays that of one case."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import requests
from playwright.sync_api import Route, expect

from tests.host.server_process import Server
from tests.host.studies import SHAPE
from tests.page.reader import LIMIT_MS, Reader
from tests.page.volumes import GREY_STEP

# A big volume takes long to unpack, which nothing can stop: what is unpacked while `held` is pending waits for it.
SLOW_UNPACKING = """() => {
  const Plain = DecompressionStream;
  globalThis.held = new Promise((resolve) => { globalThis.letGo = resolve; });
  globalThis.unpacking = 0;
  globalThis.DecompressionStream = class {
    constructor(format) {
      const plain = new Plain(format);
      const gate = globalThis.held;
      globalThis.unpacking += 1;
      this.writable = plain.writable;
      const wait = async (part, out) => { await gate; out.enqueue(part); };
      this.readable = plain.readable.pipeThrough(new TransformStream({ transform: wait }));
    }
  };
}"""


class Held:
    """Requests of the page that wait until they are let go.

    Args:
        reader: whose page.
        pattern: of their addresses.
        method: theirs.
        answers: False lets them reach the server, and holds its answers back.
    """

    def __init__(self, reader: Reader, pattern: str, method: str, *, answers: bool = True) -> None:
        self.reader, self.method, self.answers = reader, method, answers
        self.routes: list[tuple[Route, Any]] = []
        self.is_open = False
        reader.page.route(pattern, self._meet)

    def _meet(self, route: Route) -> None:
        if self.is_open or route.request.method != self.method:
            route.fallback()
        else:
            self.routes.append((route, None if self.answers else route.fetch()))

    def wait(self, number: int = 1) -> None:
        """Waits until so many have come."""
        waits_for(self.reader, lambda: len(self.routes) >= number, f"{number} requests")

    def lose(self) -> None:
        """Lets nobody answer those that wait."""
        while self.routes:
            self.routes.pop(0)[0].abort()

    def let_go(self) -> None:
        """Those that wait are answered, and from now on all at once."""
        self.is_open = True
        while self.routes:
            route, answer = self.routes.pop(0)
            route.fallback() if answer is None else route.fulfill(response=answer)


def waits_for(reader: Reader, condition: Callable[[], bool], what: str) -> None:
    """Waits while the browser goes on."""
    for _ in range(LIMIT_MS // 20):
        if condition():
            return
        reader.page.wait_for_timeout(20)
    raise AssertionError(f"waited in vain for {what}; {reader.state()}")


@pytest.fixture
def reader(reader: Reader) -> Reader:
    """Somebody whose requests can be held: all go through the test from the start.

    Where that begins on a page that is open already, a request at that moment may pass by it unseen, and is waited for in vain.
    """
    reader.page.route("**/nothing", lambda route: route.fallback())
    return reader


@pytest.fixture(autouse=True)
def clean(server: Server) -> Iterator[None]:
    """No tag on the cases that are tagged here."""
    tags = {image: {"edema": None, "tumor": None} for image in ("case0", "case1", "case2")}
    requests.post(f"{server.url}/tags/bulk", json={"tags": tags, "user": "ann"}, timeout=30).raise_for_status()
    yield


def test_an_image_that_is_unpacked_too_late_is_not_shown_under_another_name(reader: Reader) -> None:
    reader.open("ramp_axial_up").hides_opinion()
    reader.page.evaluate(SLOW_UNPACKING)
    reader.press("c")
    reader.page.locator("#cases-list button").filter(has_text="case0").click()
    waits_for(reader, lambda: reader.page.evaluate("unpacking") > 0, "the image to be unpacked")
    reader.page.evaluate("held = Promise.resolve()")
    reader.press("b")  # back to the case before, which is there at once
    reader.sees_case("ramp_axial_up")
    reader.page.evaluate("letGo()")
    reader.page.wait_for_timeout(500)
    reader.goes_to(3).sees_grey(3 * GREY_STEP)
    assert reader.text("slice-text").endswith("of 0–11") and SHAPE[2] != 12


def test_a_verdict_whose_answer_comes_after_the_case_was_left_is_no_error(reader: Reader) -> None:
    reader.open("case1")
    reader.sees("score-text", "here:")
    held = Held(reader, "**/accept*", "POST")
    reader.press("y")
    held.wait()
    reader.picks("case2")
    held.let_go()
    reader.sees("status", "Mask accepted")


def test_what_is_taken_back_is_taken_back_although_it_was_stored_without_an_answer(reader: Reader) -> None:
    reader.open("case0")
    held = Held(reader, "**/tags/case0?class=edema", "PUT", answers=False)
    reader.press("a")
    held.wait()
    assert reader.stored("case0")["edema"] is False
    held.lose()
    reader.sees("status", "A tag is not saved yet, and is sent again: the server does not answer")
    held.wait()  # tried again; stored again, and again without an answer so far
    reader.press("u")
    reader.sees("status", "edema: taken back before it was stored, so not tagged")
    held.let_go()
    reader.sees_tag("edema", "not tagged")
    assert reader.stored("case0")["edema"] is None


def test_an_error_that_is_over_does_not_stay(reader: Reader) -> None:
    reader.open("case0")
    held = Held(reader, "**/tags/case0?class=edema", "PUT")
    reader.press("a")
    held.wait()
    held.lose()
    reader.sees("status", "A tag is not saved yet")
    held.let_go()
    reader.sees_tag("edema", "absent")
    expect(reader.page.locator("#status")).to_have_text("", timeout=LIMIT_MS)


def test_a_second_press_does_not_skip_a_case_and_a_late_choice_takes_none_away(reader: Reader) -> None:
    reader.open("case0")
    held = Held(reader, "**/activelearning/**", "POST")
    reader.press("n", "n")
    held.wait()
    reader.page.wait_for_timeout(200)
    assert len(held.routes) == 1, "two presses are one question"
    reader.picks("case1")
    held.let_go()
    reader.page.wait_for_timeout(300)
    assert reader.text("case-name") == "case1"
    reader.press("n")
    expect(reader.page.locator("#case-name")).not_to_have_text("case1", timeout=LIMIT_MS)


def test_what_is_half_marked_while_a_case_is_chosen_is_not_lost(reader: Reader) -> None:
    reader.open("case0")
    held = Held(reader, "**/activelearning/**", "POST")
    reader.press("n")
    held.wait()
    reader.press("f")
    held.let_go()
    reader.sees("status", "edema is half marked and not saved")
    assert reader.text("case-name") == "case0"


def test_a_tag_that_is_stored_while_its_case_is_opened_again_is_seen(reader: Reader) -> None:
    reader.open("case0")
    puts = Held(reader, "**/tags/case0?class=edema", "PUT")
    reader.press("a")
    puts.wait()
    reader.picks("case1")
    asked = Held(reader, "**/tagging/case/case0", "GET", answers=False)
    reader.press("b")
    asked.wait()  # the server has said what it knew before the tag came
    puts.let_go()
    expect(reader.page.locator("#saved")).to_contain_text("All saved", timeout=LIMIT_MS)
    asked.let_go()
    reader.sees_case("case0")
    reader.sees_tag("edema", "absent")


def test_what_is_typed_while_the_list_is_fetched_goes_into_the_search(reader: Reader) -> None:
    reader.open("case0").press("c")
    expect(reader.page.locator("#cases-list button").first).to_be_focused(timeout=LIMIT_MS)
    reader.press("Escape")
    held = Held(reader, "**/tagging/cases?**", "GET")
    reader.press("c")
    held.wait()
    reader.page.keyboard.type("pic")
    held.let_go()
    rows = reader.page.locator("#cases-list button")
    expect(rows).to_have_count(1, timeout=LIMIT_MS)
    reader.page.keyboard.type("ture")
    expect(reader.page.locator("#cases-query")).to_have_value("picture")
    expect(rows.first).to_contain_text("picture")

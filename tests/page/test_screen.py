"""What the page looks like: contrast, focus, both screens without scroll bars, nothing from another machine."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pytest
import requests
from playwright.sync_api import Browser

from tests.host.server_process import Server
from tests.page.reader import LAPTOP, UPRIGHT, Reader

BACKGROUNDS = ("background", "panel", "raised")
TEXTS = ("text", "muted", "focus", "good", "warn", "bad")
MIN_TEXT_CONTRAST, MIN_GRAPHIC_CONTRAST = 4.5, 3.0


def luminance(colour: str) -> float:
    """Relative luminance of `#rrggbb` (WCAG 2.2)."""
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


@pytest.fixture(params=[LAPTOP, UPRIGHT], ids=["laptop", "upright"])
def screen(request: pytest.FixtureRequest, browser: Browser, server: Server) -> Iterator[Reader]:
    with Reader(browser, server.url, size=request.param, reduced_motion="reduce") as reader:
        yield reader


def test_the_main_task_needs_no_scroll_bar_on_either_screen(screen: Reader, tmp_path_factory: pytest.TempPathFactory) -> None:
    screen.open("case0")
    screen.sees("score-text", "here:")
    size = screen.page.viewport_size
    assert size is not None
    screen.page.screenshot(path=tmp_path_factory.mktemp("screens") / f"{size['width']}.png")
    scrolled = """() => [...document.querySelectorAll("body, main, .panel, .panel .card, header, footer")]
        .filter((part) => part.scrollHeight > part.clientHeight + 1 || part.scrollWidth > part.clientWidth + 1)
        .map((part) => part.className || part.tagName)"""
    assert screen.page.evaluate(scrolled) == []
    for button in screen.page.locator("button:visible").all():
        box = button.bounding_box()
        assert box is not None
        inside = box["x"] >= 0 and box["y"] >= 0 and box["x"] + box["width"] <= size["width"] and box["y"] + box["height"] <= size["height"]
        assert inside, button.inner_text()
        assert button.evaluate("button => button.scrollWidth <= button.clientWidth + 1"), f"cut off: {button.inner_text()}"
    stage = screen.page.locator("#stage").bounding_box()
    assert stage is not None and min(stage["width"], stage["height"]) >= 550, "most of the screen is the image"
    assert screen.page.locator("[data-action=first]").evaluate("button => getComputedStyle(button).animationName") == "none"


def test_contrast_is_enough_for_a_dark_room(reader: Reader) -> None:
    reader.open("case0")
    names = [*BACKGROUNDS, *TEXTS, "score", "line", "primary", "on-primary", *(f"class-{number}" for number in range(1, 10))]
    script = "names => names.map((name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim())"
    colours = dict(zip(names, reader.page.evaluate(script, names), strict=True))
    for text, background in product(TEXTS, BACKGROUNDS):
        assert contrast(colours[text], colours[background]) >= MIN_TEXT_CONTRAST, (text, background)
    assert contrast(colours["on-primary"], colours["primary"]) >= MIN_TEXT_CONTRAST
    for graphic in ("score", *(f"class-{number}" for number in range(1, 10))):
        for background in ("background", "panel", "raised", "line"):
            assert contrast(colours[graphic], colours[background]) >= MIN_GRAPHIC_CONTRAST, (graphic, background)
    used = reader.page.evaluate("() => [getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor]")
    rgb = [tuple(int(colours[name][start : start + 2], 16) for start in (1, 3, 5)) for name in ("text", "background")]
    assert used == [f"rgb({red}, {green}, {blue})" for red, green, blue in rgb], "the variables are what is drawn with"


def test_every_control_is_reached_by_tab_with_a_visible_focus(reader: Reader) -> None:
    reader.open("case0")
    reader.sees("score-text", "here:")
    wanted = reader.page.locator("button:visible:enabled").count() + 1  # and the strip
    reached = set()
    describe = """() => { const at = document.activeElement; const style = getComputedStyle(at);
        return [at.id || at.dataset.action || at.dataset.name || at.tagName, style.outlineStyle, parseFloat(style.outlineWidth)]; }"""
    for _ in range(wanted + 3):
        reader.press("Tab")
        name, style, width = reader.page.evaluate(describe)
        if name != "BODY":
            assert style == "solid" and width >= 3, name
            reached.add(name)
    assert len(reached) == wanted, reached
    reader.page.locator("[data-action=absent]").focus()
    slice_before = reader.text("slice-text")
    reader.press("ArrowDown")
    assert reader.text("slice-text") != slice_before, "keys work wherever the focus is"


def test_the_help_lists_the_keys(reader: Reader) -> None:
    reader.open("case0").press("?")
    reader.sees("help-keys", "last slice that shows it")
    reader.press("a")
    assert reader.stored("case0").get("edema") is not False, "a key in a dialog is no tag"
    reader.press("Escape")
    assert not reader.page.locator("#help-dialog").is_visible()


def test_the_policy_lets_nothing_in_from_outside(reader: Reader, server: Server) -> None:
    for path in ("", "js/main.js", "css/page.css", "vendor/niivue.js"):
        reply = requests.get(f"{server.url}/tagging/{path}", timeout=30)
        assert reply.status_code == 200
        policy = reply.headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self';") and "http" not in policy and "unsafe" not in policy
        assert reply.headers["X-Content-Type-Options"] == "nosniff"
    reader.open("case0")
    reader.sees("score-text", "here:")
    refused = reader.page.evaluate("() => fetch('https://example.com/').then(() => 'sent', () => 'refused')")
    assert refused == "refused"
    reader.hosts -= {"example.com"}
    reader.faults.clear()
    assert reader.hosts == {"127.0.0.1"}

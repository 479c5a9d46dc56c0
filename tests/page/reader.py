"""A radiologist at the page: keys in, what is to be seen out."""

from __future__ import annotations

import io
import time
from collections import deque
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import requests
from PIL import Image
from playwright.sync_api import Browser, Page, Request, expect

LIMIT_MS = 60_000
DRAW_LIMIT_S = 10
MOST_TABS = 40
LAST, MOST_SHOWN = 8, 120  # requests that a failure tells, and characters of each
LAPTOP = (1366, 768)
UPRIGHT = (1080, 1920)


class Reader:
    """One browser window with a storage of its own.

    Args:
        browser: where it opens.
        url: address of the server.
        user: the name that the browser remembers; None for a browser that was never here.
        size: width and height in CSS pixels.
    """

    def __init__(self, browser: Browser, url: str, user: str | None = "ann", size: tuple[int, int] = LAPTOP, **options: Any) -> None:
        self.url = url
        self._context = browser.new_context(viewport={"width": size[0], "height": size[1]}, **options)
        self._context.set_default_timeout(LIMIT_MS)
        if user is not None:
            self._context.add_init_script(f"localStorage.getItem('tagging.user') ?? localStorage.setItem('tagging.user', {user!r})")
        self.page: Page = self._context.new_page()
        self.hosts: set[str | None] = set()
        self.faults: list[str] = []
        self.last_requests: deque[str] = deque(maxlen=LAST)
        self.page.on("request", self._note)
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("console", lambda said: self.faults.append(said.text) if "Content Security Policy" in said.text else None)

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._context.close()
        if kind is None:
            self._check()

    def leave(self) -> None:
        """Leaves the page, and forgets everything that it has stored: the next one opens as in a browser that was never here."""
        try:
            self._check()
        finally:
            self.page.unroute_all(behavior="ignoreErrors")
            self.page.goto(f"{self.url}/tagging/js/api.js")  # shown as text: nothing runs that could store something again
            self.page.evaluate("() => { localStorage.clear(); sessionStorage.clear(); }")
            self.faults.clear()
            self.hosts.clear()

    def state(self) -> str:
        """What there is to know about the page, for the message of a test that fails."""
        texts = {name: self.text(name) for name in ("case-name", "slice-text", "status", "saved", "loading")}
        focus = self.page.evaluate("document.activeElement.outerHTML.slice(0, 80)")
        return f"the page says {texts}, {focus!r} has the focus, it threw {self.faults}, its last requests were {list(self.last_requests)}"

    def _note(self, request: Request) -> None:
        self.hosts.add(urlsplit(request.url).hostname)
        self.last_requests.append(f"{request.method} {request.url}"[:MOST_SHOWN])

    def _check(self) -> None:
        assert self.faults == [], "the page has thrown, or broke its own policy"
        assert self.hosts <= {"127.0.0.1", None, ""}, "the page asked another machine for something"

    def open(self, image: str | None = None, **query: str) -> Reader:
        """Opens the page, at a case if one is named, and waits until it is shown."""
        query = query if image is None else {"image": image, **query}
        address = requests.Request("GET", f"{self.url}/tagging/", params=query).prepare().url
        assert address is not None
        self.page.goto(address)
        if image is not None:
            self.sees_case(image)
        return self

    def press(self, *keys: str) -> Reader:
        """Presses keys, one after the other."""
        for key in keys:
            self.page.keyboard.press(key)
        return self

    def tabs_to(self, element: str) -> Reader:
        """Moves the focus to an element by the tab key."""
        for _ in range(MOST_TABS):
            if self.page.evaluate("document.activeElement.id") == element:
                return self
            self.press("Tab")
        raise AssertionError(f"the tab key does not lead to {element}")

    def chooses(self, element: str, value: str) -> Reader:
        """Chooses what a list offers, by keys."""
        self.tabs_to(element)
        for _ in range(self.page.locator(f"#{element} option").count()):
            if self.page.locator(f"#{element}").input_value() == value:
                return self
            self.press("ArrowDown")
        raise AssertionError(f"{element} does not offer {value}")

    def sees(self, element: str, text: Any) -> None:
        """Waits until an element holds a text."""
        expect(self.page.locator(f"#{element}")).to_contain_text(text, timeout=LIMIT_MS)

    def text(self, element: str) -> str:
        return self.page.locator(f"#{element}").inner_text()

    def hides_opinion(self) -> Reader:
        """Switches the model's opinion off, so that nothing lies over the image."""
        if self.page.locator("#opinion-button").get_attribute("aria-pressed") == "true":
            self.press("o")
        self.sees("opinion-text", "Hidden")
        return self

    def sees_case(self, image: str) -> None:
        """Waits until a case is the one shown."""
        expect(self.page.locator("#case-name")).to_have_attribute("title", image, timeout=LIMIT_MS)

    def picks(self, image: str) -> Reader:
        """Opens a case from the list, by keys."""
        self.press("c")
        self.page.keyboard.press("ArrowUp")
        expect(self.page.locator("#cases-list button").first).to_be_visible(timeout=LIMIT_MS)
        self.page.locator("#cases-query").focus()
        self.page.keyboard.insert_text(image)
        expect(self.page.locator("#cases-list button")).to_have_count(1, timeout=LIMIT_MS)
        self.press("ArrowDown", "Enter")
        self.page.locator("#cases-query").evaluate("field => { field.value = ''; }")
        self.sees_case(image)
        return self

    def goes_to(self, number: int) -> Reader:
        """Scrolls to a slice by keys."""
        self.press("Home", *["ArrowDown"] * number)
        self.sees("slice-text", f"Slice {number} of")
        return self

    def sees_tag(self, name: str, text: Any) -> None:
        """Waits until a class shows a tag, and nothing of it is unsaved."""
        row = self.page.locator(f".class[data-name='{name}']")
        expect(row.locator(".value")).to_have_text(text, timeout=LIMIT_MS)
        expect(row.locator(".mark")).to_be_hidden(timeout=LIMIT_MS)

    def picture(self) -> np.ndarray:
        """What is drawn where the image is, `(rows, columns)` grey values; captions and overlay included."""
        shot = self.page.locator("#stage").screenshot()
        return np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")).astype(int)

    def sees_grey(self, value: int, across: float = 0.5, down: float = 0.5) -> None:
        """Waits until a place of the image area has a grey value, give or take what rounding does."""
        deadline = time.monotonic() + DRAW_LIMIT_S
        while abs(self.grey(across, down) - value) > 2:
            assert time.monotonic() < deadline, f"grey value {self.grey(across, down)}, not {value}"

    def sees_tissue(self) -> None:
        """Waits until something is drawn in the middle."""
        deadline = time.monotonic() + DRAW_LIMIT_S
        while self.grey() < 40:
            assert time.monotonic() < deadline, "nothing is drawn in the middle"

    def grey(self, across: float = 0.5, down: float = 0.5) -> int:
        """Grey value at a place of the image area, given as shares of its width and height; of that pixel alone, which is quick."""
        box = self.page.locator("#stage").bounding_box()
        assert box is not None
        place = {"x": int(box["x"] + across * box["width"]), "y": int(box["y"] + down * box["height"]), "width": 1, "height": 1}
        shot = self.page.screenshot(clip=place)  # type: ignore[arg-type]
        red, green, blue = np.asarray(Image.open(io.BytesIO(shot)).convert("RGB")).astype(int)[0, 0]
        assert max(red, green, blue) - min(red, green, blue) <= 2, "something coloured lies over the image"
        return int(green)

    def stored(self, image: str) -> dict[str, Any]:
        """The tags of an image as the server has them."""
        reply = requests.get(f"{self.url}/tags/{image}", timeout=30)
        assert reply.status_code == 200, reply.text
        tags: dict[str, Any] = reply.json()["tags"]
        return tags

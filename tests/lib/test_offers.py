"""When an image was last offered."""

from __future__ import annotations

from typing import Any

import pytest

from lib.activelearning.offers import offered_at


@pytest.mark.parametrize(
    ("strategy", "moment"),
    [
        ({"first": {"ts": 5}, "uncertain": {"ts": 7.5}}, 7.5),
        ({"first": {"ts": "soon"}, "uncertain": {"ts": 7}}, 7.0),
        *(({"first": {"ts": ts}}, 0.0) for ts in ("soon", None, [], -1, 10**400, float("nan"), float("inf"))),
        *((strategy, 0.0) for strategy in (5, None, "first", [1], {}, {"first": 5}, {"first": {}}, {"first": None})),
    ],
)
def test_what_is_no_time_counts_as_never(strategy: Any, moment: float) -> None:
    assert offered_at({"strategy": strategy}) == moment
    assert offered_at({}) == 0.0

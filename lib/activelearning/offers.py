"""When each image was last offered to somebody."""

from __future__ import annotations

import threading
import time
from typing import Any

from monailabel.interfaces.datastore import Datastore

LATEST = 1e11  # no time of an offer comes after this one


class Offers:
    """What the datastore remembers of offers, and what it has not been told yet: the host tells it after the choice.

    Attributes:
        choosing: held from looking to `note`, so that simultaneous clicks do not choose the same image.
    """

    def __init__(self) -> None:
        self.choosing = threading.Lock()
        self._noted: dict[str, float] = {}

    def note(self, image: str) -> None:
        """An image is offered now."""
        self._noted[image] = time.time()

    def times(self, datastore: Datastore) -> dict[str, float]:
        """Image -> seconds since 1970; images that were never offered are missing."""
        objects = list(datastore._datastore.objects.items())  # image by image, the host would copy and resolve every path
        stored = {image: offered_at(entry.image.info) for image, entry in objects if "strategy" in entry.image.info}
        return stored | {image: max(moment, stored.get(image, 0.0)) for image, moment in self._noted.items()}


def offered_at(info: dict[str, Any]) -> float:
    """When an image was last offered, as the host noted it, in seconds since 1970; 0 if never or if that is no time."""
    offers = info.get("strategy")
    times = [offer.get("ts") for offer in offers.values() if isinstance(offer, dict)] if isinstance(offers, dict) else []
    return max((float(moment) for moment in times if isinstance(moment, int | float) and 0 <= moment < LATEST), default=0.0)

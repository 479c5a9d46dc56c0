"""Strategies behind the viewers' Next Sample button: which image is to be tagged next."""

from __future__ import annotations

from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy

from lib.server.errors import UnusableRequestError
from lib.tags.book import TagBook

INCLUDE_TAGGED = "include_tagged"


class TagStrategy(Strategy):  # type: ignore[misc]  # monailabel ships no types
    """Offers images that still need somebody.

    Tagged images are offered again only with the request parameter `include_tagged`.

    Args:
        description: shown to the user.
        tags: tells which images are tagged.
        skips_labelled: pass over images with a final label too, even without tags.
        in_turn: the image that was offered longest ago; otherwise always the first by name.
    """

    def __init__(self, description: str, tags: TagBook, skips_labelled: bool = False, in_turn: bool = True) -> None:
        super().__init__(description)
        self._tags, self._skips_labelled, self._in_turn = tags, skips_labelled, in_turn

    def __call__(self, request: dict[str, Any], datastore: Datastore) -> dict[str, Any] | None:
        """Chooses an image; None when none is left.

        Raises:
            UnusableRequestError: `include_tagged` is neither true nor false.
        """
        include_tagged = request.get(INCLUDE_TAGGED, False)
        if not isinstance(include_tagged, bool):
            raise UnusableRequestError(f"{INCLUDE_TAGGED} = {include_tagged!r}: must be true or false")
        images = self._tags.images.ids()
        if not include_tagged:
            images -= self._tags.complete()
            if self._skips_labelled:
                images &= set(datastore.get_unlabeled_images(request.get("label_tag"), request.get("labels")))
        if not images:
            return None
        if not self._in_turn:
            return {"id": min(images)}
        # The host's own `Random` weighs images by seconds since they were offered, and fails when all weights are zero.
        return {"id": min(images, key=lambda image: (offered_at(datastore.get_image_info(image)), image))}


def strategies(tags: TagBook) -> dict[str, Strategy]:
    """The app's strategies by name; the preferred one also as `random`, which OHIF asks for whatever is chosen."""
    preferred = TagStrategy("Next image without tags for every class or a final label, in turn", tags, skips_labelled=True)
    return {
        "next": preferred,
        "untagged": TagStrategy("Next image without tags for every class, in turn", tags),
        "first": TagStrategy("First image by name without tags for every class", tags, in_turn=False),
        "random": preferred,
    }


def offered_at(info: dict[str, Any]) -> int:
    """When an image was last offered, in seconds since 1970; 0 if never."""
    return max((int(offer.get("ts", 0)) for offer in info.get("strategy", {}).values()), default=0)

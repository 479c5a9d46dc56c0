"""Strategies behind the viewers' Next Sample button: which image is to be tagged next."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from monailabel.interfaces.datastore import Datastore
from monailabel.interfaces.tasks.strategy import Strategy

from lib.activelearning.offers import Offers
from lib.activelearning.scorer import DoubtScorer
from lib.server.errors import UnusableRequestError
from lib.tags.book import TagBook

INCLUDE_TAGGED = "include_tagged"
Order = Callable[[str], Any]


class TagStrategy(Strategy):  # type: ignore[misc]  # monailabel ships no types
    """Offers images that still need somebody.

    Tagged images are offered again only with the request parameter `include_tagged`.

    Args:
        description: shown to the user.
        tags: tells which images are tagged.
        offers: tells which images were offered; shared by all strategies.
        skips_labelled: pass over images with a final label too, even without tags.
        in_turn: the image that was offered longest ago; otherwise always the first by name.
    """

    def __init__(self, description: str, tags: TagBook, offers: Offers, skips_labelled: bool = False, in_turn: bool = True) -> None:
        super().__init__(description)
        self._tags, self._offers, self._skips_labelled, self._in_turn = tags, offers, skips_labelled, in_turn

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
        with self._offers.choosing:
            chosen = min(images, key=self.order(datastore))
            self._offers.note(chosen)
        return {"id": chosen}

    def order(self, datastore: Datastore) -> Order:
        """What images are sorted by; the first one is offered."""
        if not self._in_turn:
            return str
        # The host's own `Random` weighs images by seconds since they were offered, and fails when all weights are zero.
        times = self._offers.times(datastore)
        return lambda image: (times.get(image, 0.0), image)


class Uncertain(TagStrategy):
    """Offers the image of which the classifier is least sure, in turn.

    An image's doubt is that of its most doubtful class among those without a tag, see `doubt`. Of images that were offered
    equally long ago, those not scored yet come after the scored ones, by name; images that cannot be read come last of all.

    Args:
        tags: tells which images are tagged.
        offers: tells which images were offered.
        scorer: gives the doubts found so far; it is woken up, and not waited for.
    """

    def __init__(self, tags: TagBook, offers: Offers, scorer: DoubtScorer) -> None:
        description = "Image without tags for every class or a final label of which the classifier is least sure, in turn"
        super().__init__(description, tags, offers, skips_labelled=True)
        self._scorer = scorer

    def order(self, datastore: Datastore) -> Order:
        """By doubt, among images that were offered equally long ago."""
        self._scorer.wake()
        ranking, times, known = self._scorer.ranking(), self._offers.times(datastore), self._tags.store.known()

        def key(image: str) -> tuple[bool, float, float, str]:
            doubts, doubt = ranking.doubts.get(image), 1.0
            if doubts:  # negative where scored, 1 where not
                tags = known.get(image, {})
                doubt = -max([value for name, value in doubts.items() if name not in tags] or doubts.values())
            return image in ranking.unusable, times.get(image, 0.0), doubt, image

        return key


def strategies(tags: TagBook, scorer: DoubtScorer) -> dict[str, Strategy]:
    """The app's strategies by name; the preferred one also as `random`, which OHIF asks for whatever is chosen."""
    offers = Offers()
    uncertain = Uncertain(tags, offers, scorer)
    return {
        "uncertain": uncertain,
        "next": TagStrategy("Next image without tags for every class or a final label, in turn", tags, offers, skips_labelled=True),
        "untagged": TagStrategy("Next image without tags for every class, in turn", tags, offers),
        "first": TagStrategy("First image by name without tags for every class", tags, offers, in_turn=False),
        "random": uncertain,
    }

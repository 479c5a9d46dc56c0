"""How many images a call of a network may have: fewer once memory has run out."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")


class BatchLimit:
    """The most images in one call, for all networks of one request.

    Results do not depend on it but for rounding, because every slice draws its own noise.

    Args:
        images: to begin with.
    """

    def __init__(self, images: int = 64) -> None:
        self.images = images

    def run(self, compute: Callable[[int], T]) -> T:
        """What `compute` gives; where memory runs out it is called again with half as many images, and so is all that follows.

        Args:
            compute: takes the most images in one call; with 1 it must go slice by slice.

        Raises:
            torch.OutOfMemoryError: one slice alone does not fit.
        """
        while True:
            try:
                return compute(self.images)
            except torch.OutOfMemoryError:
                if self.images == 1:
                    raise
            # Here, not in the handler: until that has ended, the traceback holds what the call had in memory.
            self.images //= 2
            torch.cuda.empty_cache()  # does nothing where CUDA is not in use

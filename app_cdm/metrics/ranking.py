"""How well scores rank images with a tag above images without it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from monai.metrics.rocauc import compute_roc_auc


def tag_auc(scores: Sequence[float], tags: Sequence[bool]) -> float:
    """Area under the ROC curve: the probability that a tagged image scores above an untagged one, ties counting half.

    Args:
        scores: `(N,)` finite, higher means present.
        tags: `(N,)` image-level tags.

    Returns:
        The area; NaN where all tags are equal.

    Raises:
        ValueError: the lengths differ or a score is not finite.

    Example:
        >>> tag_auc([0.1, 0.4, 0.8], [False, True, True])
        1.0
    """
    if len(scores) != len(tags):
        raise ValueError(f"{len(scores)} scores for {len(tags)} tags: must be equally many")
    if not np.isfinite(scores).all():
        raise ValueError("a score is NaN or infinite: must be finite")
    if all(tags) or not any(tags):
        return float("nan")
    order = np.unique(np.asarray(scores, dtype=np.float64), return_inverse=True)[1]  # ranks: float32 would make ties of its own
    return float(compute_roc_auc(torch.from_numpy(order), torch.tensor([int(tag) for tag in tags])))  # type: ignore[arg-type]

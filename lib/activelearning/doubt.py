"""How much the classifier doubts an image, class by class."""

from __future__ import annotations

import numpy as np

from app_cdm.data.slices import cut_slices
from app_cdm.data.volume import Volume
from app_cdm.networks.classifier import NoiseConditionalClassifier
from app_cdm.pipeline import CDMPipeline
from app_cdm.segmentation.gate import slice_logits, slice_scores

# Class -> doubt, 0 to 1.
Doubts = dict[str, float]

MOST_DOUBTFUL_SHARE = 0.1
# The two ends of a lesion are doubtful in every image; alone they must not decide.
MIN_SLICES = 3
BATCH_IMAGES = 32


def find_doubts(pipeline: CDMPipeline, classifier: NoiseConditionalClassifier, volume: Volume) -> Doubts:
    """Doubt of each class of a model in one image; one classifier call for every 32 slices.

    Args:
        pipeline: how volumes become slices and log-odds scores; its gate's smoothing.
        classifier: the pipeline's, or a copy that waits for its turn.
        volume: the image.

    Raises:
        VolumeError: the image cannot be cut into slices.
    """
    stack = cut_slices(volume, pipeline.description.preprocess)
    del volume  # a large one beside that of a request; the slices are small, and scoring them takes long
    logits = slice_logits(classifier, stack.slices, BATCH_IMAGES).numpy()
    smoothing_mm = pipeline.settings_for("cdm_saliency").mask.gate_smoothing_mm
    scores = [slice_scores(logits[:, index], stack.geometry.slice_spacing_mm, smoothing_mm) for index in range(len(pipeline.class_names))]
    return {name: doubt(column) for name, column in zip(pipeline.class_names, scores, strict=True)}


def doubt(scores: np.ndarray) -> float:
    """Mean of `4 p (1 - p)` over the most doubtful tenth of the slices, three slices at least; 1 where p is one half.

    Args:
        scores: `(S,)` probability p that each slice holds the class, as the classifier sees it.

    Example:
        >>> doubt(np.array([0.0, 0.5, 1.0, 0.5, 0.5]))
        1.0
    """
    of_slices = np.sort(4.0 * scores * (1.0 - scores))[::-1]
    count = max(MIN_SLICES, int(np.ceil(MOST_DOUBTFUL_SHARE * len(of_slices))))
    return float(of_slices[:count].mean())

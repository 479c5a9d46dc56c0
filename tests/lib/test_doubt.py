"""How doubtful an image is: the formula, and that it is the classifier's own view of the slices, smoothed as in the gate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app_cdm.data.grid import Volume, VolumeError
from app_cdm.pipeline import CDMPipeline
from lib.activelearning.doubt import doubt, find_doubts
from tests.host.studies import AFFINE, head
from tests.host.tiny_model import CLASS_NAMES, save_tiny_model

SCORES = st.lists(st.floats(0, 1), min_size=1, max_size=60)


def by_hand(scores: list[float]) -> float:
    found = sorted((4 * p * (1 - p) for p in scores), reverse=True)
    count = min(len(found), max(3, -(-len(found) // 10)))
    return sum(found[:count]) / count


@given(SCORES)
def test_doubt_is_the_mean_of_the_most_doubtful_slices(scores: list[float]) -> None:
    assert doubt(np.array(scores)) == pytest.approx(by_hand(scores), abs=1e-12)
    assert 0.0 <= doubt(np.array(scores)) <= 1.0
    assert doubt(1 - np.array(scores)) == pytest.approx(doubt(np.array(scores)), abs=1e-9), "sure of absence is as good as of presence"


def test_the_two_ends_of_a_lesion_do_not_make_an_image_doubtful() -> None:
    clear = np.array([0.0] * 10 + [0.5] + [1.0] * 8 + [0.5] + [0.0] * 10)
    vague = np.where(clear == 1.0, 0.6, clear)
    assert doubt(clear) == pytest.approx(2 / 3)
    assert doubt(vague) > 0.97


def test_doubts_of_an_image_follow_the_scores_of_the_classifier(tmp_path: Path) -> None:
    pipeline = CDMPipeline.from_pretrained(save_tiny_model(tmp_path / "tiny"))
    volume = Volume(head().astype(np.float32), AFFINE)
    found = find_doubts(pipeline, pipeline.classifier, volume)
    shown = pipeline.with_networks(pixel_decoder=None, student=None).segment(volume).slice_scores
    assert set(found) == set(CLASS_NAMES)
    assert found == pytest.approx({name: by_hand(shown[name]) for name in CLASS_NAMES}, abs=1e-5)
    with pytest.raises(VolumeError):
        find_doubts(pipeline, pipeline.classifier, Volume(np.zeros((9, 9, 3), dtype=np.float32), AFFINE))

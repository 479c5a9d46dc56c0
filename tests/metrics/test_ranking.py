"""ROC AUC against the Mann-Whitney statistic."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import mannwhitneyu

from app_cdm.metrics.ranking import tag_auc


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(st.sampled_from([0.0, 0.1, 0.1 + 1e-12, 0.5, 0.9, 1.0]), st.booleans()), min_size=1, max_size=30))
def test_auc_is_mann_whitney(rows: list[tuple[float, bool]]) -> None:
    scores, tags = [score for score, _ in rows], [tag for _, tag in rows]
    present, absent = [s for s, t in rows if t], [s for s, t in rows if not t]
    if not present or not absent:
        assert np.isnan(tag_auc(scores, tags))
        return
    expected = mannwhitneyu(present, absent).statistic / (len(present) * len(absent))
    assert tag_auc(scores, tags) == pytest.approx(expected, abs=1e-9)


def test_bad_scores_are_refused() -> None:
    with pytest.raises(ValueError, match="equally many"):
        tag_auc([0.1], [True, False])
    with pytest.raises(ValueError, match="finite"):
        tag_auc([0.1, float("nan")], [True, False])

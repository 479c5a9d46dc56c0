"""Settings: types and ranges are checked, JSON goes in and out, and nothing unknown passes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app_cdm.config import MaskSettings, PreprocessSettings, SaliencySettings, SegmentationSettings, Settings, SettingsError
from app_cdm.data.augmentation import AugmentationSettings
from app_cdm.networks.presets import PRESETS, NetworkSettings
from app_cdm.pipeline import ModelDescription
from app_cdm.training.optimization import OptimizerSettings
from app_cdm.training.settings import TrainSettings

EVERY: list[Settings] = [
    PreprocessSettings(image_size=128, crop_margin=0.1),
    SaliencySettings(mode="reference", noise_levels=(0.4,), flip=False, seed=7),
    MaskSettings(gate="off", threshold_rule="fixed", fixed_threshold=0.3),
    SegmentationSettings("cdm_saliency", SaliencySettings(num_draws=3), MaskSettings(components="all"), 1),
    AugmentationSettings(gamma=0.0),
    OptimizerSettings(num_steps=3, mixed_precision=False),
    TrainSettings(seed=3, focus_noise_levels=(0.4, 0.5)),
    ModelDescription(("a", "b"), 2, PreprocessSettings(image_size=32)),
    *PRESETS.values(),
]


@pytest.mark.parametrize("settings", EVERY, ids=lambda s: type(s).__name__)
def test_json_round_trip(settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "settings.json"
    path.write_text(json.dumps(settings.to_dict()))
    loaded = type(settings).load(path)
    assert loaded == settings
    assert hash(loaded) == hash(settings)
    assert settings.replace() == settings


@pytest.mark.parametrize("settings", EVERY, ids=lambda s: type(s).__name__)
def test_unknown_key_is_refused_and_the_known_ones_are_named(settings: Settings) -> None:
    values = {**settings.to_dict(), "temperature": 1.0}
    with pytest.raises(SettingsError, match=rf"{type(settings).__name__}: unknown setting\(s\) \['temperature'\]; known are"):
        type(settings).from_dict(values)


def ranges() -> list[Any]:
    return [
        pytest.param(type(settings), item.name, bound, inside, id=f"{type(settings).__name__}.{item.name}-{bound}")
        for settings in EVERY[:8]
        for item in dataclasses.fields(settings)
        for low, high in [item.metadata.get("range", (None, None))]
        if low is not None and not isinstance(getattr(settings, item.name), tuple)
        for bound, inside in ((low, True), (high, True), (low - 1, False), (high + 1, False))
    ]


@pytest.mark.parametrize(("kind", "name", "bound", "is_allowed"), ranges())
def test_both_ends_of_every_range(kind: type[Settings], name: str, bound: float, is_allowed: bool) -> None:
    base = next(settings for settings in EVERY if type(settings) is kind)
    try:
        changed = base.replace(**{name: bound})
    except SettingsError as error:
        # An end of the range may still contradict another field, as an odd image size does; the message says so.
        assert not (is_allowed and "must lie in" in str(error))
        assert f"{kind.__name__}." in str(error)
        assert str(bound) in str(error) or f"{float(bound)}" in str(error)
    else:
        assert is_allowed
        assert getattr(changed, name) == bound


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (SaliencySettings, {"mode": "fast"}, "SaliencySettings.mode = 'fast': must be one of"),
        (SaliencySettings, {"noise_levels": []}, "name at least one noise level"),
        (SaliencySettings, {"noise_levels": [0.5, 1.5]}, r"noise_levels = 1\.5: must lie in \[0\.02, 0\.995\]"),
        (SaliencySettings, {"noise_levels": 0.5}, "must be a list"),
        (SaliencySettings, {"noise_levels": ["a"]}, "must be of type float"),
        (SaliencySettings, {"noise_levels": [float("nan")]}, "must be a number"),
        (SaliencySettings, {"num_draws": 2.0}, "num_draws = 2.0: must be of type int"),
        (SaliencySettings, {"num_draws": True}, "num_draws = True: must be of type int"),
        (SaliencySettings, {"flip": 1}, "flip = 1: must be of type bool"),
        (SaliencySettings, {"smoothing_px": "1"}, "smoothing_px = '1': must be of type float"),
        (SaliencySettings, {"smoothing_px": float("nan")}, "must be a number"),
        (SaliencySettings, {"smoothing_px": float("inf")}, "must lie in"),
        (SaliencySettings, {"seed": None}, "seed = None"),
        (PreprocessSettings, {"image_size": 60}, "image_size = 60: must be a multiple of 8"),
        (SegmentationSettings, {"saliency": {"mode": "x"}}, "SaliencySettings.mode"),
        (SegmentationSettings, {"saliency": "parallel"}, "SegmentationSettings.saliency = 'parallel': must be of type SaliencySettings"),
        (SegmentationSettings, {"mask": SaliencySettings()}, "must be of type MaskSettings"),
        (SegmentationSettings, {"mask": None}, "must be of type MaskSettings"),
        (NetworkSettings, {"image_size": 36}, "image_size = 36: must be a multiple of 8"),
        (NetworkSettings, {"norm_num_groups": 24}, "64 channels are not a multiple of norm_num_groups = 24"),
        (NetworkSettings, {"block_out_channels": []}, "at least one positive number"),
        (NetworkSettings, {"classifier_channels": [0]}, "at least one positive number"),
        (NetworkSettings, {"block_out_channels": [64, 96, 80]}, "80 channels of a level with attention are not a multiple of 32"),
        (TrainSettings, {"preprocess": {"image_size": 128}}, "preprocess.image_size = 128: must be the network's, 64"),
        (TrainSettings, {"focus_noise_levels": [0.8, 0.3]}, "a lowest and a highest level"),
        (TrainSettings, {"focus_noise_levels": [0.8]}, "a lowest and a highest level"),
        (ModelDescription, {}, r"ModelDescription: setting\(s\) \['class_names'\] are missing"),
        (ModelDescription, {"class_names": []}, "alphabetical"),
        (ModelDescription, {"class_names": ["b", "a"]}, "alphabetical"),
        (ModelDescription, {"class_names": ["a", "a"]}, "distinct"),
        (ModelDescription, {"class_names": "ab"}, "must be a list"),
    ],
)
def test_refusals_name_field_and_value(kind: type[Settings], values: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        kind.from_dict(values)


def test_whole_numbers_pass_as_floats_and_lists_as_tuples() -> None:
    settings = SaliencySettings.from_dict({"smoothing_px": 2, "noise_levels": [0.5]})
    assert isinstance(settings.smoothing_px, float)
    assert settings.noise_levels == (0.5,)


def test_settings_cannot_be_changed_and_a_replaced_copy_is_checked() -> None:
    settings = SaliencySettings()
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.seed = 3  # type: ignore[misc]
    with pytest.raises(SettingsError, match="seed"):
        settings.replace(seed=-1)
    with pytest.raises(SettingsError, match="seed"):
        dataclasses.replace(settings, seed=-1)


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


@given(st.dictionaries(st.sampled_from([f.name for f in dataclasses.fields(SaliencySettings)]), PLAIN, max_size=3))
def test_nothing_but_a_settings_error_ever_comes_of_bad_values(values: dict[str, Any]) -> None:
    try:
        settings = SaliencySettings.from_dict(values)
    except SettingsError:
        return
    assert SaliencySettings.from_dict(settings.to_dict()) == settings

"""Start options, option table and reply values, without a server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from app_cdm.config import MaskSettings, Method, SaliencySettings, SegmentationSettings
from lib.configs.segmentation import HOST_KEYS, option_table, read_request
from lib.options import AppOptions, OptionError
from lib.plain import plain

LABELS = {"edema": 1, "tumor": 2}


def test_conf_strings_become_typed_options(tmp_path: Path) -> None:
    conf = {"models": " tiny ", "upload_limit_mb": "5", "allow_origins": "http://a:1, http://b/", "host": "127.0.0.1", "other": "x"}
    options = AppOptions.from_conf(tmp_path, conf)
    assert (options.model, options.upload_limit_bytes, options.is_loopback) == ("tiny", 5 << 20, True)
    assert options.allow_origins == ("http://a:1", "http://b") and options.model_dir == tmp_path / "model"
    assert AppOptions.from_conf(tmp_path, None).model is None


@pytest.mark.parametrize(
    ("key", "value"),
    [("device", "tpu"), ("upload_limit_mb", "0"), ("upload_limit_mb", "much"), ("models", "../x"), ("waiting_requests", "0")],
)
def test_bad_conf_is_refused_by_name(tmp_path: Path, key: str, value: str) -> None:
    with pytest.raises(OptionError, match=key):
        AppOptions.from_conf(tmp_path, {key: value})


@pytest.mark.parametrize(
    ("method", "mode"), [("cdm_saliency", "reference"), ("cdm_saliency", "derivative"), ("cldf", "parallel"), ("student", "parallel")]
)
def test_what_the_table_shows_reads_back_as_the_defaults(method: Method, mode: str) -> None:
    """The first item of a combo box is the default; Slicer turns a zero into an empty field."""
    saliency = SaliencySettings(mode=mode, noise_levels=(0.3, 0.7))  # type: ignore[arg-type]
    defaults = SegmentationSettings(method, saliency, MaskSettings(threshold_rule="fixed", gate_threshold=0.0, components="all"))
    table = option_table(defaults, has_cuda=True)
    sent = {key: value[0] if isinstance(value, list) else value for key, value in table.items()}
    assert read_request(sent, defaults, LABELS).settings == defaults
    as_text = {key: str(value) if value else "" for key, value in sent.items()}
    assert read_request(as_text, defaults, LABELS).settings == defaults
    assert read_request(sent, defaults, LABELS).ignored == ()
    assert json.loads(json.dumps(table)) == table and not HOST_KEYS & set(table)


def test_each_method_shows_its_own_options() -> None:
    tables = {method: set(option_table(SegmentationSettings(method), has_cuda=False)) for method in get_args(Method)}
    shared = {"threshold_rule", "fixed_threshold", "gate", "gate_threshold", "refinement", "components", "device", "store_saliency"}
    assert tables["cldf"] == tables["student"] == shared | {"store_uncertainty"}
    saliency_only = {"mode", "noise_levels", "reference_noise_level", "guidance_scale", "seed"}
    assert tables["cdm_saliency"] == shared | saliency_only


def test_options_of_another_method_are_named_back_unread() -> None:
    defaults = SegmentationSettings("student")
    read = read_request(
        {"mode": "magic", "num_draws": [], "batch_images": "8", "store_uncertainty": "on", "fixed_threshold": 1}, defaults, {}
    )
    assert read.ignored == ("mode", "num_draws") and read.store_uncertainty
    saliency, mask = defaults.saliency.replace(batch_images=8), defaults.mask.replace(fixed_threshold=1.0)
    assert read.settings == defaults.replace(saliency=saliency, mask=mask)
    read = read_request({"store_uncertainty": "perhaps"}, SegmentationSettings(), LABELS)
    assert read.ignored == ("store_uncertainty",) and not read.store_uncertainty


def test_label_prompt_is_read_in_every_form() -> None:
    defaults = SegmentationSettings()
    for prompt, names in (([2], ("tumor",)), ([2, 1, 2], ("edema", "tumor")), ("[1]", ("edema",)), ([], None), (None, None), ("", None)):
        assert read_request({"label_prompt": prompt}, defaults, LABELS).class_names == names


def test_reply_values_are_plain_json() -> None:
    value = {"a": np.float32(0.5), "b": np.array([1, 2]), "c": (float("nan"), float("inf")), 3: Path("x"), "d": np.bool_(True), "e": None}
    assert plain(value) == {"a": 0.5, "b": [1, 2], "c": [None, None], "3": "x", "d": True, "e": None}
    json.dumps(plain(value), allow_nan=False)

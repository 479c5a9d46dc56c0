"""Weakly supervised segmentation of medical images with a conditional diffusion model."""

from app_cdm.config import MaskSettings, PreprocessSettings, SaliencySettings, SegmentationSettings, SettingsError
from app_cdm.data.volume import Volume, VolumeError, read_volume
from app_cdm.networks.classifier import NoiseConditionalClassifier
from app_cdm.networks.condition import ConditionEmbedding
from app_cdm.pipeline import CDMPipeline, ModelDescription, Segmentation

__version__ = "0.1.0"
__all__ = [
    "CDMPipeline",
    "ConditionEmbedding",
    "MaskSettings",
    "ModelDescription",
    "NoiseConditionalClassifier",
    "PreprocessSettings",
    "SaliencySettings",
    "Segmentation",
    "SegmentationSettings",
    "SettingsError",
    "Volume",
    "VolumeError",
    "read_volume",
]

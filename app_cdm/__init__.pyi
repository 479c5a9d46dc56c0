from .config import MaskSettings, PreprocessSettings, SaliencySettings, SegmentationSettings, SettingsError
from .data.volume import Volume, VolumeError, read_volume
from .networks.classifier import NoiseConditionalClassifier
from .networks.condition import ConditionEmbedding
from .pipeline import CDMPipeline, ModelDescription, Segmentation

__version__: str
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

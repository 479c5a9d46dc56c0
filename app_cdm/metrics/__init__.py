"""Accuracy: overlap and surface distance of masks, ranking of tags, intervals over patients."""

"""Inference tasks offered to viewers."""

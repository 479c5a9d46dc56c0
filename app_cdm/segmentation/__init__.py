"""Slice scores and saliency to masks."""

"""Training from image-level tags, resumable at any step."""

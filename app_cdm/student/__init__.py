"""The student: a small U-Net trained on pseudo-masks, which answers in one forward pass."""

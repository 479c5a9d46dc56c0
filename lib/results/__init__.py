"""Results that are kept: made once, looked at, then accepted or rejected."""

"""What is said when the same kind of work is running already."""

from __future__ import annotations


class BusyError(Exception):
    """A training, batch or scoring is running; the message says how far it is, and what to do."""

"""How many images a network sees at once: one rule for all methods."""

from __future__ import annotations

from fastviz._util import checks

__all__ = ["BATCH", "images_at_once"]

BATCH = 32
"""Images in a pass where ``batch_size`` is None: more images are hardly faster and take more memory."""


def images_at_once(batch_size: int | None, usual: int = BATCH) -> int:
    """``batch_size``, or the ``usual`` number for None.

    Raises:
        TypeError, ValueError: it is not a number of images.
    """
    return usual if batch_size is None else checks.whole_number(batch_size, "batch_size", minimum=1)

"""pytorch-grad-cam's own classes, from which ours are derived if it is installed."""

from __future__ import annotations

from typing import Any

__all__ = ["MISSING", "base", "road", "tool"]

MISSING = 'this call needs pytorch-grad-cam itself: pip install "fastviz[grad-cam]"'

tool: Any = None
"""The module ``pytorch_grad_cam``, or None."""
road: Any = None
"""Its ``metrics.road``, or None."""
try:
    import pytorch_grad_cam as tool  # type: ignore[no-redef]
    from pytorch_grad_cam import base_cam  # noqa: F401  (makes it an attribute of the module)
    from pytorch_grad_cam.metrics import road  # type: ignore[no-redef]
except ModuleNotFoundError as missing:
    if (missing.name or "").partition(".")[0] != "pytorch_grad_cam":
        raise


def base(name: str) -> Any:
    """pytorch-grad-cam's class with this name; ``object`` if there is none or it is not installed."""
    return getattr(tool, name, None) or getattr(getattr(tool, "base_cam", None), name, object)

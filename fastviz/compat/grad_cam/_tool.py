"""pytorch-grad-cam's own classes, which ours derive from where it is installed."""

from __future__ import annotations

from typing import Any

__all__ = ["MISSING", "base", "road", "tool"]

MISSING = "this call needs pytorch-grad-cam itself: pip install 'fastviz[grad-cam]'"

tool: Any = None
"""The module ``pytorch_grad_cam``, or None."""
road: Any = None
"""Its ``metrics.road``, or None."""
try:
    import pytorch_grad_cam as tool  # type: ignore[no-redef]
    from pytorch_grad_cam import base_cam  # noqa: F401  (an attribute of the module from here on)
    from pytorch_grad_cam.metrics import road  # type: ignore[no-redef]
except ModuleNotFoundError as missing:
    if (missing.name or "").partition(".")[0] != "pytorch_grad_cam":
        raise


def base(name: str) -> Any:
    """The class of pytorch-grad-cam of this name; ``object`` where it is not installed or has none."""
    return getattr(tool, name, None) or getattr(getattr(tool, "base_cam", None), name, object)

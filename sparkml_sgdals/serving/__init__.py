"""A service over a model path: recommendations, predictions, reasons, and new ratings (no Spark).

Needs the extra `serve`. `serve` runs it; `python -m sparkml_sgdals.serving` is its command line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sparkml_sgdals.serving.server import serve

__all__ = ["serve"]


# the parts can be used without a web server installed
def __getattr__(name: str) -> Any:
    if name == "serve":
        from sparkml_sgdals.serving.server import serve

        return serve
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

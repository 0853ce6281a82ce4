"""Fine-tune DINOv3 backbones on bone-marrow cells: recipe in, loadable model and honest report out."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .prediction.classifier import CellClassifier

__all__ = ["CellClassifier"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # On demand: importing the package loads nothing heavy.
    if name == "CellClassifier":
        from .prediction.classifier import CellClassifier

        return CellClassifier
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Fine-tune DINOv3 backbones on bone-marrow cells: recipe in, loadable model and honest report out."""

__version__ = "0.1.0"

"""Foreign weights in and ours out: published EVE checkpoints, BEiT and ViT image encoders."""

from eve_vl.convert.published import export_published, import_published, read_tensors
from eve_vl.convert.vision import import_vision, is_vision

__all__ = ["export_published", "import_published", "import_vision", "is_vision", "read_tensors"]

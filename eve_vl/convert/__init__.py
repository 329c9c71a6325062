"""Foreign weights in and ours out: published EVE and VLMo checkpoints, BEiT and ViT image encoders."""

from eve_vl.convert.published import export_published, import_published, read_tensors
from eve_vl.convert.vision import import_vision, is_vision
from eve_vl.convert.vlmo import import_vlmo, is_vlmo

__all__ = [
    "export_published",
    "import_published",
    "import_vision",
    "import_vlmo",
    "is_vision",
    "is_vlmo",
    "read_tensors",
]

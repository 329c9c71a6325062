"""Foreign weights in and ours out: published EVE, VLMo and M3AE checkpoints, BEiT and ViT image encoders."""

from eve_vl.interop.convert.m3ae import import_m3ae, is_m3ae
from eve_vl.interop.convert.published import export_published, import_published, read_tensors
from eve_vl.interop.convert.vision import import_vision, is_vision
from eve_vl.interop.convert.vlmo import import_vlmo, is_vlmo

__all__ = [
    "export_published",
    "import_m3ae",
    "import_published",
    "import_vision",
    "import_vlmo",
    "is_m3ae",
    "is_vision",
    "is_vlmo",
    "read_tensors",
]

"""Foreign weights in and ours out: published EVE checkpoints, BEiT and ViT image encoders."""

from eve_vl.convert.published import export_published, import_published

__all__ = ["export_published", "import_published"]

"""EVE: one Transformer for images, texts and pairs, pre-trained by masked signal modelling."""

__version__ = "0.1.0"

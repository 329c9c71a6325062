"""EVE, one Transformer for images, texts and pairs.

It is pre-trained by masked signal modelling.

from eve_vl import Eve
eve = Eve.load("runs/scenes_vqa")
eve.answer("photo.png", "what color is the star")
"""

from typing import Any

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Import `Eve` on first use.

    The command line sets the environment before torch is imported.
    """
    if name == "Eve":
        from eve_vl.eve import Eve

        return Eve
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

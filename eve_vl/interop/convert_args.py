"""Flags of `eve convert`. Imports no torch, which takes seconds."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from eve_vl.config.model import Routing
from eve_vl.utils.errors import UserError
from eve_vl.utils.frozen import Frozen


class ConvertArgs(Frozen):
    """Flags of `eve convert`."""

    source: Positional[Path]
    """A published EVE, VLMo or M3AE checkpoint or a BEiT or ViT image encoder of timm or
    transformers (.pth, .bin, .safetensors); a CLIP or SigLIP of transformers or open_clip (a folder
    or a file in it); or a run folder to export."""
    target: Positional[Path]
    """Run folder to write; or the .safetensors or .pth file for an exported run."""
    tokenizer: Path | None = None
    """The weights' tokenizer.json or BERT vocab.txt; for an image encoder any. CLIP, SigLIP:
    default: that of their folder."""
    answers: Path | None = None
    """VQA: the answer list of the head; classification: the list of labels."""
    routing: Routing = "reference-dropless"
    """EVE checkpoints. reference: as published; reference-dropless: without noise and drops;
    dropless: as in the paper."""
    text_tokens: int = 40
    """EVE checkpoints: tokens to pad every text to, as in their training. VLMo, M3AE: longest text,
    0: all positions."""
    clean_text: bool = True
    """EVE checkpoints: strip texts of punctuation and capitals, as in their training."""
    image_size: int = 0
    """Resize the image positions for images of this size; 0: keep them."""
    num_heads: int = 0
    """Attention heads; 0: as published, 64 wide except in VLMo's base_plus, and 16 in image
    encoders wider than 1024."""
    architecture: str = "eve"
    """Image encoders. eve: EVE's blocks (quick-GELU, a norm before the first). source: the
    source's. vlmo: VLMo's, from a BEiT with relative positions."""
    copy: Literal["all", "text", "none"] | None = None
    """Image encoders: which networks start as copies of the image's. all: text networks and
    experts; text: text networks. The others are random. Default: all, with vlmo none."""
    num_experts: int | None = None
    """Image encoders: experts in each of the last blocks; default: 32."""
    num_deep_blocks: int | None = None
    """Image encoders: last blocks with experts, with vlmo with networks for pairs; default: 2, from
    24 blocks 3."""
    drop: tuple[str, ...] = ()
    """Leave out keys with one of these in their names."""

    def refuse_without_effect(self, allowed: Sequence[str], title: str) -> None:
        """Refuse flags without an effect on this kind of source.

        Raises UserError for a flag that was set and is not in `allowed`.
        """
        for field in fields(self):
            is_default = getattr(self, field.name) == field.default
            if field.name in ("source", "target", *allowed) or is_default:
                continue
            flag = field.name.replace("_", "-")
            raise UserError(f"{self.source}: --{flag} has no effect on {title}; leave it out")

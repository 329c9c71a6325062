"""BEiT as the first stage of VLMo (`eve convert --architecture vlmo`)."""

from collections.abc import Mapping

import torch
from torch import Tensor

from eve_vl.interop.convert_args import ConvertArgs
from eve_vl.interop.image_encoders import RELATIVE, Architecture
from eve_vl.interop.weight_table import Computed, WeightTable
from eve_vl.systems.vlmo.recipes import vlmo_base_images
from eve_vl.utils.errors import UserError


class RelativeArchitecture(Architecture):
    """A model with relative positions, whose networks for texts and pairs start at random."""

    default_copy: str = "none"
    unused: str = rf".*{RELATIVE}_index$"

    def check_positions(
        self, tensors: Mapping[str, Tensor], side: int, args: ConvertArgs, where: str
    ) -> None:
        """Raise UserError for positions that are not relative, or for images of another size."""
        if not side or "pos_embed" in tensors or args.image_size:
            raise UserError(
                f"{where}: --architecture {args.architecture} takes relative positions only, "
                "which later runs resize: leave out --image-size, and take --architecture eve "
                "for absolute ones"
            )

    def position_table(self, depth: int) -> WeightTable:
        """Return the source of the table of relative positions: one table for all blocks."""
        tables = tuple(f"blocks.{index}.attn.{RELATIVE}_bias_table" for index in range(depth))
        return {
            "encoder.relative.image_bias": Computed(
                lambda *block_tables: torch.cat(block_tables, dim=1), tables
            )
        }


_FIRST_STAGE = vlmo_base_images()
BEIT = RelativeArchitecture(
    model=_FIRST_STAGE.model,  # pyright: ignore[reportArgumentType]
    text_length=_FIRST_STAGE.input.text_length,
)
"""The entry point."""

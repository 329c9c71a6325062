"""The section of M3AE's encoder."""

from typing import Annotated, ClassVar

from eve_vl.config import DualEncoderConfig


class M3aeModelConfig(DualEncoderConfig):
    """An image tower, a text tower and layers of co-attention above them."""

    name: ClassVar[str] = "m3ae"
    joins_towers: ClassVar[bool] = True
    fusion_depth: Annotated[int, "[1, 1000]"] = 6
    """Layers in which each modality attends to itself, then to the other."""
    pixel_layer: int = 3
    """Layers of co-attention before the states that reconstruct masked pixels; later ones are not
    computed then. 0: no layer, so no word reaches the pixels."""

    @property
    def num_image_layers(self) -> int:
        """Layers that an image goes through."""
        return self.image_depth + self.fusion_depth

    def problems(self) -> list[str]:
        """Return the problems of a shape, one sentence each."""
        problems = super().problems()
        if self.reads_text_end:
            problems.append(f"towers {self.towers} have no co-attention: take model dual_encoder")
        if self.text_dim or self.text_num_heads or self.text_mlp_ratio:
            problems.append(
                "text_dim, text_num_heads and text_mlp_ratio have no effect with co-attention, "
                "whose towers have one shape"
            )
        if not 0 <= self.pixel_layer <= self.fusion_depth:
            problems.append(
                f"pixel_layer {self.pixel_layer} is not between 0 and fusion_depth "
                f"{self.fusion_depth}"
            )
        return problems

    def __str__(self) -> str:
        """Return the shape in one line."""
        return f"{super().__str__()}, {self.fusion_depth} layers of co-attention"

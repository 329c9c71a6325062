"""Section of the model with two towers."""

from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

from eve_vl.config.base import Depth, Share, Width
from eve_vl.config.model import BERT_EPS, NORM_EPS, Activation, EveModelConfig, ModelConfig, Stem
from eve_vl.config.tasks import TaskConfig

CLIP_EPS = 1e-5  # of LayerNorm, also in RoBERTa


@dataclass(frozen=True, kw_only=True)
class DualEncoderConfig(ModelConfig):
    """An image tower, a text tower and, above them, layers of co-attention or none."""

    name: ClassVar[str] = "dual_encoder"
    stem: Stem = "linear"
    """From pixels to patches. linear: one projection per patch. conv: overlapping convolutions with batch normalisation, which
    see masked patches as grey. patch_conv: 2 × 2 convolutions of stride 2 without overlap."""
    image_depth: Depth = 12
    """Blocks of the image tower."""
    text_depth: Depth = 12
    """Blocks of the text tower."""
    towers: Literal["eve", "clip_roberta", "clip", "siglip"] = "eve"
    """Blocks of both towers. eve: EVE's. clip_roberta: CLIP's for images, with quick_gelu, and RoBERTa's for texts, with
    LayerNorm after each branch and after the positions. Its epsilon is 1e-5 in both, 1e-12 in co-attention and the token head.
    Classifiers of pairs are half as wide. clip: CLIP's, whose texts are causal and represented by their last token. siglip:
    SigLIP's, without an image [CLS]: attention pools the patches, and padding counts as text. clip and siglip have no layers
    of co-attention."""
    fusion_depth: Annotated[int, "[0, 1000]"] = 6
    """Layers in which each modality attends to itself, then to the other; 0: pairs have no states of their own."""
    pixel_layer: int = 3
    """Layers of co-attention before the states that reconstruct masked pixels; later ones are not computed then. 0: no layer,
    so no word reaches the pixels."""
    num_heads: Width = 12
    """Attention heads per block and layer."""
    mlp_ratio: Annotated[float, "(0, 65536]"] = 4.0
    """Width of every feed-forward network, as a multiple of embed_dim."""
    text_dim: Annotated[int, "[0, 65536]"] = 0
    """Width of the text tower; 0: embed_dim."""
    text_num_heads: Annotated[int, "[0, 65536]"] = 0
    """Attention heads of the text tower; 0: num_heads."""
    text_mlp_ratio: Annotated[float, "[0, 65536]"] = 0.0
    """Feed-forward width of the text tower, as a multiple of its width; 0: mlp_ratio."""
    activation: Activation = "gelu"
    """Activation of every feed-forward network except those of clip_roberta's image blocks."""
    dropout: Share = 0.1
    """Dropout on text embeddings and on each branch of co-attention and RoBERTa's blocks."""

    @property
    def tower_norm_eps(self) -> float:
        """Epsilon of the norms of both towers."""
        return CLIP_EPS if self.towers in ("clip_roberta", "clip") else NORM_EPS

    @property
    def text_width(self) -> int:
        """Width of the text tower."""
        return self.text_dim or self.embed_dim

    @property
    def reads_text_end(self) -> bool:
        """Whether the last token of a text represents it, rather than [CLS] before it."""
        return self.towers in ("clip", "siglip")

    @property
    def of_text(self) -> "DualEncoderConfig":
        """The text tower's shape as that of both towers."""
        heads, ratio = self.text_num_heads or self.num_heads, self.text_mlp_ratio or self.mlp_ratio
        return replace(self, embed_dim=self.text_width, num_heads=heads, mlp_ratio=ratio)

    @property
    def text_norm_eps(self) -> float:
        """Epsilon of the norms of co-attention and of the token head."""
        return BERT_EPS if self.towers == "clip_roberta" else NORM_EPS

    @property
    def block(self) -> EveModelConfig:
        """Shape of the image blocks, and of EVE's text blocks."""
        names = "embed_dim layer_scale_init num_heads mlp_ratio activation"
        shape: dict[str, Any] = {name: getattr(self, name) for name in names.split()}
        shape |= {"activation": "quick_gelu"} if self.towers == "clip_roberta" else {}
        return EveModelConfig(**shape, depth=self.image_depth + self.fusion_depth, deep_ffn="shared", shallow_ffn="shared")

    def conflicts(self) -> dict[str, object]:
        """Return sentences about values that do not go together.

        Each comes with whether it holds.
        """
        width, heads, last = self.embed_dim, self.num_heads, self.fusion_depth
        text, of_text = self.text_width, self.text_num_heads or heads
        own_text = self.text_dim or self.text_num_heads or self.text_mlp_ratio
        return {
            f"text_dim {text} is not divisible by text_num_heads {of_text}": own_text and text % of_text,
            f"fusion_depth {last} with towers {self.towers}, which have no co-attention: set it to 0": self.reads_text_end
            and last,
            "text_dim, text_num_heads and text_mlp_ratio need fusion_depth 0": own_text and last,
            f"embed_dim {width} is not divisible by num_heads {heads}": width % heads,
            f"pixel_layer {self.pixel_layer} is not between 0 and fusion_depth {last}": not 0 <= self.pixel_layer <= last,
        }

    def problems_with(self, task: TaskConfig, rows: str) -> list[str]:
        """Return the problems of a task with the towers, one sentence each."""
        found = super().problems_with(task, rows)
        if not self.fusion_depth and rows == "image_text":
            without = "needs states of pairs, which model.fusion_depth 0 does not give"
            found += [f"{name} {getattr(task, name)} {without}" for name in task.reads_pairs()]
        if self.towers == "siglip" and (weight := getattr(task, "mim_weight", 0)):
            found.append(f"mim_weight {weight:g} needs an image [CLS], which towers siglip do not have; set it to 0")
        if getattr(task, "joint_masking", False):
            found.append("joint_masking masks both modalities in one pass, but the towers reconstruct pixels in their own pass")
        return found

    def incompatible_fields(self, other: ModelConfig) -> list[str]:
        """Return the fields in which another section is another system.

        Sizes do not count. `name` means another backbone.
        """
        if type(self) is not type(other) or not isinstance(other, DualEncoderConfig):
            return ["name"]
        has_other_fusion = bool(self.fusion_depth) != bool(other.fusion_depth)
        return ["stem"] * (self.stem != other.stem) + ["fusion_depth"] * has_other_fusion

    def __str__(self) -> str:
        """Return the shape in one line."""
        depths = f"{self.image_depth} and {self.text_depth} blocks, {self.fusion_depth} layers of co-attention"
        towers = dict.fromkeys((self, self.of_text))
        shapes = dict.fromkeys(
            f"width {one.embed_dim}, {one.num_heads} heads, feed-forward {one.block.ffn_dim}" for one in towers
        )
        return f"towers of {depths}, {' and '.join(shapes)}"

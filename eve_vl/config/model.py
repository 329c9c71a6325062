"""Sections of the model: the base of all backbones, EVE's, and that of two towers."""

import itertools
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from eve_vl.config.sections import (
    Depth,
    Positive,
    Section,
    Share,
    Weight,
    Width,
)
from eve_vl.config.task import TaskConfig

FFNPolicy = Literal["shared", "modality", "modality_vl", "moe"]
Routing = Literal["dropless", "reference", "reference-dropless"]
Activation = Literal["quick_gelu", "gelu", "gelu_tanh"]
Stem = Literal["linear", "conv", "residual_conv", "patch_conv"]
# of LayerNorm
NORM_EPS = 1e-6
BERT_EPS = 1e-12
CLIP_EPS = 1e-5  # also in RoBERTa
LARGEST_CONV_PATCH = 128  # pixels of a patch: seven layers
EXPERT_FIELDS = (
    "num_experts",
    "expert_ratio",
    "top_k",
    "modality_routing",
    "routing",
    "balance_weight",
)


class ModelConfig(Section):
    """Fields of all backbones: the width that heads read, and initial values."""

    embed_dim: Width = 768
    """Width of the states."""
    layer_scale_init: Positive = 0.1
    """Initial value of LayerScale on both branches of a block."""
    init_std: Positive = 0.02
    """Standard deviation of initial weights and embeddings; narrow models on short runs need
    more."""
    pos_embed_init_std: Positive = 0.02
    """Standard deviation of initial positions; short runs need more, since positions grow slowly
    next to normed words."""

    @property
    def text_norm_eps(self) -> float:
        """Epsilon of the norms of text embeddings and of the token head."""
        return NORM_EPS

    @property
    def text_width(self) -> int:
        """Width of the states of texts without images."""
        return self.embed_dim

    @property
    def reads_text_end(self) -> bool:
        """Whether the last token of a text represents it, rather than [CLS] before it."""
        return False

    @property
    def block(self) -> "EveModelConfig":
        """Shape of this backbone's Transformer blocks, for the pixel decoder."""
        return EveModelConfig()

    def problems_with(self, task: TaskConfig, rows: str) -> list[str]:
        """Return the problems of a task with this backbone, one sentence each.

        rows: a `data.modality`.
        """
        return task.problems_with_model(self)

    def incompatible_fields(self, other: "ModelConfig") -> list[str]:
        """Return the fields in which another section is another system.

        Sizes do not count. `name` means another backbone.
        """
        return [] if type(self) is type(other) else ["name"]

    def __str__(self) -> str:
        """Return the shape in one line."""
        return f"{self.name}, width {self.embed_dim}"


class EveModelConfig(ModelConfig):
    """EVE's unified Transformer.

    [paper] Tables 7 and 8 compare its feed-forward policies.
    """

    name: ClassVar[str] = "eve"
    system_fields: ClassVar[tuple[str, ...]] = ("stem", "shallow_ffn", "deep_ffn")
    """Fields in which two models of one system are equal."""
    positions: ClassVar[str] = "learned"
    """Positions are vectors that are added to patches and words; VLMo's may be relative."""
    stem: Stem = "linear"
    """From pixels to patches. linear: one projection per patch, as in the paper. conv: overlapping
    convolutions of stride 2 with batch normalisation (Xiao et al. 2021), which see masked patches
    as grey; small models learn sooner (LOG.md). residual_conv: the same with residual blocks
    between them; small models learn photographs better. patch_conv: 2 × 2 convolutions of stride 2
    without overlap."""
    depth: Depth = 12
    """Number of blocks."""
    num_heads: Width = 12
    """Attention heads per block."""
    mlp_ratio: Annotated[float, "(0, 65536]"] = 4.0
    """Width of every feed-forward network, as a multiple of embed_dim."""
    shallow_ffn: FFNPolicy = "modality"
    """Feed-forward part of the first blocks. shared: one for all tokens. modality: one per modality
    (hard router). modality_vl: one per modality in unimodal passes, a third one for all tokens of a
    pair. moe: experts (soft router)."""
    deep_ffn: FFNPolicy = "moe"
    """Feed-forward part of the last num_deep_blocks blocks."""
    num_deep_blocks: int = 2
    """Number of last blocks with deep_ffn."""
    num_experts: Width = 32
    """Experts of each `moe` block."""
    expert_ratio: Annotated[float, "[0, 65536]"] = 0.0
    """Width of every expert, as a multiple of embed_dim; 0: mlp_ratio. With mlp_ratio / top_k, the
    experts of a token cost as much as one network (fine-grained experts, DeepSeekMoE)."""
    top_k: Width = 2
    """Experts per token."""
    modality_routing: bool = True
    """Add a learned modality embedding to the router's input ([paper] Eq. 6, Table 8)."""
    routing: Routing = "dropless"
    """Routing of tokens to experts. dropless: each token to its top_k, independent of its batch.
    reference: the published code's, with sampled second choices, dropped tokens over capacity and
    routed padding. reference-dropless: the same arithmetic without noise and drops, for published
    weights (docs/fidelity.md)."""
    activation: Activation = "quick_gelu"
    """Activation of every feed-forward network and expert; ViT and BEiT have gelu."""
    text_embedding: Literal["eve", "bert"] = "eve"
    """Embedding of words. eve: LayerNorm, then the position. bert: the position, then LayerNorm
    with an epsilon of 1e-12, also in the token head (BERT)."""
    norm_pre: bool = True
    """LayerNorm between the embeddings and the first block, as in the published code; ViT and BEiT
    have none."""
    balance_weight: Weight = 0.001
    """Weight of the load-balancing loss, averaged over the `moe` blocks."""
    drop_path: Share = 0.1
    """Stochastic depth of the last block, growing linearly from 0 at the first."""
    dropout: Share = 0.1
    """Dropout on text embeddings."""

    @property
    def text_norm_eps(self) -> float:
        """Epsilon of the norms of text embeddings and of the token head."""
        return BERT_EPS if self.text_embedding == "bert" else NORM_EPS

    @property
    def block(self) -> "EveModelConfig":
        """Shape of the blocks."""
        return self

    @property
    def ffn_policies(self) -> tuple[FFNPolicy, ...]:
        """Feed-forward policy of each block, first to last."""
        shallow: list[FFNPolicy] = [self.shallow_ffn] * (self.depth - self.num_deep_blocks)
        deep: list[FFNPolicy] = [self.deep_ffn] * self.num_deep_blocks
        return (*shallow, *deep)

    @property
    def ffn_dim(self) -> int:
        """Hidden width of every feed-forward network."""
        return round(self.embed_dim * self.mlp_ratio)

    def problems(self) -> list[str]:
        """Return the problems of a shape, one sentence each."""
        problems = []
        if self.embed_dim % self.num_heads:
            problems.append(
                f"embed_dim {self.embed_dim} is not divisible by num_heads {self.num_heads}"
            )
        if not 0 <= self.num_deep_blocks <= self.depth:
            problems.append(
                f"num_deep_blocks {self.num_deep_blocks} is not between 0 and depth {self.depth}"
            )
        if self.top_k > self.num_experts:
            problems.append(f"top_k {self.top_k} is larger than num_experts {self.num_experts}")
        if self.routing != "dropless" and self.top_k != 2:
            problems.append(f"top_k {self.top_k}, but routing {self.routing} is always top 2")
        return problems

    def unused_fields(self) -> dict[str, str]:
        """Return the fields without effect next to the other values, with the reason."""
        unused = super().unused_fields()
        if "moe" not in self.ffn_policies:
            unused |= dict.fromkeys(EXPERT_FIELDS, "without a block of experts (moe)")
        if self.num_deep_blocks == self.depth:
            unused["shallow_ffn"] = "as no block has it (model.num_deep_blocks)"
        if self.num_deep_blocks == 0:
            unused["deep_ffn"] = "as no block has it (model.num_deep_blocks)"
        return unused

    def incompatible_fields(self, other: ModelConfig) -> list[str]:
        """Return the fields in which another section is another system.

        Sizes do not count. `name` means another backbone.
        """
        if type(self) is not type(other) or not isinstance(other, EveModelConfig):
            return ["name"]
        unused = {*self.unused_fields(), *other.unused_fields()}
        compared = [name for name in self.system_fields if name not in unused]
        if "deep_ffn" in unused and self.ffn_policies[-1] != other.ffn_policies[-1]:
            # one of the two has no deep blocks: none of its blocks does what those of the other do
            compared.append("num_deep_blocks")
        return [name for name in compared if getattr(self, name) != getattr(other, name)]

    def __str__(self) -> str:
        """Return the shape in one line."""
        counts = []
        for policy, blocks in itertools.groupby(self.ffn_policies):
            counts.append(f"{policy} × {len(list(blocks))}")
        return (
            f"{self.depth} blocks, width {self.embed_dim}, {self.num_heads} heads, "
            f"feed-forward {self.ffn_dim} ({', '.join(counts)})"
        )


class DualEncoderConfig(ModelConfig):
    """An image tower and a text tower."""

    name: ClassVar[str] = "dual_encoder"
    joins_towers: ClassVar[bool] = False
    """Whether pairs have states of their own."""
    stem: Stem = "linear"
    """From pixels to patches. linear: one projection per patch. conv: overlapping convolutions with
    batch normalisation, which see masked patches as grey. residual_conv: the same with residual
    blocks between them. patch_conv: 2 × 2 convolutions of stride 2 without overlap."""
    image_depth: Depth = 12
    """Blocks of the image tower."""
    text_depth: Depth = 12
    """Blocks of the text tower."""
    towers: Literal["eve", "clip_roberta", "clip", "siglip"] = "eve"
    """Blocks of both towers. eve: EVE's. clip_roberta: CLIP's for images, with quick_gelu, and
    RoBERTa's for texts, with LayerNorm after each branch and after the positions. Its epsilon is
    1e-5 in both, 1e-12 in co-attention and the token head. Classifiers of pairs are half as wide.
    clip: CLIP's, whose texts are causal and represented by their last token. siglip: SigLIP's,
    without an image [CLS]: attention pools the patches, and padding counts as text."""
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
        return replace(
            self,
            embed_dim=self.text_width,
            num_heads=self.text_num_heads or self.num_heads,
            mlp_ratio=self.text_mlp_ratio or self.mlp_ratio,
        )

    @property
    def text_norm_eps(self) -> float:
        """Epsilon of the norms of co-attention and of the token head."""
        return BERT_EPS if self.towers == "clip_roberta" else NORM_EPS

    @property
    def num_image_layers(self) -> int:
        """Layers that an image goes through."""
        return self.image_depth

    @property
    def block(self) -> EveModelConfig:
        """Shape of the image blocks, and of EVE's text blocks."""
        activation = "quick_gelu" if self.towers == "clip_roberta" else self.activation
        return EveModelConfig(
            embed_dim=self.embed_dim,
            layer_scale_init=self.layer_scale_init,
            num_heads=self.num_heads,
            mlp_ratio=self.mlp_ratio,
            activation=activation,
            depth=self.num_image_layers,
            deep_ffn="shared",
            shallow_ffn="shared",
        )

    def problems(self) -> list[str]:
        """Return the problems of a shape, one sentence each."""
        problems = []
        has_text_shape = self.text_dim or self.text_num_heads or self.text_mlp_ratio
        text_heads = self.text_num_heads or self.num_heads
        if has_text_shape and self.text_width % text_heads:
            problems.append(
                f"text_dim {self.text_width} is not divisible by text_num_heads {text_heads}"
            )
        if self.embed_dim % self.num_heads:
            problems.append(
                f"embed_dim {self.embed_dim} is not divisible by num_heads {self.num_heads}"
            )
        return problems

    def problems_with(self, task: TaskConfig, rows: str) -> list[str]:
        """Return the problems of a task with the towers, one sentence each."""
        problems = super().problems_with(task, rows)
        if not self.joins_towers and rows == "image_text":
            for name in task.reads_pairs():
                problems.append(
                    f"{name} {getattr(task, name)} needs states of pairs, which "
                    f"model {self.name} does not give"
                )
        pixel_weight = getattr(task, "mim_weight", 0)
        if self.towers == "siglip" and pixel_weight:
            problems.append(
                f"mim_weight {pixel_weight:g} needs an image [CLS], which towers siglip do not "
                "have; set it to 0"
            )
        if getattr(task, "joint_masking", False):
            problems.append(
                "joint_masking masks both modalities in one pass, but the towers reconstruct "
                "pixels in their own pass"
            )
        return problems

    def incompatible_fields(self, other: ModelConfig) -> list[str]:
        """Return the fields in which another section is another system.

        Sizes do not count. `name` means another backbone.
        """
        if type(self) is not type(other) or not isinstance(other, DualEncoderConfig):
            return ["name"]
        return [] if self.stem == other.stem else ["stem"]

    def __str__(self) -> str:
        """Return the shape in one line."""
        shapes = []
        for tower in (self, self.of_text):
            shape = (
                f"width {tower.embed_dim}, {tower.num_heads} heads, "
                f"feed-forward {tower.block.ffn_dim}"
            )
            if shape not in shapes:
                shapes.append(shape)
        return f"towers of {self.image_depth} and {self.text_depth} blocks, {' and '.join(shapes)}"

"""Sections of the model: one kind per backbone."""

import itertools
import typing
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from eve_vl.config.base import DEEPEST, WIDEST, Section, negative, not_one_of, not_positive
from eve_vl.config.tasks import TaskConfig

FFNPolicy = Literal["shared", "modality", "modality_vl", "moe"]
Positions = Literal["learned", "relative"]
TextEmbedding = Literal["eve", "bert"]
Routing = Literal["dropless", "reference", "reference-dropless"]
Activation = Literal["quick_gelu", "gelu"]
TowerBlocks = Literal["eve", "clip_roberta"]
Stem = Literal["linear", "conv", "patch_conv"]
NORM_EPS, CLIP_EPS, BERT_EPS = 1e-6, 1e-5, 1e-12  # of LayerNorm; RoBERTa has CLIP's
LARGEST_BLOCK = 128  # pixels of a patch: seven layers, as in MLIM


@dataclass(frozen=True, kw_only=True)
class ModelConfig(Section):
    """What the sections of all backbones have: the width that heads read, and initial values."""

    embed_dim: int = 768
    """Width of the states."""
    layer_scale_init: float = 0.1
    """Initial value of LayerScale on both branches of a block."""
    init_std: float = 0.02
    """Standard deviation of initial weights and embeddings; narrow models on short runs want more."""
    pos_embed_init_std: float = 0.02
    """Standard deviation of initial positions; short runs want more, for positions grow slowly against normed words."""

    @property
    def text_norm_eps(self) -> float:
        """Of the norms of text embeddings and of the head for tokens."""
        return NORM_EPS

    @property
    def fits_other_sizes(self) -> bool:
        """Whether its weights, resized, fit images of another size and shorter texts."""
        return False

    @property
    def block(self) -> "EveModelConfig":
        """The shape of Transformer blocks such as this backbone's, for the pixel decoder."""
        return EveModelConfig()

    @property
    def embeds_blocks(self) -> bool:
        """Whether a patch is embedded by convolutions that see nothing else."""
        return False

    def validate(self) -> list[str]:
        """What is wrong with these values, one sentence each."""
        return not_positive(self, "embed_dim layer_scale_init init_std pos_embed_init_std", WIDEST)

    def problems_with(self, task: TaskConfig, rows: str) -> list[str]:
        """What of a task this backbone cannot do on such rows (`data.modality`), one sentence each."""
        if self.embeds_blocks or not task.wants_blocks:
            return []
        return [
            f"name {task.name} needs model eve with model.stem patch_conv, which shows nothing of a hidden patch and whose "
            "layers its decoder mirrors"
        ]

    def incompatible_fields(self, other: "ModelConfig") -> list[str]:
        """Return the fields in which another section is of another system, not of another size; `name`: another backbone."""
        return [] if type(self) is type(other) else ["name"]

    def __str__(self) -> str:
        """The shape in one line, for people."""
        return f"{self.name}, width {self.embed_dim}"


@dataclass(frozen=True, kw_only=True)
class EveModelConfig(ModelConfig):
    """EVE's one Transformer (paper Tables 7 and 8 compare its feed-forward policies)."""

    name: ClassVar[str] = "eve"
    stem: Stem = "linear"
    """From pixels to patches. linear: one projection of each patch, as in the paper. convolutions: overlapping ones of stride 2
    with batch normalisation (Xiao et al. 2021), which small models learn from sooner (LOG.md); hidden patches are
    grey to them. blocks: 2 × 2 ones of stride 2, no two places of which share a pixel (MLIM)."""
    depth: int = 12
    """Number of blocks."""
    num_heads: int = 12
    """Attention heads per block."""
    mlp_ratio: float = 4.0
    """Width of every feed-forward network and expert, as a multiple of embed_dim."""
    shallow_ffn: FFNPolicy = "modality"
    """Feed-forward part of the first blocks. shared: one for all tokens. modality: one per modality (hard router). modality_vl:
    one per modality for an image or a text alone, a third one for all tokens of a pair (VLMo). moe: experts (soft router)."""
    deep_ffn: FFNPolicy = "moe"
    """Feed-forward part of the last num_deep_blocks blocks."""
    num_deep_blocks: int = 2
    """How many of the last blocks use deep_ffn."""
    num_experts: int = 32
    """Experts in each `moe` block."""
    top_k: int = 2
    """Experts that each token is sent to."""
    modality_routing: bool = True
    """Add a learned modality embedding to what the router sees (paper Eq. 6, Table 8)."""
    routing: Routing = "dropless"
    """How tokens get to experts. dropless: each to its top_k, whatever is in its batch. reference: as the published code does,
    second choices drawn at random, tokens over capacity dropped, padding routed. reference-dropless: the same arithmetic
    without noise and without drops, for published weights (docs/fidelity.md)."""
    activation: Activation = "quick_gelu"
    """Of every feed-forward network and expert; ViT and BEiT have gelu."""
    positions: Positions = "learned"
    """learned: vectors added to patches and words. relative: none of these, but biases of attention by distance, of each head
    and block its own (BEiT, VLMo)."""
    text_embedding: TextEmbedding = "eve"
    """How words become vectors. eve: LayerNorm, then the position; bert: the position, then LayerNorm with an eps of 1e-12,
    which the head for tokens has too, as in BERT and so in VLMo's published weights."""
    pooler: bool = False
    """Give heads tanh(Linear) of a pair's [CLS] state instead of the state (BERT, VLMo)."""
    norm_pre: bool = True
    """A LayerNorm between the embeddings and the first block, as in the published code; ViT and BEiT have none."""
    balance_weight: float = 0.001
    """Weight of the load-balancing loss, averaged over the `moe` blocks."""
    drop_path: float = 0.1
    """Stochastic depth of the last block; grows linearly from 0 at the first."""
    dropout: float = 0.1
    """Dropout on text embeddings."""

    @property
    def text_norm_eps(self) -> float:
        """Of the norms of text embeddings and of the head for tokens."""
        return BERT_EPS if self.text_embedding == "bert" else NORM_EPS

    @property
    def embeds_blocks(self) -> bool:
        """Whether a patch is embedded by convolutions that see nothing else."""
        return self.stem == "patch_conv"

    @property
    def fits_other_sizes(self) -> bool:
        """Whether its weights, resized, fit images of another size and shorter texts."""
        return self.positions == "relative"

    @property
    def block(self) -> "EveModelConfig":
        """The shape of the blocks."""
        return self

    @property
    def ffn_policies(self) -> tuple[FFNPolicy, ...]:
        """The feed-forward policy of each block, first to last."""
        num_shallow = self.depth - self.num_deep_blocks
        return (self.shallow_ffn,) * num_shallow + (self.deep_ffn,) * self.num_deep_blocks

    @property
    def ffn_dim(self) -> int:
        """Hidden width of every feed-forward network and expert."""
        return round(self.embed_dim * self.mlp_ratio)

    def validate(self) -> list[str]:
        """What is wrong with these values, one sentence each."""
        problems = super().validate() + not_positive(self, "num_heads num_experts top_k mlp_ratio", WIDEST)
        problems += not_positive(self, "depth", DEEPEST)
        if problems:
            return problems
        if self.embed_dim % self.num_heads:
            problems.append(f"embed_dim {self.embed_dim} is not divisible by num_heads {self.num_heads}")
        if not 0 <= self.num_deep_blocks <= self.depth:
            problems.append(f"num_deep_blocks {self.num_deep_blocks} is not between 0 and depth {self.depth}")
        if self.top_k > self.num_experts:
            problems.append(f"top_k {self.top_k} is larger than num_experts {self.num_experts}")
        for name in ("drop_path", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                problems.append(f"{name} {getattr(self, name)} is not in [0, 1)")
        kinds = {"shallow_ffn": FFNPolicy, "deep_ffn": FFNPolicy, "routing": Routing, "activation": Activation, "stem": Stem}
        kinds |= {"positions": Positions, "text_embedding": TextEmbedding}
        for name, kind in kinds.items():
            if getattr(self, name) not in typing.get_args(kind):
                problems.append(f"{name} {getattr(self, name)!r} is not one of {', '.join(typing.get_args(kind))}")
        if self.routing != "dropless" and self.top_k != 2:
            problems.append(f"top_k {self.top_k}, but routing {self.routing} is always top 2")
        return problems + negative(self, "balance_weight")

    def unused_fields(self) -> dict[str, str]:
        """Return the fields that have no effect beside the other values, by the reason why."""
        experts = "" if "moe" in self.ffn_policies else "num_experts top_k modality_routing routing balance_weight"
        blocks = {"shallow_ffn": self.depth - self.num_deep_blocks, "deep_ffn": self.num_deep_blocks}
        unused = " ".join(name for name, count in blocks.items() if not count)
        return {
            "without a block of experts (moe)": experts,
            "as no block has it (model.num_deep_blocks)": unused,
            "as model.positions is relative": "pos_embed_init_std" if self.positions == "relative" else "",
        }

    def incompatible_fields(self, other: ModelConfig) -> list[str]:
        """Return the fields in which another section is of another system, not of another size; `name`: another backbone."""
        if type(self) is not type(other) or not isinstance(other, EveModelConfig):
            return ["name"]
        idle = " ".join([*self.unused_fields().values(), *other.unused_fields().values()]).split()
        names = [name for name in ("stem", "shallow_ffn", "deep_ffn", "positions", "pooler") if name not in idle]
        if "deep_ffn" in idle and self.ffn_policies[-1] != other.ffn_policies[-1]:
            names.append("num_deep_blocks")  # 0 in one of them: what the other's deep blocks do, none of its blocks does
        return [name for name in names if getattr(self, name) != getattr(other, name)]

    def __str__(self) -> str:
        """The shape in one line, for people."""
        policies = ", ".join(f"{policy} × {len(list(blocks))}" for policy, blocks in itertools.groupby(self.ffn_policies))
        return f"{self.depth} blocks, width {self.embed_dim}, {self.num_heads} heads, feed-forward {self.ffn_dim} ({policies})"


@dataclass(frozen=True, kw_only=True)
class DualEncoderConfig(ModelConfig):
    """A tower for images, one for texts, and layers of co-attention that join them (M3AE, Chen et al. 2022) or none
    (MedFLIP)."""

    name: ClassVar[str] = "dual_encoder"
    stem: Stem = "linear"
    """From pixels to patches. linear: one projection of each patch. convolutions: overlapping ones with batch normalisation, to
    which hidden patches are grey."""
    image_depth: int = 12
    """Blocks of the tower for images."""
    text_depth: int = 12
    """Blocks of the tower for texts."""
    towers: TowerBlocks = "eve"
    """What blocks both have. eve: EVE's. clip_roberta: for images CLIP's, which have quick_gelu, for texts RoBERTa's, with
    LayerNorm after each branch, and positions before that of words; its eps is 1e-5 in both, 1e-12 in co-attention and the head
    for tokens, and classifiers of pairs are half as wide, all as in M3AE's published weights."""
    fusion_depth: int = 6
    """Layers in which each modality attends to itself and then to the other; 0: none, so pairs have no states of their own."""
    pixel_layer: int = 3
    """Hidden pixels are rebuilt from the image's states after so many layers of co-attention; later ones are not computed
    then. 0: before all, where no word can reach the pixels."""
    num_heads: int = 12
    """Attention heads per block and layer."""
    mlp_ratio: float = 4.0
    """Width of every feed-forward network, as a multiple of embed_dim."""
    activation: Activation = "gelu"
    """Of every feed-forward network, but those of CLIP's blocks."""
    dropout: float = 0.1
    """Dropout on text embeddings and on each branch of co-attention and of RoBERTa's blocks."""

    @property
    def tower_norm_eps(self) -> float:
        """Of the norms of both towers."""
        return CLIP_EPS if self.towers == "clip_roberta" else NORM_EPS

    @property
    def text_norm_eps(self) -> float:
        """Of the norms of co-attention and of the head for tokens."""
        return BERT_EPS if self.towers == "clip_roberta" else NORM_EPS

    @property
    def block(self) -> EveModelConfig:
        """The shape of the blocks for images, and of those for texts if they are EVE's."""
        names = "embed_dim layer_scale_init num_heads mlp_ratio activation"
        shape: dict[str, Any] = {name: getattr(self, name) for name in names.split()}
        shape |= {"activation": "quick_gelu"} if self.towers == "clip_roberta" else {}
        return EveModelConfig(**shape, depth=self.image_depth + self.fusion_depth, deep_ffn="shared", shallow_ffn="shared")

    def validate(self) -> list[str]:
        """What is wrong with these values, one sentence each."""
        problems = super().validate() + not_positive(self, "num_heads mlp_ratio", WIDEST)
        problems += not_positive(self, "image_depth text_depth", DEEPEST) + negative(self, "fusion_depth", DEEPEST)
        if not problems and self.embed_dim % self.num_heads:
            problems.append(f"embed_dim {self.embed_dim} is not divisible by num_heads {self.num_heads}")
        if not 0 <= self.pixel_layer <= self.fusion_depth:
            problems.append(f"pixel_layer {self.pixel_layer} is not between 0 and fusion_depth {self.fusion_depth}")
        if not 0 <= self.dropout < 1:
            problems.append(f"dropout {self.dropout} is not in [0, 1)")
        return problems + not_one_of(self, "activation", "stem", "towers")

    def problems_with(self, task: TaskConfig, rows: str) -> list[str]:
        """What of a task the towers cannot do."""
        problems = super().problems_with(task, rows)
        if not self.fusion_depth and rows == "image_text":
            without = "needs states of pairs, which model.fusion_depth 0 does not give"
            problems += [f"{name} {getattr(task, name)} {without}" for name in task.reads_pairs()]
        if task.name == "pair":
            problems.append(
                "name pair compares items whole and by one modality alone, which towers give states of other widths"
            )
        if getattr(task, "joint_masking", False):
            problems.append(
                "joint_masking hides both modalities in one pass, but the towers rebuild pixels in one of their own"
            )
        return problems

    def incompatible_fields(self, other: ModelConfig) -> list[str]:
        """Return the fields in which another section is of another system, not of another size; `name`: another backbone."""
        if type(self) is not type(other) or not isinstance(other, DualEncoderConfig):
            return ["name"]
        has_other_fusion = bool(self.fusion_depth) != bool(other.fusion_depth)
        return ["stem"] * (self.stem != other.stem) + ["fusion_depth"] * has_other_fusion

    def __str__(self) -> str:
        """The shape in one line, for people."""
        return (
            f"towers of {self.image_depth} and {self.text_depth} blocks, {self.fusion_depth} layers of co-attention, width "
            f"{self.embed_dim}, {self.num_heads} heads, feed-forward {self.block.ffn_dim}"
        )

"""The section of VLMo's encoder."""

from collections.abc import Sequence
from typing import ClassVar, Literal

from eve_vl.config import EveModelConfig
from eve_vl.config.model import Activation, FFNPolicy
from eve_vl.config.sections import UnusedFields


class VlmoModelConfig(EveModelConfig):
    """EVE's unified Transformer with VLMo's relative positions, pooler and networks for pairs."""

    name: ClassVar[str] = "vlmo"
    system_fields: ClassVar[tuple[str, ...]] = (
        *EveModelConfig.system_fields,
        "positions",
        "pooler",
    )
    unused: ClassVar[Sequence[UnusedFields]] = (
        UnusedFields(when="model.positions", equals="relative", fields="pos_embed_init_std"),
    )
    deep_ffn: FFNPolicy = "modality_vl"
    """Feed-forward part of the last num_deep_blocks blocks."""
    positions: Literal["learned", "relative"] = "relative"  # pyright: ignore[reportIncompatibleVariableOverride]
    """learned: vectors added to patches and words. relative: attention biases by distance, per head
    and block (BEiT)."""
    pooler: bool = True
    """Give heads tanh(Linear) of a pair's [CLS] state instead of the state (BERT)."""
    norm_pre: bool = False
    """LayerNorm between the embeddings and the first block, as in EVE; ViT and BEiT have none."""
    activation: Activation = "gelu"
    """Activation of every feed-forward network and expert; ViT and BEiT have gelu."""

"""The model: embeddings, layers, experts, backbones, heads and pixel decoder."""

from eve_vl.config import DualEncoderConfig, EveModelConfig, InputConfig, ModelConfig
from eve_vl.model.backbone import Backbone
from eve_vl.model.dual_encoder import DualEncoder
from eve_vl.model.encoder import Encoder


def build_backbone(config: ModelConfig, sizes: InputConfig, vocab_size: int) -> Backbone:
    """Return the untrained backbone of a model section."""
    if isinstance(config, DualEncoderConfig):
        return DualEncoder(config, sizes, vocab_size)
    assert isinstance(config, EveModelConfig)
    return Encoder(config, sizes, vocab_size)

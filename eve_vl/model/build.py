"""From the section `model` to the backbone that it describes."""

from eve_vl.config import DualEncoderConfig, EveModelConfig, InputConfig, ModelConfig
from eve_vl.model.backbone import Backbone
from eve_vl.model.dual_encoder import DualEncoder
from eve_vl.model.encoder import Encoder
from eve_vl.model.encoder_reference import OfficialEncoder


def build_backbone(config: ModelConfig, sizes: InputConfig, vocab_size: int) -> Backbone:
    """Return the untrained backbone of a model section."""
    match config:
        case EveModelConfig(routing="dropless"):
            return Encoder(config, sizes, vocab_size)
        case EveModelConfig():
            return OfficialEncoder(config, sizes, vocab_size)
        case DualEncoderConfig():
            return DualEncoder(config, sizes, vocab_size)
    raise AssertionError(f"no backbone for {type(config).__name__}")

"""From the section `model` to the backbone that it describes."""

from eve_vl.config import EveModelConfig, InputConfig, ModelConfig, TowersModelConfig
from eve_vl.model.backbone import Backbone
from eve_vl.model.encoder import Encoder
from eve_vl.model.official import OfficialEncoder
from eve_vl.model.towers import Towers


def build_backbone(config: ModelConfig, sizes: InputConfig, vocab_size: int) -> Backbone:
    """Return the untrained backbone of a model section."""
    match config:
        case EveModelConfig(routing="stable"):
            return Encoder(config, sizes, vocab_size)
        case EveModelConfig():
            return OfficialEncoder(config, sizes, vocab_size)
        case TowersModelConfig():
            return Towers(config, sizes, vocab_size)
    raise AssertionError(f"no backbone for {type(config).__name__}")

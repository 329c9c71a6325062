"""Backbones by the section of their model."""

from collections.abc import Callable

from eve_vl.config import DualEncoderConfig, EveModelConfig, InputConfig, ModelConfig
from eve_vl.config.plugins import load_installed
from eve_vl.model.backbone import Backbone
from eve_vl.model.dual_encoder import DualEncoder
from eve_vl.model.encoder import Encoder
from eve_vl.utils.errors import UserError

BACKBONES: dict[type[ModelConfig], Callable[..., Backbone]] = {
    EveModelConfig: Encoder,
    DualEncoderConfig: DualEncoder,
}
"""Backbones by model section; users' files may add their own, packages have entry points."""


def build_backbone(config: ModelConfig, sizes: InputConfig, vocab_size: int) -> Backbone:
    """Return the untrained backbone of a model section. Raises UserError."""
    backbone = BACKBONES.get(type(config)) or load_installed("backbones", config.name)
    if backbone is None:
        raise UserError(
            f"model {config.name}: has no backbone; add one to eve_vl.tasks.backbones.BACKBONES"
        )
    return backbone(config, sizes, vocab_size)

"""Backbones by the section of their model."""

from collections.abc import Callable

from eve_vl.config import DualEncoderConfig, EveModelConfig, InputConfig, ModelConfig
from eve_vl.model.backbone import Backbone
from eve_vl.model.dual_encoder import DualEncoder
from eve_vl.model.encoder import Encoder
from eve_vl.utils.errors import UserError

BACKBONES: dict[type[ModelConfig], Callable[..., Backbone]] = {
    EveModelConfig: Encoder,
    DualEncoderConfig: DualEncoder,
}
"""Backbones by model section; code from outside the package may add its own."""


def build_backbone(config: ModelConfig, sizes: InputConfig, vocab_size: int) -> Backbone:
    """Return the untrained backbone of a model section. Raises UserError."""
    if type(config) not in BACKBONES:
        raise UserError(
            f"model {config.name}: has no backbone; add one to eve_vl.tasks.task.BACKBONES"
        )
    return BACKBONES[type(config)](config, sizes, vocab_size)

"""The section of MLIM's pre-training."""

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any, ClassVar, Literal

from tyro.conf import Suppress

from eve_vl.config import EveModelConfig
from eve_vl.config.sections import InnerShare, UnusedFields
from eve_vl.tasks.masked_signal.config import MaskedSignalConfig


class MlimConfig(MaskedSignalConfig):
    """Pre-training by masked texts and whole reconstructed images in one pass."""

    name: ClassVar[str] = "mlim"
    title: ClassVar[str] = "masked texts and images in one pass (MLIM)"
    alone: ClassVar[Mapping[str, str]] = {}
    unused: ClassVar[Sequence[UnusedFields]] = (
        UnusedFields(when="task.masking", equals="light", fields="heavy_mask_ratio"),
    )
    masking: Literal["aware", "light"] = "aware"
    """aware: one of three per pair and epoch: most patches masked with the whole text, most tokens
    masked with the whole image, or few of both (MLIM's modality-aware masking). light: always the
    last."""
    image_mask_ratio: InnerShare = 0.15
    """Share of masked patches where few are masked."""
    text_mask_ratio: InnerShare = 0.15
    """Share of masked non-special tokens where few are masked."""
    heavy_mask_ratio: InnerShare = 0.8
    """Share of masked patches or tokens where most are masked."""
    mim_share: Suppress[float] = field(default=1.0, init=False)
    joint_masking: Suppress[bool] = field(default=True, init=False)
    normalize_targets: Suppress[bool] = field(default=False, init=False)
    decoder_depth: Suppress[int] = field(default=1, init=False)
    decoder_dim: Suppress[int] = field(default=4, init=False)
    decoder_num_heads: Suppress[int] = field(default=1, init=False)

    def hidden_shares(self) -> dict[str, tuple[float, float]]:
        """Return the masked shares of patches and of tokens, by what they are of."""
        few = {"both": (self.image_mask_ratio, self.text_mask_ratio)}
        if self.masking == "light":
            return few
        most = {"image": (self.heavy_mask_ratio, 0.0), "text": (0.0, self.heavy_mask_ratio)}
        return most | few

    def problems_with_model(self, model: Any) -> list[str]:
        """Return the problems of a model whose stem the decoder cannot mirror."""
        if isinstance(model, EveModelConfig) and model.stem == "patch_conv":
            return []
        reason = "which shows nothing of a masked patch and whose layers its decoder mirrors"
        return [f"name {self.name} needs model eve with model.stem patch_conv, {reason}"]

    def problems_of_weights(self) -> list[str]:
        """Return whether one of the two losses is off."""
        if self.mim_weight and self.mlm_weight:
            return []
        return ["mim_weight and mlm_weight must both be above 0 in MLIM"]

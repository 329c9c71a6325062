"""The section of masked signal modelling."""

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

from eve_vl.config import TaskConfig
from eve_vl.config.sections import (
    Depth,
    InnerShare,
    UnusedFields,
    Weight,
    Width,
)


class MaskedSignalConfig(TaskConfig):
    """Pre-training by masked signal modelling ([paper] "Pre-training Task")."""

    name: ClassVar[str] = "masked_signal"
    title: ClassVar[str] = "masked signal modelling"
    is_pretraining: ClassVar[bool] = True
    augments_captions: ClassVar[bool] = True
    alone: ClassVar[Mapping[str, str]] = {"image": "mlm_weight", "text": "mim_weight"}
    of_pairs: ClassVar[tuple[str, ...]] = ("mlm_weight",)
    unused: ClassVar[Sequence[UnusedFields]] = (
        UnusedFields(
            when="task.mim_weight",
            equals=0,
            fields="mim_share image_mask_ratio normalize_targets "
            "decoder_depth decoder_dim decoder_num_heads",
        ),
        UnusedFields(
            when="task.mlm_weight",
            equals=0,
            fields="text_mask_ratio whole_word_masking mask_replace_prob mask_replace_source",
        ),
        UnusedFields(when="task.mask_replace_prob", equals=0, fields="mask_replace_source"),
        UnusedFields(when="task.joint_masking", equals=True, fields="mim_share"),
    )
    image_mask_ratio: InnerShare = 0.75
    """Share of masked patches in the image pass ([paper] Fig. 4)."""
    text_mask_ratio: InnerShare = 0.5
    """Share of masked non-special tokens in the text pass ([paper] Fig. 4)."""
    whole_word_masking: bool = False
    """Mask whole words with all their pieces instead of tokens, as later versions of BERT do."""
    mask_replace_prob: Annotated[float, "[0, 1]"] = 0.0
    """Share of masked tokens that show a word instead of [MASK] in training: half of them their
    own, half another one (BERT: 0.2). The model then learns whether the text is true of the image
    (LOG.md)."""
    mask_replace_source: Literal["batch", "vocabulary"] = "batch"
    """Source of the other words. batch: masked words of the batch, as frequent as true ones;
    vocabulary: all words (BERT)."""
    mim_weight: Weight = 1.0
    """Weight of the masked-pixel loss; 0: no image pass."""
    mim_share: Annotated[float, "(0, 1]"] = 1.0
    """Share of the rows of a micro-batch in the image pass in training, rounded up; 0.5 halves the
    cost of that pass."""
    mlm_weight: Weight = 1.0
    """Weight of the masked-token loss; 0: no text pass."""
    joint_masking: bool = False
    """Mask both modalities in one pass: the paper's negative result (Table 5), for ablation."""
    normalize_targets: bool = True
    """Predict pixels normalised per patch (MAE §4) instead of raw pixels."""
    decoder_depth: Depth = 4
    """Blocks of the pixel decoder."""
    decoder_dim: Width = 384
    """Width of the pixel decoder."""
    decoder_num_heads: Width = 6
    """Attention heads of the pixel decoder."""

    def problems_of_weights(self) -> list[str]:
        """Return whether all weights of losses are 0."""
        if self.mim_weight or self.mlm_weight:
            return []
        return ["mim_weight and mlm_weight are both 0: nothing to learn"]

    def problems(self) -> list[str]:
        """Return the problems of values that do not go together, one sentence each."""
        problems = []
        if self.joint_masking and not (self.mim_weight and self.mlm_weight):
            problems.append("joint_masking needs both mim_weight and mlm_weight above 0")
        problems += self.problems_of_weights()
        if self.decoder_dim % (4 * self.decoder_num_heads):
            problems.append(
                f"decoder_dim {self.decoder_dim} is not divisible by 4 × decoder_num_heads"
            )
        return problems

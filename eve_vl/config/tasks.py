"""One section per task: what is trained, and with which weights."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from eve_vl.config.checks import negative, not_positive


@dataclass(frozen=True, kw_only=True)
class MaskedSignalConfig:
    """Pre-training by masked signal modelling (paper, "Pre-training Task"), or by its rivals ITC and ITM (Tables 1 and 6)."""

    name: tyro.conf.Suppress[Literal["masked_signal"]] = "masked_signal"
    image_mask_ratio: float = 0.75
    """Share of patches hidden in the image pass (paper Fig. 4)."""
    text_mask_ratio: float = 0.5
    """Share of non-special tokens hidden in the text pass (paper Fig. 4)."""
    mim_weight: float = 1.0
    """Weight of the masked-pixel loss; 0 leaves the image pass out."""
    mlm_weight: float = 1.0
    """Weight of the masked-token loss; 0 leaves the text pass out."""
    itc_weight: float = 0.0
    """Weight of the image–text contrastive loss (the rival of paper Table 1); 0 leaves its two unimodal passes out."""
    itm_weight: float = 0.0
    """Weight of the image–text matching loss with hard negatives, three fusion passes; needs itc_weight."""
    projection_dim: int = 0
    """Width of the features that the contrastive loss compares; 0: embed_dim."""
    joint_masking: bool = False
    """Hide both modalities in one pass: the paper's negative result (Table 5), for ablation."""
    normalize_targets: bool = True
    """Predict pixels normalised per patch (MAE §4) instead of raw ones."""
    decoder_depth: int = 4
    """Blocks of the pixel decoder."""
    decoder_dim: int = 384
    """Width of the pixel decoder."""
    decoder_num_heads: int = 6
    """Attention heads of the pixel decoder."""

    @property
    def is_bare(self) -> bool:
        """Whether there is no loss and no head: an encoder that came from elsewhere."""
        return not any((self.mim_weight, self.mlm_weight, self.itc_weight, self.itm_weight))

    def problems(self) -> list[str]:
        """What is wrong with these values, one sentence each."""
        found = not_positive(self, "decoder_depth decoder_dim decoder_num_heads")
        for name in ("image_mask_ratio", "text_mask_ratio"):
            if not 0 < getattr(self, name) < 1:
                found.append(f"{name} {getattr(self, name)} is not in (0, 1)")
        below_zero = negative(self, "mim_weight mlm_weight itc_weight itm_weight projection_dim")
        if below_zero:
            return found + below_zero
        if self.joint_masking and 0 in (self.mim_weight, self.mlm_weight):
            found.append("joint_masking needs both mim_weight and mlm_weight above 0")
        if self.itm_weight and not self.itc_weight:
            found.append("itm_weight needs itc_weight above 0: hard negatives are drawn by its similarities")
        if self.projection_dim and not self.itc_weight:
            found.append("projection_dim has no use while itc_weight is 0")
        if not found and self.decoder_dim % (4 * self.decoder_num_heads):
            found.append(f"decoder_dim {self.decoder_dim} is not divisible by 4 × decoder_num_heads")
        return found


@dataclass(frozen=True, kw_only=True)
class RetrievalConfig:
    """Image–text retrieval: contrast (ITC), matching with hard negatives (ITM), re-ranking (paper, "Downstream Tasks")."""

    name: tyro.conf.Suppress[Literal["retrieval"]] = "retrieval"
    itc_weight: float = 1.0
    """Weight of the contrastive loss."""
    itm_weight: float = 1.0
    """Weight of the matching loss; 0 trains no matching head, so rerank must be 0 too."""
    projection_dim: int = 0
    """Width of the features; 0: embed_dim."""
    standardize_match: bool = False
    """Give the matching head states of mean 0 and variance 1 (batch normalisation): small models learn to match sooner."""
    final_norm: bool = True
    """Search by features after the encoder's final norm, as they are in training; the published code does by those before."""
    rerank: int = 128
    """Best candidates of each query that the matching head puts in order (k_test), matches behind them count as missed; 0:
    none."""
    captions_per_image: int = 0
    """Captions of each picture that evaluation searches among; 0: all."""
    merge_captions: bool = False
    """In evaluation, captions in the same words are one text, true of every picture that has it, of a generated scene wherever
    it is true; otherwise each is a text of its own, true of its picture alone, as COCO and Flickr30K are scored."""

    def problems(self) -> list[str]:
        """What is wrong with these values, one sentence each."""
        found = negative(self, "itm_weight projection_dim rerank captions_per_image") + not_positive(self, "itc_weight")
        if not found and not self.itm_weight:
            if self.rerank:
                found.append(f"rerank {self.rerank} needs the matching head, but itm_weight is 0: set it to 0 too")
            if self.standardize_match:
                found.append("standardize_match has no use while itm_weight is 0: there is no matching head")
        return found


@dataclass(frozen=True, kw_only=True)
class VQAConfig:
    """Visual question answering as classification over an answer list (paper, "Downstream Tasks")."""

    name: tyro.conf.Suppress[Literal["vqa"]] = "vqa"
    answers: Path | None = None
    """Answer list: a JSON list of texts, one answer a line, or BEiT-3's answer2label.txt; default: built from training data."""
    min_answer_count: int = 9
    """Leave answers given to fewer training questions out of a list that is built."""

    def problems(self) -> list[str]:
        """What is wrong with these values, one sentence each."""
        found = not_positive(self, "min_answer_count")
        if self.answers is not None and self.min_answer_count != VQAConfig.min_answer_count:
            found.append("min_answer_count is for a list that is built, but answers names one")
        return found


@dataclass(frozen=True, kw_only=True)
class NLVR2Config:
    """Is a statement true of two pictures? (paper, "Downstream Tasks")"""

    name: tyro.conf.Suppress[Literal["nlvr2"]] = "nlvr2"
    head: Literal["concat", "paired", "compare"] = "concat"
    """concat: the two text [CLS] states side by side; paired: each side attends to the other first (UNITER); compare: the two
    states, standardised, their distance and their product (InferSent), which small models learn with soonest."""

    def problems(self) -> list[str]:
        """What is wrong with these values, one sentence each."""
        return []


TaskConfig = MaskedSignalConfig | RetrievalConfig | VQAConfig | NLVR2Config

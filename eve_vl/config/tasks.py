"""One section per task: what is trained, with which weights, and what people may do with a run of it.

The code of a task lies in `eve_vl.tasks.<name>`, what its page shows in `eve_vl.report.<name>`.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from eve_vl.config.base import DEEPEST, WIDEST, Section, negative, not_one_of, not_positive


@dataclass(frozen=True, kw_only=True)
class EvaluationFlags:
    """Values of a task's section that evaluation may be given anew; None: the run's own."""


@dataclass(frozen=True, kw_only=True)
class TaskConfig(Section):
    """What is trained."""

    title: ClassVar[str]
    """What people call the task."""
    is_pretraining: ClassVar[bool] = False
    """Whether `eve pretrain` trains it, rather than `eve finetune`."""
    has_numbers: ClassVar[bool] = True
    """Whether `eve evaluate` can measure it."""
    recipe: ClassVar[str] = ""
    """The recipe that fine-tunes it, where none has its name."""
    evaluation: ClassVar[type[EvaluationFlags]] = EvaluationFlags
    """Flags of its own that `eve evaluate` takes."""
    alone: ClassVar[Mapping[str, str]] = {}
    """Rows (`data.modality`) that it takes besides pairs, each with the weight of the loss that cannot be computed on them."""
    wants_blocks: ClassVar[bool] = False
    """Whether only a backbone that `embeds_blocks` will do."""

    def reads_pairs(self) -> tuple[str, ...]:
        """Return the fields whose values ask for states of pairs, which a backbone may lack."""
        return ()

    def problems_with_rows(self, rows: str) -> list[str]:
        """What is wrong with training on such rows (`data.modality`), one sentence each."""
        if rows == "image_text":
            return []
        if (lacking := self.alone.get(rows)) is None:
            return [f"name {self.name} takes no rows of {rows} alone; leave data.modality at image_text"]
        weight = getattr(self, lacking)
        return [f"{lacking} {weight:g}, but data.modality is {rows}: set it to 0"] if weight else []

    def problems_with_pairs(self, num_pairs: int) -> list[str]:
        """What is wrong with so few rows in a micro-batch of a process, one sentence each."""
        return []


@dataclass(frozen=True, kw_only=True)
class HeadlessConfig(TaskConfig):
    """An encoder from elsewhere, without a head or a loss: a start for other runs."""

    name: ClassVar[str] = "headless"
    title: ClassVar[str] = "an encoder without heads"
    is_pretraining: ClassVar[bool] = True
    has_numbers: ClassVar[bool] = False


@dataclass(frozen=True, kw_only=True)
class MaskedSignalConfig(TaskConfig):
    """Pre-training by masked signal modelling (paper, "Pre-training Task")."""

    name: ClassVar[str] = "masked_signal"
    title: ClassVar[str] = "masked signal modelling"
    is_pretraining: ClassVar[bool] = True
    alone: ClassVar[Mapping[str, str]] = {"image": "mlm_weight", "text": "mim_weight"}
    image_mask_ratio: float = 0.75
    """Share of patches hidden in the image pass (paper Fig. 4)."""
    text_mask_ratio: float = 0.5
    """Share of non-special tokens hidden in the text pass (paper Fig. 4)."""
    whole_word_masking: bool = False
    """Hide whole words with all their pieces, as BERT's later versions and VLMo do, instead of tokens."""
    mask_replace_prob: float = 0.0
    """Share of hidden tokens that show a word instead of [MASK] in training, half of them their own and half one that is hidden
    elsewhere in the batch (BERT: 0.2): so a model learns whether what it reads is true of the image (LOG.md)."""
    mask_replace_source: Literal["batch", "vocabulary"] = "batch"
    """Where the wrong half of these words comes from: the batch's hidden ones, which are as frequent as true ones, or the whole
    vocabulary, as in BERT and VLMo."""
    mim_weight: float = 1.0
    """Weight of the masked-pixel loss; 0 leaves the image pass out."""
    mlm_weight: float = 1.0
    """Weight of the masked-token loss; 0 leaves the text pass out."""
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

    def validate(self) -> list[str]:
        """What is wrong with these values, one sentence each."""
        problems = not_positive(self, "decoder_depth", DEEPEST) + not_positive(self, "decoder_dim decoder_num_heads", WIDEST)
        problems += negative(self, "mim_weight mlm_weight")
        for name in ("image_mask_ratio", "text_mask_ratio"):
            if not 0 < getattr(self, name) < 1:
                problems.append(f"{name} {getattr(self, name)} is not in (0, 1)")
        if not 0 <= self.mask_replace_prob <= 1:
            problems.append(f"mask_replace_prob {self.mask_replace_prob} is not in [0, 1]")
        problems += not_one_of(self, "mask_replace_source")
        if self.joint_masking and 0 in (self.mim_weight, self.mlm_weight):
            problems.append("joint_masking needs both mim_weight and mlm_weight above 0")
        if type(self) is MaskedSignalConfig and not self.mim_weight and not self.mlm_weight:
            problems.append("mim_weight and mlm_weight are both 0: nothing to learn")
        if not problems and self.decoder_dim % (4 * self.decoder_num_heads):
            problems.append(f"decoder_dim {self.decoder_dim} is not divisible by 4 × decoder_num_heads")
        return problems

    def reads_pairs(self) -> tuple[str, ...]:
        """Return the weights above 0 of losses on pairs; hidden pixels are rebuilt from what there is."""
        return tuple(name for name in ("mlm_weight", "itm_weight") if getattr(self, name, 0))

    def unused_fields(self) -> dict[str, str]:
        """Return the fields that have no effect beside the other values, by the reason why."""
        of_pixels = "image_mask_ratio normalize_targets decoder_depth decoder_dim decoder_num_heads"
        of_tokens = "text_mask_ratio whole_word_masking mask_replace_prob mask_replace_source"
        return {
            "as task.mim_weight is 0": "" if self.mim_weight else of_pixels,
            "as task.mlm_weight is 0": "" if self.mlm_weight else of_tokens,
            "as task.mask_replace_prob is 0": "" if self.mask_replace_prob or not self.mlm_weight else "mask_replace_source",
        }


@dataclass(frozen=True, kw_only=True)
class ContrastMatchConfig(MaskedSignalConfig):
    """Pre-training by contrast (ITC) and matching (ITM) beside masked signals: EVE's rivals (paper Tables 1 and 6) and, with
    other values, VLMo, M3AE and MedFLIP."""

    name: ClassVar[str] = "contrast_match"
    title: ClassVar[str] = "contrast and matching beside masked signals"
    alone: ClassVar[Mapping[str, str]] = {}
    mim_weight: float = 0.0
    """Weight of the masked-pixel loss; 0 leaves the image pass out."""
    itc_weight: float = 1.0
    """Weight of the image–text contrastive loss, with its two unimodal passes; 0 leaves it out."""
    itm_weight: float = 1.0
    """Weight of the image–text matching loss; 0 leaves it out."""
    projection_dim: int = 0
    """Width of the features that the contrastive loss compares; 0: embed_dim."""
    itc_masked_image: bool = False
    """In training, contrast sees only the patches that image_mask_ratio leaves (MedFLIP), in evaluation whole images."""
    itc_targets: Literal["image", "diagonal", "same_text", "semantic"] = "image"
    """What an image and a text must share to count as partners. image: the image; diagonal: the row, so that all other
    captions of the image are wrong (VLMo); same_text: the image or the words; semantic: labels, which every row must have:
    the more they agree on what is there and what is not, the larger a text's share of the target (MedCLIP)."""
    itm_negatives: Literal["local", "global", "random_half"] = "local"
    """Wrong pairs of matching. local: of each image and of each text a wrong one like it, drawn by the contrast's similarity
    among the micro-batch of a process, three fusion passes (ALBEF); global: drawn among the rows of all processes and
    micro-batches of a step (VLMo); random_half: half of the pairs get any other image, one fusion pass (M3AE)."""
    svd_form: Literal["off", "sigma1", "sigma1_share"] = "off"
    """Term of the largest singular value σ1 of the cosines of all images with all texts of a step (MedFLIP). sigma1: σ1 over
    the number of rows, in (0, 1]; sigma1_share: σ1 over the sum of all singular values; off: neither term nor its numbers."""
    svd_weight: float = 0.1
    """Weight of that term: above 0 it spreads features, below 0 it gathers them, 0 only logs its numbers."""

    def validate(self) -> list[str]:
        """What is wrong with these values, one sentence each."""
        problems = super().validate() + negative(self, "itc_weight itm_weight projection_dim", WIDEST)
        problems += not_one_of(self, "itc_targets", "itm_negatives", "svd_form")
        if not math.isfinite(self.svd_weight):
            problems.append(f"svd_weight must be finite, got {self.svd_weight}")
        if not any((self.mim_weight, self.mlm_weight, self.itc_weight, self.itm_weight)):
            problems.append("mim_weight, mlm_weight, itc_weight and itm_weight are all 0: nothing to learn")
        if self.itm_weight and not self.itc_weight and self.itm_negatives in ("local", "global"):
            problems.append(
                f"itm_negatives {self.itm_negatives} are drawn by the similarity of contrast, but itc_weight is 0: "
                "set it to random_half"
            )
        return problems

    def unused_fields(self) -> dict[str, str]:
        """Return the fields that have no effect beside the other values, by the reason why."""
        idle = super().unused_fields()
        if self.itc_weight and self.itc_masked_image:
            idle["as task.mim_weight is 0"] = idle["as task.mim_weight is 0"].replace("image_mask_ratio ", "")
        of_contrast = "projection_dim itc_masked_image itc_targets svd_form svd_weight"
        return idle | {
            "as task.itc_weight is 0": "" if self.itc_weight else of_contrast,
            "as task.itm_weight is 0": "" if self.itm_weight else "itm_negatives",
            "as task.svd_form is off": "svd_weight" if self.itc_weight and self.svd_form == "off" else "",
        }


@dataclass(frozen=True, kw_only=True)
class MlimConfig(MaskedSignalConfig):
    """Pre-training by masked texts and whole rebuilt images in one pass (MLIM, arXiv 2109.12178)."""

    name: ClassVar[str] = "mlim"
    title: ClassVar[str] = "masked texts and images in one pass (MLIM)"
    wants_blocks: ClassVar[bool] = True
    alone: ClassVar[Mapping[str, str]] = {}
    masking: Literal["aware", "light"] = "aware"
    """aware: of each pair one of three, drawn anew in each epoch: most patches hidden beside the whole text, most tokens hidden
    beside the whole image, or few of both (MLIM's modality-aware masking); light: always the last."""
    image_mask_ratio: float = 0.15
    """Share of patches hidden where few are."""
    text_mask_ratio: float = 0.15
    """Share of non-special tokens hidden where few are."""
    heavy_mask_ratio: float = 0.8
    """Share of patches or of tokens hidden where most are."""
    recon_target: Literal["all", "masked"] = "all"
    """What of the images the loss of rebuilding is of: all patches, for an embedded one has lost something too, or the hidden
    ones."""
    joint_masking: bool = True
    """Always: what is not hidden of one modality helps with the other in the same pass."""
    normalize_targets: bool = False
    """Never: pixels are rebuilt as they are."""

    def hidden_shares(self) -> dict[str, tuple[float, float]]:
        """Return the shares of patches and of tokens that are hidden, by where that is."""
        both = {"both": (self.image_mask_ratio, self.text_mask_ratio)}
        heavy = {"image": (self.heavy_mask_ratio, 0.0), "text": (0.0, self.heavy_mask_ratio)}
        return heavy | both if self.masking == "aware" else both

    def validate(self) -> list[str]:
        """What is wrong with these values, one sentence each."""
        problems = super().validate()
        for name in ("joint_masking", "normalize_targets"):
            if getattr(self, name) != (always := getattr(MlimConfig, name)):
                problems.append(f"{name} is always {always} in MLIM")
        if self.masking not in ("aware", "light"):
            problems.append(f"masking {self.masking!r} is not one of aware, light")
        if self.recon_target not in ("all", "masked"):
            problems.append(f"recon_target {self.recon_target!r} is not one of all, masked")
        if not 0 < self.heavy_mask_ratio < 1:
            problems.append(f"heavy_mask_ratio {self.heavy_mask_ratio} is not in (0, 1)")
        if 0 in (self.mim_weight, self.mlm_weight):
            problems.append("mim_weight and mlm_weight must both be above 0 in MLIM")
        return problems

    def unused_fields(self) -> dict[str, str]:
        """Return the fields that have no effect beside the other values, by the reason why."""
        light = "heavy_mask_ratio" if self.masking == "light" else ""
        return {
            "as MLIM's decoder is made of convolutions": "decoder_depth decoder_dim decoder_num_heads",
            "as task.masking is light": light,
        }


@dataclass(frozen=True, kw_only=True)
class SearchFlags(EvaluationFlags):
    """How `eve evaluate` searches."""

    rerank: int | None = None
    """Best candidates of each query that the matching head puts in order; 0: none; default: as validation chose."""
    rerank_by: Literal["match", "sum"] | None = None
    """What orders them: the matching head alone, or the sum of it and of the contrast; default: the run's own."""
    captions_per_image: int | None = None
    """Captions of each image to search among; 0: all; default: the run's own."""
    dedup_captions: bool | None = None
    """Captions in the same words are one, true of every image that has it; COCO and Flickr30K: False; default: the run's
    own."""


@dataclass(frozen=True, kw_only=True)
class RetrievalConfig(TaskConfig):
    """Image–text retrieval: contrast (ITC), matching with hard negatives (ITM), re-ranking (paper, "Downstream Tasks"); or
    matching alone, by which a search scores every pair (M3AE)."""

    name: ClassVar[str] = "retrieval"
    title: ClassVar[str] = "image–text retrieval"
    evaluation: ClassVar[type[EvaluationFlags]] = SearchFlags
    itc_weight: float = 1.0
    """Weight of the contrastive loss; 0 leaves it out: there are no features that compare, wrong pairs of matching are random,
    and a search takes a fusion pass for every pair of an image and a text, so rerank must be 0 too."""
    itm_weight: float = 1.0
    """Weight of the matching loss; 0 trains no matching head, so rerank must be 0 too."""
    itm_loss: Literal["pairs", "ranking"] = "pairs"
    """pairs: classify true and wrong pairs. ranking: find an image's own text among ranking_candidates, by a score that starts
    as the match logit of the --init run (M3AE's fine-tuning)."""
    ranking_candidates: int = 16
    """Texts that ranking puts in order, an image's own and others of the micro-batch, each with a fusion pass of its own."""
    projection_dim: int = 0
    """Width of the features; 0: embed_dim."""
    itm_batchnorm: bool = False
    """Give the matching head states of mean 0 and variance 1 (batch normalisation): small models learn to match sooner."""
    pooling: Literal["cls", "mean"] = "cls"
    """What an image's or a text's features are made of: its [CLS] state, as in the paper, or the mean of its states, which
    learns sooner (LOG.md)."""
    final_norm: bool = True
    """Search by features after the encoder's final norm, as they are in training; the published code does by those before."""
    rerank: int = 128
    """Best candidates of each query that the matching head puts in order (k_test); 0: none. Validation tries so many, half of
    them, a quarter and so on, chooses what is worth it, perhaps none, and best/ keeps that number in the place of this one."""
    rerank_by: Literal["match", "sum"] = "match"
    """What orders them. match: the matching head, as published; sum: its log-odds plus the contrast's similarity over the
    temperature. Wrong pairs of training are drawn by the latter, so that what the head learns is to be added to it."""
    captions_per_image: int = 0
    """Captions of each image that evaluation searches among; 0: all."""
    dedup_captions: bool = False
    """Captions in the same words are one text, true of every image that has it, so that in training these are no negatives of
    each other; in evaluation, of a generated scene wherever it is true. Otherwise each is a text of its own, true of its
    image alone, as COCO and Flickr30K are scored."""

    def problems_with_pairs(self, num_pairs: int) -> list[str]:
        """What is wrong with so few pairs in a micro-batch of a process, one sentence each."""
        if self.itm_loss != "ranking" or num_pairs >= self.ranking_candidates:
            return []
        return [f"ranking_candidates {self.ranking_candidates} is more than the {num_pairs} pairs of a micro-batch"]

    def validate(self) -> list[str]:
        """What is wrong with these values, one sentence each."""
        problems = negative(self, "itc_weight itm_weight projection_dim", WIDEST) + negative(self, "rerank captions_per_image")
        problems += not_one_of(self, "pooling", "itm_loss")
        if self.rerank == 1:
            problems.append("rerank 1 changes nothing, for one candidate has no order: give 0, or more than 1")
        if self.ranking_candidates < 2:
            problems.append(f"ranking_candidates {self.ranking_candidates} leaves no other text to tell an image's own from")
        if not (self.itc_weight or self.itm_weight):
            problems.append("itc_weight and itm_weight are both 0: nothing to learn")
        if not self.itc_weight and self.rerank:
            problems.append(
                f"rerank {self.rerank} is of the best by contrast, but itc_weight is 0: every pair is scored; set it to 0"
            )
        if self.pooling == "mean" and not self.final_norm:
            problems.append("pooling mean is of states after the final norm: leave final_norm at True")
        if not problems and not self.itm_weight:
            if self.rerank:
                problems.append(f"rerank {self.rerank} needs the matching head, but itm_weight is 0: set it to 0 too")
            if self.itm_batchnorm:
                problems.append("itm_batchnorm has no use while itm_weight is 0: there is no matching head")
        return problems

    def reads_pairs(self) -> tuple[str, ...]:
        """Return the weight of matching, if it is above 0."""
        return ("itm_weight",) * bool(self.itm_weight)

    def unused_fields(self) -> dict[str, str]:
        """Return the fields that have no effect beside the other values, by the reason why."""
        return {
            "as task.rerank is 0": "" if self.rerank else "rerank_by",
            "as task.itc_weight is 0": "" if self.itc_weight else "projection_dim pooling final_norm",
            "as task.itm_weight is 0": "" if self.itm_weight else "itm_loss",
            "as task.itm_loss is pairs": "ranking_candidates" if self.itm_loss == "pairs" else "",
        }


@dataclass(frozen=True, kw_only=True)
class VQAConfig(TaskConfig):
    """Visual question answering as classification over an answer list (paper, "Downstream Tasks")."""

    name: ClassVar[str] = "vqa"
    title: ClassVar[str] = "visual question answering"
    answers: Path | None = None
    """Answer list: a JSON list of texts, one answer a line, or BEiT-3's answer2label.txt; default: built from training data."""
    min_answer_count: int = 9
    """Leave answers given to fewer training questions out of a list that is built."""

    def reads_pairs(self) -> tuple[str, ...]:
        """Return the task itself."""
        return ("name",)

    def validate(self) -> list[str]:
        """What is wrong with these values, one sentence each."""
        problems = not_positive(self, "min_answer_count")
        if self.answers is not None and self.min_answer_count != VQAConfig.min_answer_count:
            problems.append("min_answer_count is for a list that is built, but answers names one")
        return problems


@dataclass(frozen=True, kw_only=True)
class NLVR2Config(TaskConfig):
    """Is a statement true of two images? (paper, "Downstream Tasks")"""

    name: ClassVar[str] = "nlvr2"
    title: ClassVar[str] = "statements about two images (NLVR2)"
    head: Literal["concat", "paired", "compare"] = "concat"
    """concat: the two text [CLS] states side by side; paired: each side attends to the other first (UNITER); compare: the two
    states, standardised, their distance and their product (InferSent), which small models learn with soonest."""
    second_image_type_embedding: bool = False
    """Give the right image a type embedding of its own, at first that of the left one (VLMo)."""

    def reads_pairs(self) -> tuple[str, ...]:
        """Return the task itself."""
        return ("name",)


@dataclass(frozen=True, kw_only=True)
class PairConfig(TaskConfig):
    """Are two items, each an image with a text, the same? (MLIM)"""

    name: ClassVar[str] = "pair"
    title: ClassVar[str] = "pairs of items"
    recipe: ClassVar[str] = "mlim_pairs"
    modality_dropout: bool = True
    """In training show of each pair the images alone, the texts alone or both, each of these in a third (MLIM)."""


@dataclass(frozen=True, kw_only=True)
class ClassificationConfig(TaskConfig):
    """An image, a text or both to one label, or to several."""

    name: ClassVar[str] = "classification"
    title: ClassVar[str] = "classification"
    inputs: Literal["image", "text", "both"] = "image"
    """What the label is read off; rows may hold more."""
    multilabel: bool = False
    """Rows may have several labels: each is a yes or no of its own."""
    classes: Path | None = None
    """List of labels: a JSON list of texts, or one a line; default: those of the training data."""

    def reads_pairs(self) -> tuple[str, ...]:
        """Return what is read, if it is both."""
        return ("inputs",) * (self.inputs == "both")

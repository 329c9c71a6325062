"""Sections of tasks: the common base, pre-training and fine-tuning.

The code of tasks is in `eve_vl.tasks`, their parts of the report in `eve_vl.report`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from eve_vl.config.base import Count, CountOrZero, Depth, InnerShare, Section, Values, Weight, Width
from eve_vl.utils.frozen import Frozen


class EvaluationFlags(Frozen):
    """Values of a task's section that evaluation can override; None: the run's own."""


class TaskConfig(Section):
    """A training objective."""

    title: ClassVar[str]
    """Name for people."""
    is_pretraining: ClassVar[bool] = False
    """Whether `eve pretrain` trains it, rather than `eve finetune`."""
    has_numbers: ClassVar[bool] = True
    """Whether `eve evaluate` can measure it."""
    recipe: ClassVar[str] = ""
    """Recipe that fine-tunes it, if none has its name."""
    evaluation: ClassVar[type[EvaluationFlags]] = EvaluationFlags
    """Its own flags of `eve evaluate`."""
    alone: ClassVar[Mapping[str, str]] = {}
    """Modalities of rows besides pairs that it takes, each with the weight of the loss that they do not allow."""
    augments_captions: ClassVar[bool] = False
    """Whether data.caption_augment applies: its texts are captions that it does not need whole."""
    of_pairs: ClassVar[tuple[str, ...]] = ()
    """Fields that, unless they are 0, need states of pairs, which a backbone may lack."""

    def reads_pairs(self) -> tuple[str, ...]:
        """Return the fields whose values need states of pairs."""
        return tuple(name for name in self.of_pairs if getattr(self, name))

    def problems_with_rows(self, rows: str) -> list[str]:
        """Return the problems of training on rows of a `data.modality`, one sentence each."""
        if rows == "image_text":
            return []
        if (lacking := self.alone.get(rows)) is None:
            return [
                f"name {self.name} does not train on data.modality {rows}; leave it at image_text"
            ]
        weight = getattr(self, lacking)
        return [f"{lacking} {weight:g}, but data.modality is {rows}: set it to 0"] if weight else []

    def problems_with_pairs(self, num_pairs: int) -> list[str]:
        """Return the problems of a micro-batch of num_pairs, one sentence each."""
        return []

    def problems_with_model(self, model: Any) -> list[str]:
        """Return the problems of this task with a model section, one sentence each."""
        return []


class HeadlessConfig(TaskConfig):
    """An imported encoder without heads or losses, to start other runs from."""

    name: ClassVar[str] = "headless"
    title: ClassVar[str] = "an encoder without heads"
    is_pretraining: ClassVar[bool] = True
    has_numbers: ClassVar[bool] = False


class MaskedSignalConfig(TaskConfig):
    """Pre-training by masked signal modelling ([paper] "Pre-training Task")."""

    name: ClassVar[str] = "masked_signal"
    title: ClassVar[str] = "masked signal modelling"
    is_pretraining: ClassVar[bool] = True
    augments_captions: ClassVar[bool] = True
    alone: ClassVar[Mapping[str, str]] = {"image": "mlm_weight", "text": "mim_weight"}
    of_pairs: ClassVar[tuple[str, ...]] = ("mlm_weight",)
    unused: ClassVar[Sequence[tuple[str, object, str]]] = (
        (
            "task.mim_weight",
            0,
            "mim_share image_mask_ratio normalize_targets decoder_depth decoder_dim decoder_num_heads",
        ),
        (
            "task.mlm_weight",
            0,
            "text_mask_ratio whole_word_masking mask_replace_prob mask_replace_source",
        ),
        ("task.mask_replace_prob", 0, "mask_replace_source"),
        ("task.joint_masking", True, "mim_share"),
    )
    image_mask_ratio: InnerShare = 0.75
    """Share of masked patches in the image pass ([paper] Fig. 4)."""
    text_mask_ratio: InnerShare = 0.5
    """Share of masked non-special tokens in the text pass ([paper] Fig. 4)."""
    whole_word_masking: bool = False
    """Mask whole words with all their pieces instead of tokens, as later versions of BERT do."""
    mask_replace_prob: Annotated[float, "[0, 1]"] = 0.0
    """Share of masked tokens that show a word instead of [MASK] in training: half of them their own, half another one
    (BERT: 0.2). The model then learns whether the text is true of the image (LOG.md)."""
    mask_replace_source: Literal["batch", "vocabulary"] = "batch"
    """Source of the other words. batch: masked words of the batch, as frequent as true ones; vocabulary: all words (BERT)."""
    mim_weight: Weight = 1.0
    """Weight of the masked-pixel loss; 0: no image pass."""
    mim_share: Annotated[float, "(0, 1]"] = 1.0
    """Share of the rows of a micro-batch in the image pass in training, rounded up; 0.5 halves the cost of that pass."""
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

    def conflicts(self) -> dict[str, object]:
        """Return sentences about values that do not go together.

        Each comes with whether it holds.
        """
        learns_nothing = type(self) is MaskedSignalConfig and not (
            self.mim_weight or self.mlm_weight
        )
        lacks_one, width, heads = (
            0 in (self.mim_weight, self.mlm_weight),
            self.decoder_dim,
            self.decoder_num_heads,
        )
        return {
            "joint_masking needs both mim_weight and mlm_weight above 0": self.joint_masking
            and lacks_one,
            "mim_weight and mlm_weight are both 0: nothing to learn": learns_nothing,
            f"decoder_dim {width} is not divisible by 4 × decoder_num_heads": width % (4 * heads),
        }


class ContrastOptions(Values):
    """Options of contrast in pre-training and in fine-tuning."""

    unused: ClassVar[Sequence[tuple[str, object, str]]] = (
        ("task.itc_weight", 0, "memory_batches image_image_weight"),
    )
    memory_batches: CountOrZero = 0
    """Batches whose features stay as further negatives of contrast (cross-batch memory), once 20 % of the steps are done; 0:
    none. They are meant for batches that are small for the data. 8 batches of 128 pairs lengthen a step of icons_search by 3 %.
    Remembered matches of a row do not count."""
    image_image_weight: Weight = 0.0
    """Weight of the contrast of images with other images of the same caption (SupCon); 0: off. It is meant for searches that
    must recognise a thing in another style, and needs batches in which captions occur twice (data.pair_captions). Rows without
    such an image are left out."""


class ContrastMatchConfig(MaskedSignalConfig, ContrastOptions):
    """Pre-training by contrast (ITC), matching (ITM) and masked signals.

    These are the baselines of [paper] Tables 1 and 6.
    """

    name: ClassVar[str] = "contrast_match"
    title: ClassVar[str] = "contrast, matching and masked signals"
    alone: ClassVar[Mapping[str, str]] = {}
    of_pairs: ClassVar[tuple[str, ...]] = ("mlm_weight", "itm_weight")
    unused: ClassVar[Sequence[tuple[str, object, str]]] = (
        ("task.itc_weight", 0, "projection_dim itc_masked_image itc_targets svd_form svd_weight"),
        ("task.itm_weight", 0, "itm_negatives"),
        ("task.svd_form", "off", "svd_weight"),
    )
    mim_weight: Weight = 0.0
    """Weight of the masked-pixel loss; 0: no image pass."""
    itc_weight: Weight = 1.0
    """Weight of the image–text contrastive loss with its two unimodal passes; 0: off."""
    itm_weight: Weight = 1.0
    """Weight of the image–text matching loss; 0: off."""
    projection_dim: Annotated[int, "[0, 65536]"] = 0
    """Width of the contrastive features; 0: embed_dim."""
    itc_masked_image: bool = False
    """In training, contrast sees only the patches that image_mask_ratio leaves (FLIP); in evaluation whole images."""
    itc_targets: Literal["image", "diagonal", "same_text", "semantic"] = "image"
    """Positives of contrast: images and texts that share this. image: the image. diagonal: the row, so other captions of the
    image are negatives. same_text: the image or the text. semantic: labels, which every row needs; a text's share of the
    target grows with their agreement (MedCLIP)."""
    itm_negatives: Literal["local", "global", "random_half"] = "local"
    """Negatives of matching. local: one per image and per text, sampled by contrastive similarity in the process's
    micro-batch, three fusion passes (ALBEF). global: sampled from all processes and micro-batches of a step. random_half: half
    of the pairs get any other image, one fusion pass."""
    svd_form: Literal["off", "sigma1", "sigma1_share"] = "off"
    """Term of the largest singular value σ1 of the cosines of all images with all texts of a step. sigma1: σ1 over the number
    of rows, in (0, 1]; sigma1_share: σ1 over the sum of all singular values; off: neither the term nor its numbers."""
    svd_weight: Annotated[float, "(-inf, inf)"] = 0.1
    """Weight of that term: above 0 it spreads features, below 0 it gathers them, 0 only logs it."""

    def conflicts(self) -> dict[str, object]:
        """Return sentences about values that do not go together.

        Each comes with whether it holds.
        """
        learns = any((self.mim_weight, self.mlm_weight, self.itc_weight, self.itm_weight))
        samples = self.itm_weight and self.itm_negatives != "random_half"
        forgets = self.itc_weight and self.memory_batches and self.itc_targets == "semantic"
        how = "are sampled by contrastive similarity, but itc_weight is 0: set it to random_half"
        return super().conflicts() | {
            "mim_weight, mlm_weight, itc_weight and itm_weight are all 0: nothing to learn": not learns,
            f"itm_negatives {self.itm_negatives} {how}": samples and not self.itc_weight,
            "memory_batches keeps no labels, which itc_targets semantic needs: set memory_batches to 0": forgets,
        }

    def unused_fields(self) -> dict[str, str]:
        """Return the fields without effect next to the other values, with the reason."""
        found = super().unused_fields()
        if self.itc_weight and self.itc_masked_image:
            found.pop("image_mask_ratio", None)
        return found


class SearchFlags(EvaluationFlags):
    """Flags of `eve evaluate` for retrieval."""

    rerank: int | None = None
    """Best candidates of each query to re-rank by the matching head; 0: none; default: chosen by validation."""
    rerank_by: Literal["match", "sum"] | None = None
    """Order of re-ranking: by the matching head only, or by its sum with the contrast; default: the run's own."""
    captions_per_image: int | None = None
    """Captions per image in the gallery; 0: all; default: the run's own."""
    dedup_captions: bool | None = None
    """Equal captions count as one, true of every image that has it; COCO and Flickr30K: False; default: the run's own."""


class RetrievalConfig(TaskConfig, ContrastOptions):
    """Image–text retrieval by contrast (ITC), matching (ITM) and re-ranking.

    Negatives of matching are hard ([paper] "Downstream Tasks").

    Without contrast, matching scores every pair.
    """

    name: ClassVar[str] = "retrieval"
    title: ClassVar[str] = "image–text retrieval"
    augments_captions: ClassVar[bool] = True
    evaluation: ClassVar[type[EvaluationFlags]] = SearchFlags
    of_pairs: ClassVar[tuple[str, ...]] = ("itm_weight",)
    unused: ClassVar[Sequence[tuple[str, object, str]]] = (
        ("task.rerank", 0, "rerank_by"),
        ("task.itc_weight", 0, "projection_dim pooling final_norm"),
        ("task.itm_weight", 0, "itm_loss"),
        ("task.itm_loss", "pairs", "ranking_candidates"),
    )
    itc_weight: Weight = 1.0
    """Weight of the contrastive loss. 0: no comparable features, random negatives of matching, and search by one fusion pass
    per image–text pair; rerank must be 0 too."""
    itm_weight: Weight = 1.0
    """Weight of the matching loss; 0: no matching head; rerank must be 0 too."""
    itm_loss: Literal["pairs", "ranking"] = "pairs"
    """pairs: classify true and wrong pairs. ranking: find an image's own text among ranking_candidates, by a score that starts
    as the --init run's match logit."""
    ranking_candidates: Annotated[int, "[2, inf)"] = 16
    """Texts per image that ranking compares: its own and others of the micro-batch, one fusion pass each."""
    projection_dim: Annotated[int, "[0, 65536]"] = 0
    """Width of the features; 0: embed_dim."""
    itm_batchnorm: bool = False
    """Batch-normalise the matching head's input; small models learn to match sooner."""
    pooling: Literal["cls", "mean"] = "cls"
    """Features from the [CLS] state, as in the paper, or from the mean of the states, which learns sooner (LOG.md)."""
    final_norm: bool = True
    """Search by features after the encoder's final norm, as in training; the published code takes those before it."""
    rerank: CountOrZero = 128
    """Most candidates of each query to re-rank by the matching head (k_test); 0: none. Validation tries this number, its half,
    its quarter and so on, and none; best/ keeps the best choice."""
    rerank_by: Literal["match", "sum"] = "match"
    """Order of re-ranking. match: by the matching head, as published. sum: by its log-odds plus the similarity over the
    temperature. Training samples negatives by that similarity, so the head learns a correction of it."""
    captions_per_image: CountOrZero = 0
    """Captions per image in evaluation; 0: all."""
    dedup_captions: bool = False
    """Equal captions count as one text, true of every image that has it, and are no negatives of each other in training. For
    generated scenes, evaluation counts every image that the caption is true of. False: each caption is true of its image only,
    as on COCO and Flickr30K."""

    def problems_with_pairs(self, num_pairs: int) -> list[str]:
        """Return the problems of a micro-batch of num_pairs, one sentence each."""
        if self.itm_loss != "ranking" or num_pairs >= self.ranking_candidates:
            return []
        return [
            f"ranking_candidates {self.ranking_candidates} is more than the {num_pairs} pairs of a micro-batch"
        ]

    def conflicts(self) -> dict[str, object]:
        """Return sentences about values that do not go together.

        Each comes with whether it holds.
        """
        rerank, contrasts, matches = self.rerank, bool(self.itc_weight), bool(self.itm_weight)
        is_unnormed = self.pooling == "mean" and not self.final_norm
        head = f"rerank {rerank} needs the matching head, but itm_weight is 0: set it to 0 too"
        pairs = f"rerank {rerank} needs contrast's candidates, but itc_weight is 0, which scores every pair; set it to 0"
        return {
            "rerank 1 changes nothing, since one candidate has no order: give 0, or more than 1": rerank
            == 1,
            "itc_weight and itm_weight are both 0: nothing to learn": not contrasts and not matches,
            pairs: rerank and not contrasts,
            "pooling mean takes states after the final norm: leave final_norm at True": is_unnormed,
            head: rerank and contrasts and not matches,
            "itm_batchnorm has no effect while itm_weight is 0: there is no matching head": self.itm_batchnorm
            and not matches,
        }


class VQAConfig(TaskConfig):
    """Visual question answering as classification over an answer list.

    See [paper] "Downstream Tasks".
    """

    name: ClassVar[str] = "vqa"
    title: ClassVar[str] = "visual question answering"
    of_pairs: ClassVar[tuple[str, ...]] = ("name",)
    answers: Path | None = None
    """Answer list: a JSON list, one answer a line, or BEiT-3's answer2label.txt; default: built from the training data."""
    min_answer_count: Count = 9
    """Training questions that an answer of a built list needs."""

    def conflicts(self) -> dict[str, object]:
        """Return sentences about values that do not go together.

        Each comes with whether it holds.
        """
        has_both = self.answers is not None and self.min_answer_count != VQAConfig.min_answer_count
        return {"min_answer_count has no effect with an answer list (answers)": has_both}


class NLVR2Config(TaskConfig):
    """Truth of a statement about two images ([paper] "Downstream Tasks")."""

    name: ClassVar[str] = "nlvr2"
    title: ClassVar[str] = "statements about two images (NLVR2)"
    of_pairs: ClassVar[tuple[str, ...]] = ("name",)
    head: Literal["concat", "paired", "compare"] = "concat"
    """concat: the two text [CLS] states side by side. paired: each side attends to the other first (UNITER). compare: the two
    standardised states, their distance and their product (InferSent), with which small models learn soonest."""
    second_image_type_embedding: bool = False
    """Give the right image its own type embedding, initialised with the left one's."""


class ClassificationConfig(TaskConfig):
    """Classification of images, texts or both, with one label or several."""

    name: ClassVar[str] = "classification"
    title: ClassVar[str] = "classification"
    inputs: Literal["image", "text", "both"] = "image"
    """Model input; rows may hold more."""
    multilabel: bool = False
    """Rows may have several labels, each a binary decision."""
    classes: Path | None = None
    """Label list: a JSON list or one a line; default: the labels of the training data."""

    def reads_pairs(self) -> tuple[str, ...]:
        """Return what is read, if it is both."""
        return ("inputs",) * (self.inputs == "both")

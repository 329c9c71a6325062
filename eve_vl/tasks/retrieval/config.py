"""The section of image–text retrieval."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from eve_vl.config import TaskConfig
from eve_vl.config.sections import CountOrZero, UnusedFields, Weight
from eve_vl.config.task import EvaluationFlags
from eve_vl.tasks.contrast.config import ContrastOptions


class SearchFlags(EvaluationFlags):
    """Flags of `eve evaluate` for retrieval."""

    rerank: int | None = None
    """Best candidates of each query to re-rank by the matching head; 0: none; default: chosen by
    validation."""
    rerank_by: Literal["match", "sum"] | None = None
    """Order of re-ranking: by the matching head only, or by its sum with the contrast; default: the
    run's own."""
    captions_per_image: int | None = None
    """Captions per image in the gallery; 0: all; default: the run's own."""
    dedup_captions: bool | None = None
    """Equal captions count as one, true of every image that has it; COCO and Flickr30K: False;
    default: the run's own."""


class RetrievalConfig(TaskConfig, ContrastOptions):
    """Image–text retrieval by contrast (ITC), matching (ITM) and re-ranking.

    Negatives of matching are hard ([paper] "Downstream Tasks").

    Without contrast, matching scores every pair.
    """

    name: ClassVar[str] = "retrieval"
    title: ClassVar[str] = "image–text retrieval"
    small_recipe: ClassVar[str] = "search_small"
    augments_captions: ClassVar[bool] = True
    evaluation: ClassVar[type[EvaluationFlags]] = SearchFlags
    of_pairs: ClassVar[tuple[str, ...]] = ("itm_weight",)
    unused: ClassVar[Sequence[UnusedFields]] = (
        UnusedFields(when="task.rerank", equals=0, fields="rerank_by"),
        UnusedFields(when="task.itc_weight", equals=0, fields="projection_dim pooling final_norm"),
        UnusedFields(when="task.itm_weight", equals=0, fields="itm_loss"),
        UnusedFields(when="task.itm_loss", equals="pairs", fields="ranking_candidates"),
    )
    itc_weight: Weight = 1.0
    """Weight of the contrastive loss. 0: no comparable features, random negatives of matching, and
    search by one fusion pass per image–text pair; rerank must be 0 too."""
    itm_weight: Weight = 1.0
    """Weight of the matching loss; 0: no matching head; rerank must be 0 too."""
    itm_loss: Literal["pairs", "ranking"] = "pairs"
    """pairs: classify true and wrong pairs. ranking: find an image's own text among
    ranking_candidates, by a score that starts as the --init run's match logit."""
    ranking_candidates: Annotated[int, "[2, inf)"] = 16
    """Texts per image that ranking compares: its own and others of the micro-batch, one fusion pass
    each."""
    projection_dim: Annotated[int, "[0, 65536]"] = 0
    """Width of the features; 0: embed_dim."""
    itm_batchnorm: bool = False
    """Batch-normalise the matching head's input; small models learn to match sooner."""
    pooling: Literal["cls", "mean"] = "cls"
    """Features from the [CLS] state, as in the paper, or from the mean of the states, which learns
    sooner (LOG.md)."""
    final_norm: bool = True
    """Search by features after the encoder's final norm, as in training; the published code takes
    those before it."""
    rerank: CountOrZero = 128
    """Most candidates of each query to re-rank by the matching head (k_test); 0: none. Validation
    tries this number, its half, its quarter and so on, and none; best/ keeps the best choice."""
    rerank_by: Literal["match", "sum"] = "match"
    """Order of re-ranking. match: by the matching head, as published. sum: by its log-odds plus the
    similarity over the temperature. Training samples negatives by that similarity, so the head
    learns a correction of it."""
    captions_per_image: CountOrZero = 0
    """Captions per image in evaluation; 0: all."""
    dedup_captions: bool = False
    """Equal captions count as one text, true of every image that has it, and are no negatives of
    each other in training. For generated scenes, evaluation counts every image that the caption is
    true of. False: each caption is true of its image only, as on COCO and Flickr30K."""

    def starting_from(self, init: Any) -> TaskConfig:
        """Return this section for a run that starts from another run: on towers such as CLIP's it
        keeps their heads."""
        if not isinstance(init.task, RetrievalConfig) or not init.model.reads_text_end:
            return self
        return replace(
            self,
            itm_weight=0.0,
            rerank=0,
            rerank_by="match",
            pooling="cls",
            projection_dim=init.task.projection_dim,
        )

    def problems_with_pairs(self, num_pairs: int) -> list[str]:
        """Return the problems of a micro-batch of num_pairs, one sentence each."""
        if self.itm_loss != "ranking" or num_pairs >= self.ranking_candidates:
            return []
        return [
            f"ranking_candidates {self.ranking_candidates} is more than the {num_pairs} pairs of a "
            "micro-batch"
        ]

    def problems(self) -> list[str]:
        """Return the problems of values that do not go together, one sentence each."""
        problems = []
        if self.rerank == 1:
            problems.append(
                "rerank 1 changes nothing, since one candidate has no order: give 0, or more than 1"
            )
        if not self.itc_weight and not self.itm_weight:
            problems.append("itc_weight and itm_weight are both 0: nothing to learn")
        if self.rerank and not self.itc_weight:
            problems.append(
                f"rerank {self.rerank} needs contrast's candidates, but itc_weight is 0, which "
                "scores every pair; set it to 0"
            )
        elif self.rerank and not self.itm_weight:
            problems.append(
                f"rerank {self.rerank} needs the matching head, but itm_weight is 0: "
                "set it to 0 too"
            )
        if self.pooling == "mean" and not self.final_norm:
            problems.append(
                "pooling mean takes states after the final norm: leave final_norm at True"
            )
        if self.itm_batchnorm and not self.itm_weight:
            problems.append(
                "itm_batchnorm has no effect while itm_weight is 0: there is no matching head"
            )
        return problems

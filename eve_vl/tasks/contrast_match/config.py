"""The section of pre-training by contrast, matching and masked signals."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from eve_vl.config.sections import (
    UnusedFields,
    Weight,
)
from eve_vl.tasks.contrast.config import ContrastOptions
from eve_vl.tasks.masked_signal.config import MaskedSignalConfig


class ContrastMatchConfig(MaskedSignalConfig, ContrastOptions):
    """Pre-training by contrast (ITC), matching (ITM) and masked signals.

    These are the baselines of [paper] Tables 1 and 6.
    """

    name: ClassVar[str] = "contrast_match"
    title: ClassVar[str] = "contrast, matching and masked signals"
    alone: ClassVar[Mapping[str, str]] = {}
    of_pairs: ClassVar[tuple[str, ...]] = ("mlm_weight", "itm_weight")
    unused: ClassVar[Sequence[UnusedFields]] = (
        UnusedFields(
            when="task.itc_weight",
            equals=0,
            fields="projection_dim itc_masked_image itc_targets svd_form svd_weight",
        ),
        UnusedFields(when="task.itm_weight", equals=0, fields="itm_negatives"),
        UnusedFields(when="task.svd_form", equals="off", fields="svd_weight"),
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
    """In training, contrast sees only the patches that image_mask_ratio leaves (FLIP); in
    evaluation whole images."""
    itc_targets: Literal["image", "diagonal", "same_text", "semantic"] = "image"
    """Positives of contrast: images and texts that share this. image: the image. diagonal: the row,
    so other captions of the image are negatives. same_text: the image or the text. semantic:
    labels, which every row needs; a text's share of the target grows with their agreement
    (MedCLIP)."""
    itm_negatives: Literal["local", "global", "random_half"] = "local"
    """Negatives of matching. local: one per image and per text, sampled by contrastive similarity
    in the process's micro-batch, three fusion passes (ALBEF). global: sampled from all processes
    and micro-batches of a step. random_half: half of the pairs get any other image, one fusion
    pass."""
    svd_form: Literal["off", "sigma1", "sigma1_share"] = "off"
    """Term of the largest singular value σ1 of the cosines of all images with all texts of a step.
    sigma1: σ1 over the number of rows, in (0, 1]; sigma1_share: σ1 over the sum of all singular
    values; off: neither the term nor its numbers."""
    svd_weight: Annotated[float, "(-inf, inf)"] = 0.1
    """Weight of that term: above 0 it spreads features, below 0 it gathers them, 0 only logs it."""

    def problems_of_weights(self) -> list[str]:
        """Return whether all weights of losses are 0."""
        if self.mim_weight or self.mlm_weight or self.itc_weight or self.itm_weight:
            return []
        return ["mim_weight, mlm_weight, itc_weight and itm_weight are all 0: nothing to learn"]

    def problems(self) -> list[str]:
        """Return the problems of values that do not go together, one sentence each."""
        problems = super().problems()
        samples_negatives = self.itm_weight and self.itm_negatives != "random_half"
        if samples_negatives and not self.itc_weight:
            problems.append(
                f"itm_negatives {self.itm_negatives} are sampled by contrastive similarity, but "
                "itc_weight is 0: set it to random_half"
            )
        if self.itc_weight and self.memory_batches and self.itc_targets == "semantic":
            problems.append(
                "memory_batches keeps no labels, which itc_targets semantic needs: set "
                "memory_batches to 0"
            )
        return problems

    def unused_fields(self) -> dict[str, str]:
        """Return the fields without effect next to the other values, with the reason."""
        unused = super().unused_fields()
        if self.itc_weight and self.itc_masked_image:
            unused.pop("image_mask_ratio", None)
        return unused

    def problems_with_model(self, model: Any) -> list[str]:
        """Return the problems of this task with a model section, one sentence each."""
        problems = super().problems_with_model(model)
        trains_whole_images = self.mlm_weight or self.itm_weight
        if (
            self.itc_masked_image
            and not trains_whole_images
            and getattr(model, "stem", "") in ("conv", "residual_conv")
        ):
            problems.append(
                f"itc_masked_image with model.stem {model.stem}, which must see whole images "
                "during training too: set task.mlm_weight or task.itm_weight above 0, or "
                "model.stem to linear"
            )
        return problems

"""Grad-CAM of attention, and the evidence that it differentiates.

Letters: B batch, H heads, N tokens, d width of a head, R rows, C classes.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from eve_vl.model.attention import Attention, attention_weights
from eve_vl.model.submodules import Module, replace_submodules
from eve_vl.utils.frozen import Frozen


class Evidence(Frozen):
    """Score that Grad-CAM differentiates: logits (R, C) and the class of each row."""

    logits: Callable[[Any], Tensor]
    """Computes them from the task or a twin of it."""
    classes: Tensor | Sequence[int]
    words: str
    masks_word: bool = False
    is_one_of_many: bool = True
    """Whether the classes exclude each other; VQA's answers do not."""

    def score(self, twin: Any) -> Tensor:
        """Return the sum of the classes' logits, with all rows of the last block computed."""
        twin.encoder.computes_all = True
        return self._of_classes(self.logits(twin)).sum()

    @torch.no_grad()
    def probability(self, task: Any) -> float:
        """Return the probability that all rows have their classes."""
        logits_RC = self.logits(task)
        if self.is_one_of_many:
            log_probability_RC = logits_RC.log_softmax(1)
        else:
            log_probability_RC = F.logsigmoid(logits_RC)
        return self._of_classes(log_probability_RC).sum().exp().item()

    def _of_classes(self, values_RC: Tensor) -> Tensor:
        """Return the value of each row's class, (R, 1)."""
        classes_R = torch.as_tensor(self.classes, device=values_RC.device)
        return values_RC.gather(1, classes_R[:, None])


def gradcam(
    module: Module, attention: str, score: Callable[[Module], Tensor]
) -> tuple[Tensor, Tensor]:
    """Return Grad-CAM of an attention, (B, N, N), and rows with effect, bool (B, N).

    It is the mean over heads of relu(weight · ∂score/∂weight) (Selvaraju et al. 2017; on attention
    as in ALBEF and EVE). Rows are queries, columns keys; padding keys have 0. attention: its name
    in the module. score: runs the twin that it gets once over the batch, whole or in parts, and
    returns a scalar. The derivative moves one weight, without the others of its row.
    """
    original = module.get_submodule(attention)
    assert isinstance(original, Attention)
    weights_of_passes: list[Tensor] = []  # each (B, H, N, N)

    def attend_and_record(
        q_BHNd: Tensor, k_BHNd: Tensor, v_BHNd: Tensor, mask: Tensor | None
    ) -> Tensor:
        assert q_BHNd.shape[2] > 1, "all rows are wanted"
        weights_BHNN = attention_weights(q_BHNd, k_BHNd, mask).detach().requires_grad_()
        weights_of_passes.append(weights_BHNN)
        return weights_BHNN @ v_BHNd

    twin = copy.copy(original)
    twin.attend = attend_and_record
    with torch.enable_grad():
        value = score(replace_submodules(module, {attention: twin}))
    assert weights_of_passes, "the score goes through the encoder"
    gradient_BHNN = torch.cat(torch.autograd.grad(value, weights_of_passes))
    weights_BHNN = torch.cat(weights_of_passes).detach()
    cam_BNN = (weights_BHNN * gradient_BHNN).relu().mean(1)
    has_effect_BN = gradient_BHNN.ne(0).any(3).any(1)
    return cam_BNN, has_effect_BN

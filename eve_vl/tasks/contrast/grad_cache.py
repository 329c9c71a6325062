"""Contrast over all micro-batches of a step: GradCache (Gao et al. 2021).

Every pair keeps all the others as negatives, with any accumulation.
"""

import dataclasses

import torch
from torch import Tensor

from eve_vl.data.kinds.captions import CaptionBatch
from eve_vl.model.backbone import Backbone
from eve_vl.tasks.contrast.cached_contrast import CachedContrast
from eve_vl.tasks.contrast.contrast import Contrast
from eve_vl.train.random_state import get_rng_state
from eve_vl.train.running_averages import running_averages_restored


def add_contrast_of_step(
    contrast: Contrast, encoder: Backbone, micro_batches: list[CaptionBatch]
) -> list[CaptionBatch]:
    """Return the micro-batches with their share of a contrast over all of them.

    Features are first computed without a gradient, then the losses and their gradients by the
    features. `Contrast.forward` repeats the features, with the same dropout.
    """
    rng_states = []
    images = []
    texts = []
    # `forward` updates running averages, once as without accumulation
    with torch.no_grad(), running_averages_restored(encoder):
        for batch in micro_batches:
            rng_states.append(get_rng_state())
            features = contrast.unimodal(encoder, batch)
            images.append(features.image_BXd)
            texts.append(features.text_BXd)

    image_BXd = torch.cat(images).requires_grad_()
    text_BXd = torch.cat(texts).requires_grad_()
    temperatures = []
    for temperature in contrast.temperatures:
        temperatures.append(temperature.detach().clone().requires_grad_())
    step = contrast.contrast_losses(image_BXd, text_BXd, micro_batches, temperatures)
    hard_negatives = contrast.fetch_negatives(
        encoder, micro_batches, image_BXd, text_BXd, temperatures[0]
    )

    gradients: list[dict[str, tuple[Tensor, ...]]] = [{} for _ in micro_batches]
    sizes = [len(image) for image in images]
    num = len(micro_batches)  # the training loop divides by it
    for name, loss in step.losses.items():
        by_image, by_text, *by_temperatures = torch.autograd.grad(
            loss, [image_BXd, text_BXd, *temperatures], retain_graph=True, materialize_grads=True
        )
        parts = zip((num * by_image).split(sizes), (num * by_text).split(sizes), strict=True)
        for number, (by_image_of_batch, by_text_of_batch) in enumerate(parts):
            gradients[number][name] = (by_image_of_batch, by_text_of_batch, *by_temperatures)

    batches = []
    losses = {name: loss.detach() for name, loss in step.losses.items()}
    for number, batch in enumerate(micro_batches):
        cached = CachedContrast(
            rng_state=rng_states[number],
            losses=losses,
            gradients=gradients[number],
            terms=step.terms,
            hard_negatives=hard_negatives[number],
        )
        batches.append(dataclasses.replace(batch, contrast=cached))
    return batches

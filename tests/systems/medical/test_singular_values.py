"""The term of MedFLIP on the singular values of similarities, against numpy."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from eve_vl import objectives
from helpers.contrast_match_batches import (
    CONTRAST_ONLY,
    ROWS,
    batches_of,
    build,
    config_of,
    features_of,
)


def largest(values):
    return values[0]


def share_of_largest(values):
    return values[0] / values.sum()


@pytest.mark.parametrize(("C", "D"), [(4, 7), (7, 4)])  # fewer rows than features, and more
def test_values_are_those_of_numpy_and_gradients_those_of_finite_differences(C, D):
    rng = torch.Generator().manual_seed(C)
    image = torch.randn(C, D, generator=rng, dtype=torch.float64)
    text = torch.randn(C, D, generator=rng, dtype=torch.float64)
    image *= torch.linspace(2, 0.5, D)  # singular values far from each other

    def numpy_values(image_CD: Tensor) -> np.ndarray:
        similarity = (image_CD @ text.T).numpy()
        return np.linalg.svd(similarity, compute_uv=False)[: min(C, D)]

    x = image.float().requires_grad_()
    value_R = objectives.singular_values(x, text.float())
    expected = numpy_values(image)
    np.testing.assert_allclose(value_R.detach().numpy(), expected, rtol=1e-4, atol=1e-5)
    shares = expected / expected.sum()
    entropy = -sum(share * math.log(share) for share in shares)
    assert objectives.effective_rank(value_R).item() == pytest.approx(math.exp(entropy), rel=1e-4)

    for form in (largest, share_of_largest):
        (gradient,) = torch.autograd.grad(form(value_R), x, retain_graph=True)
        for row, column in (
            (0, 0),
            (2, 3),
            (C - 1, D - 1),
        ):
            step = torch.zeros_like(image)
            step[row, column] = 1e-6
            rise = form(numpy_values(image + step)) - form(numpy_values(image - step))
            assert gradient[row, column].item() == pytest.approx(rise / 2e-6, rel=1e-3, abs=1e-5)


def test_sigma1_of_collapse_is_all_and_of_perfect_alignment_its_least():
    collapsed = F.normalize(torch.ones(6, 3), dim=1)
    assert objectives.singular_values(collapsed, collapsed)[0].item() == pytest.approx(6, rel=1e-5)
    assert objectives.singular_values(torch.eye(6), torch.eye(6)).tolist() == pytest.approx([1] * 6)


@pytest.mark.parametrize(
    ("form", "weight"),
    [
        ("sigma1", 0.1),
        ("sigma1_share", -2.0),
        ("sigma1", 0.0),
    ],
)
def test_the_svd_term_is_added_by_its_weight_and_logged(form, weight):
    config = config_of(**CONTRAST_ONLY, svd_form=form, svd_weight=weight)
    task = build(config)
    (batch,) = batches_of(config)
    image, text = features_of(task, batch)
    values = np.linalg.svd((image @ text.T).detach().double().numpy(), compute_uv=False)
    expected = values[0] / (ROWS if form == "sigma1" else values.sum())
    output = task(batch)
    svd_term = (output.loss - output.terms["itc"]).item()
    assert output.terms["sigma1"].item() == pytest.approx(values[0] / ROWS, rel=1e-4)
    assert svd_term == pytest.approx(weight * expected, rel=1e-3, abs=1e-5)
    assert 1 <= output.terms["effective_rank"] <= ROWS

"""Masked signal modelling against slow loops: visible input, predictions, losses."""

import math
from collections import Counter, defaultdict
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from eve_vl.data.masked_batches import PairBatch
from eve_vl.model.encoder import Encoder
from eve_vl.model.packing import PackedTokens
from eve_vl.model.patches import gather_patches
from eve_vl.model.router import Router
from eve_vl.model.tokens import Tokens
from eve_vl.tasks.masked_signal.task import MaskedSignal
from helpers.masked_pairs import (
    LENGTHS,
    MASK,
    PAD,
    masked_batch,
    masked_samples,
    masked_signal,
    patches_of,
    with_changed_masked_tokens,
    with_patches,
)
from helpers.slow_experts import TwinStats, slow_balance, slow_entropy
from helpers.tiny_config import tiny_config


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def predicted_tokens(task: MaskedSignal, batch: PairBatch) -> Tensor:
    return task.predict_tokens(task.encode(batch, mask=True), batch)


def predicted_pixels(task: MaskedSignal, batch: PairBatch) -> Tensor:
    return task.predict_pixels(task.encode(batch, keep=True), batch)


# Losses


@torch.no_grad()
def test_masked_tokens_show_mask_themselves_or_a_random_word_in_training_only():
    """Of the 0.6 that show a word, half show themselves; unmasked tokens stay."""
    task = masked_signal(tiny_config(task={"mask_replace_prob": 0.6}))
    batch = masked_batch([200] * 40)
    is_masked = batch.is_masked_BT
    assert torch.equal(task.with_masked_tokens(batch), batch.ids_BT.masked_fill(is_masked, MASK))
    visible = task.train().with_masked_tokens(batch)
    assert torch.equal(visible[~is_masked], batch.ids_BT[~is_masked])
    is_mask = visible[is_masked] == MASK
    is_true = visible[is_masked] == batch.ids_BT[is_masked]
    assert is_mask.float().mean().item() == pytest.approx(0.4, abs=0.03)
    # one random token in 27 is the true one
    assert is_true.float().mean().item() == pytest.approx(0.3 + 0.3 / 27, abs=0.03)


def normalized(patches_PX: np.ndarray) -> np.ndarray:
    """Return patches with mean 0 and deviation 1 each."""
    mean_P1 = patches_PX.mean(1, keepdims=True)
    variance_P1 = patches_PX.var(1, ddof=1, keepdims=True)
    return (patches_PX - mean_P1) / np.sqrt(variance_P1 + 1e-6)


@pytest.mark.parametrize("normalize", [True, False])
@torch.no_grad()
def test_losses_equal_those_of_one_sample_at_a_time(normalize):
    """Without padding, sums by hand."""
    task = masked_signal(tiny_config(task={"normalize_targets": normalize}))
    token_losses = []
    is_right = []
    errors = []
    for sample in masked_samples():
        batch = PairBatch.collate([sample], PAD)
        targets = sample.ids_T[sample.is_masked_T].tolist()
        for logits, target in zip(predicted_tokens(task, batch).tolist(), targets, strict=True):
            log_sum = math.log(sum(math.exp(logit) for logit in logits))
            token_losses.append(log_sum - logits[target])
            is_right.append(np.argmax(logits) == target)
        target_PX = patches_of(batch)[0].double().numpy()
        if normalize:
            target_PX = normalized(target_PX)
        pixels_MX = predicted_pixels(task, batch)[0].double().numpy()
        errors.append((pixels_MX - target_PX[sample.hidden_M]) ** 2)
    terms = task(masked_batch()).terms
    assert terms["mlm"].item() == pytest.approx(np.mean(token_losses), rel=1e-4)
    assert terms["mlm_acc"].item() == pytest.approx(np.mean(is_right))
    assert terms["mim"].item() == pytest.approx(np.mean(errors), rel=1e-4)


@torch.no_grad()
def test_balance_and_routing_terms_equal_a_loop_over_the_inputs_of_routers():
    task = masked_signal(tiny_config())
    passes: dict[Router, list[TwinStats]] = defaultdict(list)

    def watch(router: Any, inputs: tuple[Tensor, PackedTokens], _output: object) -> None:
        x_SD, rows = inputs
        assert rows.is_real_S is not None
        stats = TwinStats()
        for x_D, is_text in zip(x_SD[rows.is_real_S], rows.is_text_S[rows.is_real_S], strict=True):
            logits_E = router.weight @ (x_D + router.modality_embed[int(is_text)])
            gates = (logits_E.exp() / logits_E.exp().sum()).tolist()
            stats.gates.append(gates)
            stats.choices.append([int(np.argmax(gates))])
        passes[router].append(stats)

    for module in task.modules():
        if isinstance(module, Router):
            module.register_forward_hook(watch)
    terms = task(masked_batch()).terms

    losses = []
    num_text = sum(LENGTHS)
    for number, (image_pass, text_pass) in enumerate(passes.values()):
        assert len(image_pass.gates) == 4 * 5 + num_text  # [CLS] and 4 kept patches
        assert len(text_pass.gates) == 4 * 17 + num_text
        losses += [slow_balance(image_pass), slow_balance(text_pass)]
        firsts = Counter(choice[0] for choice in image_pass.choices + text_pass.choices)
        num_tokens = firsts.total()
        max_load = max(firsts.values()) / num_tokens
        assert terms[f"max_load/{number}"].item() == pytest.approx(max_load)
        entropy = slow_entropy(image_pass) + slow_entropy(text_pass)
        assert terms[f"entropy/{number}"].item() == pytest.approx(entropy / num_tokens, rel=1e-4)
    assert terms["balance"].item() == pytest.approx(sum(losses) / 4, rel=1e-4)


@torch.no_grad()
@pytest.mark.parametrize(
    ("share", "num_rows"),
    [
        (0.3, 2),
        (0.25, 1),
        (0.01, 1),
        (1.0, 4),
    ],
)
def test_a_share_of_training_rows_is_reconstructed_as_if_they_were_alone(share, num_rows):
    task = masked_signal(tiny_config(task={"mim_share": share}))
    all_rows = masked_signal(tiny_config())
    whole = all_rows(masked_batch()).terms
    first_rows = all_rows(masked_batch(LENGTHS[:num_rows])).terms
    torch.testing.assert_close(task(masked_batch()).terms["mim"], whole["mim"])  # in evaluation
    terms = task.train()(masked_batch()).terms
    torch.testing.assert_close(terms["mim"], first_rows["mim"])
    torch.testing.assert_close(terms["mlm"], whole["mlm"])


# Visible input of each prediction


def differing_rows(x_B: Tensor, expected_B: Tensor) -> list[int]:
    return (x_B != expected_B).flatten(1).any(1).nonzero().flatten().tolist()


@torch.no_grad()
def test_pixel_prediction_sees_kept_patches_and_the_whole_text_only():
    task = masked_signal(tiny_config())
    batch = masked_batch()
    patches = patches_of(batch)
    plain = predicted_pixels(task, batch)
    assert plain.shape == (4, 12, 48)

    is_hidden = torch.zeros(4, 16, 1).scatter_(1, batch.hidden_BM[:, :, None], 1.0).bool()
    noisy = torch.where(is_hidden, torch.randn_like(patches), patches)
    assert torch.equal(predicted_pixels(task, with_patches(batch, noisy)), plain)
    for row in range(4):
        changed = patches.clone()
        changed[row, batch.keep_BK[row, 1]] += 1
        assert differing_rows(predicted_pixels(task, with_patches(batch, changed)), plain) == [row]
    for row, token in ((0, 7), (1, 2), (3, 0)):  # masked in the other pass or not
        ids = batch.ids_BT.clone()
        ids[row, token] = ids[row, token] % 20 + 5
        assert differing_rows(predicted_pixels(task, replace(batch, ids_BT=ids)), plain) == [row]


@torch.no_grad()
def test_token_prediction_sees_the_whole_image_and_no_masked_token():
    """Logits are computed for masked tokens only."""
    task = masked_signal(tiny_config())
    batch = masked_batch()
    plain = predicted_tokens(task, batch)
    assert len(plain) == batch.is_masked_BT.sum()
    assert torch.equal(predicted_tokens(task, with_changed_masked_tokens(batch)), plain)
    is_of_row_2 = batch.is_masked_BT.nonzero()[:, 0] == 2
    for patch in range(16):
        patches = patches_of(batch)
        patches[2, patch] += 1
        differs = (predicted_tokens(task, with_patches(batch, patches)) != plain).any(1)
        assert torch.equal(differs, is_of_row_2), patch


@torch.no_grad()
def test_joint_masking_takes_one_pass_and_hides_each_signal_from_its_prediction(monkeypatch):
    task = masked_signal(tiny_config(task={"joint_masking": True}))
    batch = masked_batch()
    lengths: list[int] = []
    run_blocks = Encoder.run_blocks

    def watched(encoder: Encoder, tokens: Tokens, *options: Any) -> Any:
        lengths.append(tokens.x_BND.shape[1])
        return run_blocks(encoder, tokens, *options)

    monkeypatch.setattr(Encoder, "run_blocks", watched)
    terms = task(batch).terms
    assert lengths == [1 + 4 + 8]
    assert {"mim", "mlm", "balance"} <= terms.keys()

    encoded = task.encode(batch, keep=True, mask=True)
    logits = task.predict_tokens(encoded, batch)
    token_loss = F.cross_entropy(logits, batch.ids_BT[batch.is_masked_BT])
    assert terms["mlm"].item() == pytest.approx(token_loss.item(), rel=1e-5)
    target = gather_patches(task.targets(patches_of(batch)), batch.hidden_BM)
    error = (task.predict_pixels(encoded, batch) - target).square().mean()
    assert terms["mim"].item() == pytest.approx(error.item(), rel=1e-5)

    assert torch.equal(task(with_changed_masked_tokens(batch)).terms["mim"], terms["mim"])
    patches = patches_of(batch)
    is_hidden = torch.zeros(4, 16, 1).scatter_(1, batch.hidden_BM[:, :, None], 1.0)
    changed = with_patches(batch, patches + is_hidden)
    assert torch.equal(task(changed).terms["mlm"], terms["mlm"])


# Steps of several micro-batches


@pytest.mark.parametrize("num_micro_batches", [1, 4])
def test_each_masked_token_of_a_step_counts_the_same(num_micro_batches):
    task = masked_signal(tiny_config(task={"mim_weight": 0.0}, model={"balance_weight": 0.0}))
    samples = masked_samples((12, 2, 3, 4, 11, 2, 9, 3))
    size = 8 // num_micro_batches
    parts = [PairBatch.collate(samples[start : start + size], PAD) for start in range(0, 8, size)]
    num_masked = [int(part.is_masked_BT.sum()) for part in parts]
    assert len(set(num_masked)) == len(parts)
    whole = PairBatch.collate(samples, PAD)
    targets = whole.ids_BT[whole.is_masked_BT]
    logits = predicted_tokens(task, whole)
    expected = F.cross_entropy(logits, targets)

    outputs = [task(part) for part in task.before_step(parts)]
    loss = torch.stack([output.loss for output in outputs]).mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    accuracy = torch.stack([output.terms["mlm_acc"] for output in outputs]).mean()
    torch.testing.assert_close(accuracy, (logits.argmax(1) == targets).float().mean())
    parameters = list(task.parameters())
    gradients = torch.autograd.grad(loss, parameters)
    expected_gradients = torch.autograd.grad(expected, parameters)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-3, atol=1e-5)


def test_a_step_without_a_masked_token_is_finite():
    task = masked_signal(tiny_config())
    batch = masked_batch()
    batch = replace(batch, is_masked_BT=torch.zeros_like(batch.is_masked_BT), masked_M=None)
    output = task(*task.before_step([batch]))
    assert output.terms["mlm"].item() == 0
    output.loss.backward()
    for name, parameter in task.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), name

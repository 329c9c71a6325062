"""Masked signal modelling against slow loops: visible input, predictions, losses."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from eve_vl.config import Config
from eve_vl.data.batches import Sample
from eve_vl.data.masked_batches import PairBatch
from eve_vl.data.masking import mask_patches, mask_tokens
from eve_vl.data.random_streams import generator
from eve_vl.model.encoder import Encoder
from eve_vl.model.packing import PackedTokens
from eve_vl.model.patches import gather_patches, patchify, unpatchify
from eve_vl.model.router import Router
from eve_vl.model.tokens import Tokens
from eve_vl.tasks.masked_signal.task import MaskedSignal
from eve_vl.tasks.task import Sizes
from helpers.twins import TwinStats, randomize, slow_balance, tiny_config

VOCAB, MASK, PAD = 30, 2, 0
LENGTHS = (8, 3, 6, 5)


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


def samples(lengths: Sequence[int] = LENGTHS) -> list[Sample]:
    found = []
    for row, length in enumerate(lengths):
        rng = generator(7, row)
        keep_K, hidden_M = mask_patches(16, 0.75, rng)
        ids_T = rng.integers(3, VOCAB, length)
        found.append(
            Sample(
                batch=PairBatch,
                image=torch.from_numpy(rng.integers(0, 256, (3, 16, 16), dtype=np.uint8)),
                ids_T=ids_T,
                is_masked_T=mask_tokens(np.arange(length) == 0, 0.5, rng),
                keep_K=keep_K,
                hidden_M=hidden_M,
                image_id=row,
                caption=row,
                where=f"row {row}",
            )
        )
    return found


def batch_of(found: Sequence[Sample]) -> PairBatch:
    return PairBatch.collate(found, PAD)


def build(config: Config, vocab: int = VOCAB, mask: int = MASK) -> MaskedSignal:
    """A task in evaluation mode whose every weight matters."""
    task = MaskedSignal(config, Sizes(vocab_size=vocab, mask_id=mask))
    randomize(task, 1, std=0.35)
    return task.eval()


def patches_of(batch: PairBatch) -> Tensor:
    return patchify(batch.images_BCHW.float() / 127.5 - 1, 4)


def with_patches(batch: PairBatch, patches: Tensor) -> PairBatch:
    """The same pairs with other patches, (B, 16, 48), of normalised pixels."""
    return replace(batch, images_BCHW=unpatchify(patches, 4))


# The losses


def test_pixels_are_normalised_to_plus_minus_one():
    batch = batch_of(samples())
    expected = (batch.images_BCHW.numpy() / 255 - 0.5) / 0.5
    np.testing.assert_allclose(batch.pixels().numpy(), expected, atol=1e-6)


@torch.no_grad()
def test_hidden_tokens_show_mask_their_own_or_another_word_in_training_alone():
    """Of 0.6 that show a word, half show their own; what is not hidden stays, and evaluation always
    shows [MASK]."""
    task = build(tiny_config(task={"mask_replace_prob": 0.6}))
    batch = batch_of(samples([200] * 40))  # one token in 27 is shown another that is the same
    is_masked = batch.is_masked_BT
    assert torch.equal(task.with_masked_tokens(batch), batch.ids_BT.masked_fill(is_masked, MASK))
    shown = task.train().with_masked_tokens(batch)
    assert torch.equal(shown[~is_masked], batch.ids_BT[~is_masked])
    shares = Counter(
        "mask" if token == MASK else "own" if token == own else "other"
        for token, own in zip(
            shown[is_masked].tolist(), batch.ids_BT[is_masked].tolist(), strict=True
        )
    )
    expected = {"mask": 0.4, "own": 0.3 + 0.3 / 27, "other": 0.3 - 0.3 / 27}
    assert {name: num / is_masked.sum().item() for name, num in shares.items()} == pytest.approx(
        expected, abs=0.03
    )


@pytest.mark.parametrize("normalize", [True, False])
@torch.no_grad()
def test_losses_equal_those_of_one_sample_at_a_time(normalize):
    """No padding, batch of one, sums by hand: what batching must not change."""
    task = build(tiny_config(task={"normalize_targets": normalize}))
    found = samples()
    output = task(batch_of(found))
    token_loss, right, count, error, numbers = 0.0, 0, 0, 0.0, 0
    for sample in found:
        batch = batch_of([sample])
        patches = patches_of(batch)
        logits = task.predict_tokens(task.encode(batch, mask=True), batch).double()
        for row, target in zip(
            logits.tolist(), sample.ids_T[sample.is_masked_T].tolist(), strict=True
        ):
            token_loss -= row[target] - math.log(sum(math.exp(logit) for logit in row))
            right += int(np.argmax(row) == target)
            count += 1
        predicted = task.predict_pixels(task.encode(batch, keep=True), batch)[0].double().numpy()
        target = patches[0].double().numpy()
        if normalize:
            target = (target - target.mean(1, keepdims=True)) / np.sqrt(
                target.var(1, ddof=1, keepdims=True) + 1e-6
            )
        for row, position in enumerate(sample.hidden_M):
            error += ((predicted[row] - target[position]) ** 2).sum()
            numbers += 48
    assert output.terms["mlm"].item() == pytest.approx(token_loss / count, rel=1e-4)
    assert output.terms["mlm_acc"].item() == pytest.approx(right / count)
    assert output.terms["mim"].item() == pytest.approx(error / numbers, rel=1e-4)
    expected = output.terms["mlm"] + output.terms["mim"] + 0.001 * output.terms["balance"]
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-6)


def test_loss_is_the_weighted_sum_of_its_terms():
    config = tiny_config(task={"mim_weight": 0.3, "mlm_weight": 2.0}, model={"balance_weight": 0.7})
    task = build(config)
    output = task(batch_of(samples()))
    expected = 0.3 * output.terms["mim"] + 2.0 * output.terms["mlm"] + 0.7 * output.terms["balance"]
    assert output.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    output.loss.backward()
    missing = [
        name
        for name, parameter in task.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    assert not missing


@torch.no_grad()
def test_balance_and_routing_terms_equal_a_loop_over_what_the_routers_saw():
    task = build(tiny_config())
    seen: dict[int, list[TwinStats]] = {}
    routers = [module for module in task.modules() if isinstance(module, Router)]

    def watch(router: nn.Module, inputs: tuple[Tensor, PackedTokens], _output: object) -> None:
        assert isinstance(router, Router)
        assert router.modality_embed is not None
        stats = TwinStats()
        x_SD, rows = inputs
        assert rows.is_real_S is not None
        for x, is_text in zip(x_SD[rows.is_real_S], rows.is_text_S[rows.is_real_S], strict=True):
            logits = router.weight @ (x + router.modality_embed[int(is_text)])
            gates = (logits.exp() / logits.exp().sum()).tolist()
            stats.gates.append(gates)
            stats.choices.append(sorted(range(len(gates)), key=lambda e: -gates[e]))
        seen.setdefault(routers.index(router), []).append(stats)

    for router in routers:
        router.register_forward_hook(watch)
    batch = batch_of(samples())
    output = task(batch)
    num_text = sum(LENGTHS)
    for passes in seen.values():  # image pass: [CLS], 4 kept patches; text pass: [CLS], all 16
        assert [len(stats.gates) for stats in passes] == [4 * 5 + num_text, 4 * 17 + num_text]
    losses = [slow_balance(stats) for passes in seen.values() for stats in passes]
    assert output.terms["balance"].item() == pytest.approx(sum(losses) / 4, rel=1e-4)
    for number, passes in seen.items():
        firsts = Counter(choice[0] for stats in passes for choice in stats.choices)
        total = sum(firsts.values())
        assert output.terms[f"max_load/{number}"].item() == pytest.approx(
            max(firsts.values()) / total
        )
        entropy = -sum(g * math.log(g) for stats in passes for gates in stats.gates for g in gates)
        assert output.terms[f"entropy/{number}"].item() == pytest.approx(entropy / total, rel=1e-4)


# What each pass sees


@torch.no_grad()
def test_pixel_prediction_sees_kept_patches_and_the_whole_text_only():
    task, batch = build(tiny_config()), batch_of(samples())
    patches = patches_of(batch)
    plain = task.predict_pixels(task.encode(batch, keep=True), batch)
    hidden = torch.zeros(4, 16, 1).scatter_(1, batch.hidden_BM[:, :, None], 1.0).bool()
    other = torch.where(hidden, torch.randn_like(patches), patches)
    assert torch.equal(
        task.predict_pixels(task.encode(with_patches(batch, other), keep=True), batch), plain
    )
    for b in range(4):
        changed = patches.clone()
        changed[b, batch.keep_BK[b, 1]] += 1
        differs = (
            (
                task.predict_pixels(task.encode(with_patches(batch, changed), keep=True), batch)
                != plain
            )
            .flatten(1)
            .any(1)
        )
        assert differs.tolist() == [row == b for row in range(4)]
    for b, t in [
        (0, 7),
        (1, 2),
        (3, 0),
    ]:  # every text token is there, masked in the other pass or not
        ids = batch.ids_BT.clone()
        ids[b, t] = ids[b, t] % 20 + 5
        changed_batch = replace(batch, ids_BT=ids)
        differs = (
            task.predict_pixels(task.encode(changed_batch, keep=True), changed_batch) != plain
        ).flatten(1)
        assert differs.any(1).tolist() == [row == b for row in range(4)]


@torch.no_grad()
def test_predictions_come_in_the_order_of_the_hidden_positions():
    task, batch = build(tiny_config()), batch_of(samples())
    encoded = task.encode(batch, keep=True)
    plain = task.predict_pixels(encoded, batch)
    assert plain.shape == (4, 12, 48)
    order = torch.randperm(12)
    shuffled = task.predict_pixels(encoded, replace(batch, hidden_BM=batch.hidden_BM[:, order]))
    torch.testing.assert_close(shuffled, plain[:, order], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(shuffled, plain, atol=1e-3)
    target = task.targets(patches_of(batch))
    for b in range(4):
        for m in range(12):
            assert torch.equal(
                gather_patches(target, batch.hidden_BM)[b, m], target[b, batch.hidden_BM[b, m]]
            )


@torch.no_grad()
def test_token_prediction_sees_the_whole_image_and_no_masked_token():
    task, batch = build(tiny_config()), batch_of(samples())
    patches = patches_of(batch)
    plain = task.predict_tokens(task.encode(batch, mask=True), batch)
    other_ids = torch.where(batch.is_masked_BT, batch.ids_BT % 20 + 5, batch.ids_BT)
    other = replace(batch, ids_BT=other_ids)
    assert not torch.equal(other_ids, batch.ids_BT)
    assert torch.equal(task.predict_tokens(task.encode(other, mask=True), other), plain)
    sample_of = batch.is_masked_BT.nonzero()[:, 0]
    for p in range(16):
        changed = patches.clone()
        changed[2, p] += 1
        differs = (
            task.predict_tokens(task.encode(with_patches(batch, changed), mask=True), batch)
            != plain
        ).any(1)
        assert torch.equal(differs, sample_of == 2), p


def count_calls(module: nn.Module) -> list[tuple]:
    calls: list[tuple] = []
    module.register_forward_pre_hook(lambda _module, inputs: calls.append(inputs))
    return calls


@torch.no_grad()
def test_logits_are_computed_for_masked_tokens_alone_in_order():
    task, batch = build(tiny_config()), batch_of(samples())
    heads = count_calls(task.token_head)
    encoded = task.encode(batch, mask=True)
    logits = task.predict_tokens(encoded, batch)
    (states,) = heads[0]
    assert len(states) == len(logits) == int(batch.is_masked_BT.sum())
    expected = [
        task.token_head(encoded.x_BND[b : b + 1, 17 + t])[0]
        for b in range(4)
        for t in range(8)
        if batch.is_masked_BT[b, t]
    ]
    torch.testing.assert_close(logits, torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_two_passes_by_default_one_with_joint_masking(monkeypatch):
    lengths: list[int] = []
    run_blocks = Encoder.run_blocks

    def spy(self: Encoder, tokens: Tokens, *more: Any) -> Any:
        lengths.append(tokens.x_BND.shape[1])
        return run_blocks(self, tokens, *more)

    monkeypatch.setattr(Encoder, "run_blocks", spy)
    batch = batch_of(samples())
    build(tiny_config())(batch)
    assert lengths == [1 + 4 + 8, 1 + 16 + 8]
    lengths.clear()
    joint = build(tiny_config(task={"joint_masking": True}))
    output = joint(batch)
    assert lengths == [1 + 4 + 8]
    assert {"mim", "mlm", "balance"} <= output.terms.keys()
    patches = patches_of(batch)
    encoded = joint.encode(batch, keep=True, mask=True)
    expected = torch.nn.functional.cross_entropy(
        joint.predict_tokens(encoded, batch), batch.ids_BT[batch.is_masked_BT]
    )
    assert output.terms["mlm"].item() == pytest.approx(expected.item(), rel=1e-5)
    target = gather_patches(joint.targets(patches), batch.hidden_BM)
    error = (joint.predict_pixels(encoded, batch) - target).square().mean()
    assert output.terms["mim"].item() == pytest.approx(error.item(), rel=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    ("share", "num_rows"), [(0.5, 2), (0.3, 2), (0.25, 1), (0.01, 1), (1.0, 4)]
)
def test_in_training_a_share_of_the_rows_is_reconstructed_as_if_they_were_alone(
    share: float, num_rows: int
):
    task, found = build(tiny_config(task={"mim_share": share})), samples()
    alone = build(tiny_config())
    expected = {
        name: alone(batch_of(some)).terms[name]
        for name, some in (("mim", found[:num_rows]), ("mlm", found))
    }
    whole = alone(batch_of(found)).terms["mim"]
    torch.testing.assert_close(
        task(batch_of(found)).terms["mim"], whole
    )  # in evaluation all rows count
    terms = task.train()(batch_of(found)).terms
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value)
    assert (num_rows == 4) == torch.equal(terms["mim"], whole)


@torch.no_grad()
def test_joint_masking_hides_tokens_from_the_pixels_and_patches_from_the_tokens():
    task, batch = build(tiny_config(task={"joint_masking": True})), batch_of(samples())
    plain = task(batch).terms
    other = replace(
        batch, ids_BT=torch.where(batch.is_masked_BT, batch.ids_BT % 20 + 5, batch.ids_BT)
    )
    assert torch.equal(task(other).terms["mim"], plain["mim"])
    images = batch.images_BCHW.clone()
    for b in range(4):
        for p in batch.hidden_BM[b].tolist():
            images[b, :, p // 4 * 4 : p // 4 * 4 + 4, p % 4 * 4 : p % 4 * 4 + 4] += 90
    assert torch.equal(task(replace(batch, images_BCHW=images)).terms["mlm"], plain["mlm"])


def test_without_experts_there_is_nothing_to_balance():
    task = build(tiny_config(model={"deep_ffn": "modality"}))
    output = task(batch_of(samples()))
    assert set(output.terms) == {"mim", "mlm", "mlm_acc"}
    assert output.loss.item() == pytest.approx(
        (output.terms["mim"] + output.terms["mlm"]).item(), rel=1e-6
    )


@pytest.mark.parametrize("normalize", [True, False])
def test_targets_against_numpy(normalize):
    task, patches = (
        build(tiny_config(task={"normalize_targets": normalize})),
        patches_of(batch_of(samples())),
    )
    array = patches.double().numpy()
    expected = array
    if normalize:
        expected = (array - array.mean(2, keepdims=True)) / np.sqrt(
            array.var(2, ddof=1, keepdims=True) + 1e-6
        )
    np.testing.assert_allclose(task.targets(patches).numpy(), expected, rtol=1e-4, atol=1e-5)


def test_gradients_reach_what_each_loss_trains_and_nothing_else():
    task, batch = build(tiny_config()), batch_of(samples())
    terms = task(batch).terms
    parameters = dict(task.named_parameters())
    for term, silent in (("mim", "token_head"), ("mlm", "pixel_decoder")):
        found = torch.autograd.grad(
            terms[term], list(parameters.values()), retain_graph=True, allow_unused=True
        )
        for name, gradient in zip(parameters, found, strict=True):
            assert (gradient is None) == name.startswith(silent), name


# Steps of several micro-batches


@pytest.mark.parametrize("num", [1, 2, 4])
def test_gradients_do_not_depend_on_how_a_step_is_cut(num):
    """Rows mask different numbers of tokens, yet each masked token counts the same."""
    task = build(tiny_config(task={"mim_weight": 0.0}, model={"balance_weight": 0.0}))
    found = samples((12, 2, 3, 4, 11, 2, 9, 3))
    whole, parts = (
        batch_of(found),
        [batch_of(found[start : start + 8 // num]) for start in range(0, 8, 8 // num)],
    )
    assert len({int(part.is_masked_BT.sum()) for part in parts}) == len(parts)
    parameters = [parameter for parameter in task.parameters() if parameter.requires_grad]
    logits = task.predict_tokens(task.encode(whole, mask=True), whole)
    expected = torch.nn.functional.cross_entropy(logits, whole.ids_BT[whole.is_masked_BT])
    gradients = torch.autograd.grad(expected, parameters)
    outputs = [task(part) for part in task.before_step(parts)]
    loss = torch.stack([output.loss for output in outputs]).mean()
    for given, wanted in zip(torch.autograd.grad(loss, parameters), gradients, strict=True):
        torch.testing.assert_close(given, wanted, rtol=1e-3, atol=1e-5)
    assert sum(output.terms["mlm"].item() for output in outputs) / num == pytest.approx(
        expected.item(), rel=1e-5
    )
    right = (logits.argmax(-1) == whole.ids_BT[whole.is_masked_BT]).float().mean().item()
    assert sum(output.terms["mlm_acc"].item() for output in outputs) / num == pytest.approx(
        right, abs=1e-6
    )


def test_a_step_without_a_masked_token_is_finite():
    task = build(tiny_config())
    batch = batch_of(samples())
    batch = replace(batch, is_masked_BT=torch.zeros_like(batch.is_masked_BT), masked_M=None)
    output = task(*task.before_step([batch]))
    assert output.terms["mlm"].item() == 0
    output.loss.backward()
    assert all(
        parameter.grad is None or parameter.grad.isfinite().all() for parameter in task.parameters()
    )

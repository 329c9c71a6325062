"""The baselines of EVE: their losses, hard negatives, and FLOPs counted by torch."""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from eve_vl import objectives
from eve_vl.config import Config, TokenizerConfig
from eve_vl.data.masked_batches import PairBatch
from eve_vl.data.row_dataset import eval_positions
from eve_vl.metrics.intervals import from_json
from eve_vl.model.tokens import Tokens
from eve_vl.recipes import get_recipe
from eve_vl.run.loading import build_untrained
from eve_vl.run.training import train
from eve_vl.tasks.contrast_match.config import ContrastMatchConfig
from eve_vl.tasks.contrast_match.task import ContrastMatch
from eve_vl.tasks.evaluator import evaluator_of
from eve_vl.tasks.masked_signal.config import MaskedSignalConfig
from eve_vl.tasks.masked_signal.dataset import MaskedPairs
from eve_vl.tasks.task import Sizes
from eve_vl.train.run_log import read_log
from helpers.tiny_tasks import watch_matching
from helpers.twins import pairs, tiny_config, tiny_tokenizer
from tests.tasks.test_masked_signal import batch_of, samples

TOKENIZER = tiny_tokenizer()
VOCAB = TOKENIZER.vocab_size
DECODER: dict[str, Any] = {"decoder_depth": 1, "decoder_dim": 16, "decoder_num_heads": 2}
TASKS = {
    "mlm+mim": MaskedSignalConfig(**DECODER),
    "mlm+itc+mim": ContrastMatchConfig(mim_weight=1.0, itm_weight=0.0, **DECODER),
    "mlm+itc+itm": ContrastMatchConfig(**DECODER),
    "all": ContrastMatchConfig(mim_weight=1.0, **DECODER),
}


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    torch.manual_seed(0)
    yield


def config_of(name: str, **model) -> Config:
    return tiny_config(task=TASKS[name], model=model)


def build(config: Config) -> Any:
    return build_untrained(config, Sizes(vocab_size=VOCAB, mask_id=2))


def captions(count: int) -> PairBatch:
    """Pairs with texts of different lengths."""
    return batch_of(samples((8, 3, 6, 5, 9, 7)[:count]))


def full(count: int) -> PairBatch:
    """Pairs with texts of full length."""
    return batch_of(samples((12,) * count))


def expected_passes(name: str) -> int:
    return {"mlm+mim": 2, "mlm+itc+mim": 4, "mlm+itc+itm": 4, "all": 5}[name]


@pytest.mark.parametrize("name", TASKS)
def test_loss_is_the_weighted_sum_of_its_terms_and_trains_every_weight(name):
    config = config_of(name)
    weights = {"mim": 0.3, "mlm": 0.7, "itc": 2.0, "itm": 1.5}
    on = {key: value for key, value in weights.items() if getattr(config.task, f"{key}_weight", 0)}
    config = replace(
        config, task=replace(config.task, **{f"{key}_weight": value for key, value in on.items()})
    )
    task = build(config)
    output = task(captions(4))
    assert {key for key in weights if key in output.terms} == set(on)
    expected = sum(value * output.terms[key] for key, value in on.items())
    expected = expected + task.encoder.balance_weight * output.terms["balance"]
    torch.testing.assert_close(output.loss, expected)
    output.loss.backward()
    # an expert that no token chose has no gradient, nor does a router's row
    idle = [
        key
        for key, value in task.named_parameters()
        if value.grad is None or (not value.grad.any() and "moe" not in key)
    ]
    assert not idle


@pytest.mark.parametrize("name", TASKS)
def test_no_encoder_pass_is_run_twice(name, monkeypatch):
    config = config_of(name)
    task = build(config)
    sizes: list[tuple[int, ...]] = []
    run_blocks = task.encoder.run_blocks

    def counted(tokens: Tokens, *more: Any) -> tuple[Tensor, list]:
        sizes.append(tuple(tokens.x_BND.shape[:2]))
        return run_blocks(tokens, *more)

    monkeypatch.setattr(task.encoder, "run_blocks", counted)
    batch = full(4)
    task(batch)
    P, T, K = config.input.num_patches, config.input.text_length, batch.keep_BK.shape[1]
    expected = {
        "mlm": [(4, 1 + P + T)],
        "mim": [(4, 1 + K + T)],
        "itc": [(4, 1 + P), (4, T)],
        "itm": [(12, 1 + P + T)],
    }
    on = [key for key in expected if getattr(config.task, f"{key}_weight", 0)]
    assert sorted(sizes) == sorted(size for key in on for size in expected[key])
    assert len(sizes) == expected_passes(name)


@torch.no_grad()
def test_contrast_sees_unmasked_texts_and_whole_images():
    config = config_of("all", dropout=0.0)
    task = build(config).eval()
    batch = captions(4)
    image = task.encoder.encode(task.encoder.image(batch.pixels()), None)
    image_Bd = F.normalize(task.contrast.features.image(image.x_BND[:, 0]), dim=1)
    text = task.encoder.encode(None, task.encoder.text(batch.ids_BT, batch.is_padding_BT))
    text_Bd = F.normalize(task.contrast.features.text(text.x_BND[:, 0]), dim=1)
    logits_BB = image_Bd @ text_Bd.T / task.contrast.features.temperature
    own_B = torch.arange(4)
    expected = (F.cross_entropy(logits_BB, own_B) + F.cross_entropy(logits_BB.T, own_B)) / 2
    torch.testing.assert_close(task(batch).terms["itc"], expected)


def matched(task: ContrastMatch, batch: PairBatch, monkeypatch) -> tuple[Tensor, Tensor, Tensor]:
    """What the matching loss was given: image and text of each pair, by row of the batch, and its
    labels."""
    image = task.encoder.image(batch.pixels()).x_BND
    text = task.encoder.text(batch.ids_BT, batch.is_padding_BT).x_BND

    def rows(found: Tensor, among: Tensor) -> Tensor:
        distance = (found[:, None] - among[None]).abs().flatten(2).amax(2)
        assert (distance.min(1).values == 0).all()
        return distance.argmin(1)

    return watch_matching(
        task,
        batch,
        monkeypatch,
        lambda images, texts: (rows(images.x_BND, image), rows(texts.x_BND, text)),
    )


@torch.no_grad()
def test_matching_gets_each_true_pair_and_two_wrong_ones(monkeypatch):
    config = config_of("mlm+itc+itm", dropout=0.0)
    task = build(config).eval()
    batch = captions(6)
    batch = replace(batch, image_id_B=torch.tensor([0, 1, 2, 0, 4, 5]))  # two captions of one image
    images, texts, labels = matched(task, batch, monkeypatch)
    own = list(range(6))
    assert images.tolist()[:6] == texts.tolist()[:6] == own  # the pairs of the data
    assert texts.tolist()[6:12] == own  # each text with a wrong image
    assert images.tolist()[12:] == own  # each image with a wrong text
    assert labels.tolist() == [True] * 6 + [False] * 12
    assert all(
        batch.image_id_B[i] != batch.image_id_B[t]
        for i, t in zip(images[6:], texts[6:], strict=True)
    )


def test_negatives_are_drawn_as_often_as_their_similarity_says():
    similarity_BB = torch.randn(4, 4) * 2
    counts_BB = torch.zeros(4, 4)
    for _ in range(3000):
        counts_BB[
            torch.arange(4), objectives.hard_negatives(similarity_BB, torch.eye(4).bool())
        ] += 1
    weights_BB = np.exp(similarity_BB.double().numpy()) * (1 - np.eye(4))
    np.testing.assert_allclose(
        counts_BB / 3000, weights_BB / weights_BB.sum(1, keepdims=True), atol=0.04
    )


@pytest.mark.parametrize("name", ["mlm+itc+itm", "all"])
def test_a_few_pairs_are_learnt_by_heart(name):
    config = config_of(
        name,
        dropout=0.0,
        drop_path=0.0,
        layer_scale_init=1.0,
        init_std=0.05,
        pos_embed_init_std=0.3,
    )
    task, batch = build(config).train(), captions(4)
    optimizer = torch.optim.AdamW(task.parameters(), lr=5e-3)
    history = []
    for _ in range(120):
        output = task(batch)
        history.append({key: value.item() for key, value in output.terms.items()})
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    first = history[0]
    last = {
        key: min(found[key] for found in history[-40:]) for key in first
    }  # at this rate a step may throw it off for a few
    assert last["itc"] < 0.05 < 1 < first["itc"]
    assert last["itm"] < 0.1 < 0.5 < first["itm"]
    assert last["mlm"] < 0.2 < 3 < first["mlm"]


# What validation says


def validation(config: Config, size: int) -> Iterator[PairBatch]:
    dataset = MaskedPairs([pairs(10)], config, TOKENIZER, training=False)
    positions = eval_positions([10], 10)
    for start in range(0, 10, size):
        yield PairBatch.collate(
            [dataset[position] for position in positions[start : start + size]], 0
        )


@torch.no_grad()
@pytest.mark.parametrize("name", ["mlm+itc+mim", "all"])
def test_contrast_and_matching_of_validation_equal_a_slow_loop(name):
    """Each row alone with its own and with a wrong partner; features of length 1 by hand."""
    config = config_of(name, init_std=0.05, pos_embed_init_std=0.3)
    task = build(config)
    optimizer = torch.optim.AdamW(task.parameters(), lr=5e-3)
    with torch.enable_grad():
        for batch in list(validation(config, 5)) * 12:  # till it is right more often than not
            optimizer.zero_grad()
            task(batch).loss.backward()
            optimizer.step()
    task.eval()
    if (head := task.contrast.match_head) is not None:  # else it takes all for true, or none
        own = next(validation(config, 10))
        assert own.wrong is not None
        both = [
            task.match(each.images_BCHW, each.ids_BT, each.is_padding_BT)[0]
            for each in (own, own.with_text_of(own.wrong))
        ]
        head.bias[1] -= torch.cat(both).diff(dim=1).quantile(0.75)
    numbers = evaluator_of(task).evaluate(validation(config, 4))
    right: dict[str, list[bool]] = {"itc_acc": [], "itm_acc": []}
    num_yes = 0
    for batch in validation(config, 1):
        assert batch.wrong is not None
        images = [pair.images_BCHW.float() / 127.5 - 1 for pair in (batch, batch.wrong)]
        texts = [pair.ids_BT[~pair.is_padding_BT][None] for pair in (batch, batch.wrong)]
        heads = task.contrast.features
        image, wrong_image = (
            heads.image.weight @ task.encoder.encode(task.encoder.image(each), None).x_BND[0, 0]
            for each in images
        )
        text, wrong_text = (
            heads.text.weight @ task.encoder.encode(None, task.encoder.text(each, None)).x_BND[0, 0]
            for each in texts
        )
        own = torch.cosine_similarity(image, text, dim=0)
        right["itc_acc"] += [bool(own > torch.cosine_similarity(wrong_image, text, dim=0))]
        right["itc_acc"] += [bool(own > torch.cosine_similarity(image, wrong_text, dim=0))]
        for ids, is_match in zip(texts, (True, False), strict=True) if head is not None else ():
            assert head is not None
            states = task.encoder.encode(
                task.encoder.image(images[0]), task.encoder.text(ids, None)
            ).x_BND
            no, yes = head(states[:, 17])[0].tolist()
            right["itm_acc"].append((yes > no) == is_match)
            num_yes += yes > no
    expected = {key: float(np.mean(values)) for key, values in right.items() if values}
    assert {key: numbers[key] for key in right if key in numbers} == pytest.approx(expected)
    assert 0.5 < expected["itc_acc"] < 1
    assert head is None or 0 < num_yes < 20
    for size in (1, 10):
        assert evaluator_of(task).evaluate(validation(config, size)) == pytest.approx(
            numbers, rel=1e-5
        )


def test_pretraining_by_contrast_alone_validates_to_its_own_number(tmp_path):
    """No loss masks anything, so no number of masked signals can tell how it goes."""
    task = ContrastMatchConfig(mlm_weight=0.0, itm_weight=0.0)
    (tmp_path / "tokenizer.json").write_text(TOKENIZER.to_json())
    config = get_recipe("tiny")
    config = replace(
        config,
        out=tmp_path / "run",
        task=task,
        data=replace(config.data, val_samples=8),
        tokenizer=TokenizerConfig(path=tmp_path / "tokenizer.json"),
        train=replace(config.train, steps=2, batch_size=4, val_every=1),
    )
    assert train(config)
    metrics = from_json(json.loads((tmp_path / "run/metrics.json").read_text()))
    assert set(metrics) == {"itc_acc"}
    assert metrics["itc_acc"] in [right / 16 for right in range(17)]
    validations = [row for row in read_log(tmp_path / "run") if row["kind"] == "val"]
    assert [set(row) - {"kind", "step"} for row in validations] == [{"itc_acc"}] * 2


@pytest.mark.parametrize(
    "name", ["demo_mlm_itc_itm", "scenes_mlm_itc_itm", "scenes_all_losses", "base_mlm_itc_itm"]
)
def test_recipes_of_baselines_differ_from_eves_in_the_task_alone(name):
    config = get_recipe(name)
    family = name.partition("_")[0]
    eve = get_recipe(family if family == "base" else f"{family}_words")
    assert isinstance(config.task, ContrastMatchConfig)
    assert (config.task.itc_weight, config.task.itm_weight, config.task.mlm_weight) == (1, 1, 1)
    assert config.task.mim_weight == (1 if name == "scenes_all_losses" else 0)
    same = replace(config, recipe=eve.recipe, out=eve.out, task=eve.task)
    assert replace(same, train=replace(same.train, accumulation=eve.train.accumulation)) == eve

"""EVE's rivals, as trained by the same task: their losses, hard negatives, and their arithmetic counted by torch."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from twins import tiny_config

from eve_vl import objectives
from eve_vl.config import Config, MaskedSignalConfig
from eve_vl.data.batch import PairBatch
from eve_vl.inspect import step_flops
from eve_vl.model import moe
from eve_vl.model.embed import patchify
from eve_vl.recipes import get_recipe
from eve_vl.study.variants import made_up_batch
from eve_vl.tasks.masked_signal import MaskedSignal

VOCAB = 300
TASKS = {
    "mlm+mim": {},
    "mlm+itc+mim": {"itc_weight": 1.0},
    "mlm+itc+itm": {"mim_weight": 0.0, "itc_weight": 1.0, "itm_weight": 1.0},
    "all": {"itc_weight": 1.0, "itm_weight": 1.0},
}


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    torch.manual_seed(0)
    yield


def config_of(name: str, **model) -> Config:
    return tiny_config(task=TASKS[name], model=model)


def build(config: Config) -> MaskedSignal:
    return MaskedSignal(config, vocab_size=config.tokenizer.vocab_size, mask_id=2)


def expected_passes(name: str) -> int:
    return {"mlm+mim": 2, "mlm+itc+mim": 4, "mlm+itc+itm": 4, "all": 5}[name]


@pytest.mark.parametrize("name", TASKS)
def test_loss_is_the_weighted_sum_of_its_terms_and_trains_every_weight(name):
    config = config_of(name)
    weights = {"mim": 0.3, "mlm": 0.7, "itc": 2.0, "itm": 1.5}
    on = {key: value for key, value in weights.items() if getattr(config.task, f"{key}_weight")}
    config = replace(config, task=replace(config.task, **{f"{key}_weight": value for key, value in on.items()}))
    task = build(config)
    output = task(made_up_batch(config, 4, "captions"))
    assert {key for key in weights if key in output.terms} == set(on)
    expected = sum(value * output.terms[key] for key, value in on.items())
    expected = expected + config.model.balance_weight * output.terms["balance"]
    torch.testing.assert_close(output.loss, expected)
    output.loss.backward()
    # an expert that no token chose has no gradient, nor does a router's row
    idle = [key for key, value in task.named_parameters() if value.grad is None or (not value.grad.any() and "moe" not in key)]
    assert not idle


@pytest.mark.parametrize("name", TASKS)
def test_no_encoder_pass_is_run_twice(name, monkeypatch):
    config = config_of(name)
    task = build(config)
    sizes: list[tuple[int, int]] = []
    encode = task.encoder.encode

    def counted(tokens):
        sizes.append(tuple(tokens.x_BND.shape[:2]))
        return encode(tokens)

    monkeypatch.setattr(task.encoder, "encode", counted)
    batch = made_up_batch(config, 4, "full")
    task(batch)
    P, T, K = config.input.num_patches, config.input.text_length, batch.keep_BK.shape[1]
    expected = {"mlm": [(4, 1 + P + T)], "mim": [(4, 1 + K + T)], "itc": [(4, 1 + P), (4, T)], "itm": [(12, 1 + P + T)]}
    on = [key for key in expected if getattr(config.task, f"{key}_weight")]
    assert sorted(sizes) == sorted(size for key in on for size in expected[key])
    assert len(sizes) == expected_passes(name)


@torch.no_grad()
def test_contrast_sees_unmasked_texts_and_whole_pictures():
    config = config_of("all", dropout=0.0)
    task = build(config).eval()
    batch = made_up_batch(config, 4, "captions")
    patches = patchify(batch.pixels(), config.input.patch_size)
    image_Bd = F.normalize(task.contrast.features.image(task.encoder.encode(task.encoder.image(patches)).x_BND[:, 0]), dim=1)
    text = task.encoder.encode(task.encoder.text(batch.ids_BT, batch.is_padding_BT))
    text_Bd = F.normalize(task.contrast.features.text(text.x_BND[:, 0]), dim=1)
    logits_BB = image_Bd @ text_Bd.T / task.contrast.features.temperature
    own_B = torch.arange(4)
    expected = (F.cross_entropy(logits_BB, own_B) + F.cross_entropy(logits_BB.T, own_B)) / 2
    torch.testing.assert_close(task(batch).terms["itc"], expected)


def matched(task: MaskedSignal, batch: PairBatch, monkeypatch) -> tuple[Tensor, Tensor, Tensor]:
    """What the matching loss was given: picture and text of each pair, by row of the batch, and its labels."""
    seen: dict[str, Tensor] = {}
    match, matching = task.contrast.match, objectives.matching
    patches = patchify(batch.pixels(), task.config.input.patch_size)
    image = task.encoder.image(patches).x_BND
    text = task.encoder.text(batch.ids_BT, batch.is_padding_BT).x_BND

    def rows(found: Tensor, among: Tensor) -> Tensor:
        distance = (found[:, None] - among[None]).abs().flatten(2).amax(2)
        assert (distance.min(1).values == 0).all()
        return distance.argmin(1)

    def watched(encoder, image_tokens, text_tokens, **parts):
        seen["images"], seen["texts"] = rows(image_tokens.x_BND, image), rows(text_tokens.x_BND, text)
        return match(encoder, image_tokens, text_tokens, **parts)

    def labelled(logits, is_match):
        seen["labels"] = is_match
        return matching(logits, is_match)

    monkeypatch.setattr(task.contrast, "match", watched)
    monkeypatch.setattr(objectives, "matching", labelled)
    task(batch)
    return seen["images"], seen["texts"], seen["labels"]


@torch.no_grad()
def test_matching_gets_each_true_pair_and_two_wrong_ones(monkeypatch):
    config = config_of("mlm+itc+itm", dropout=0.0)
    task = build(config).eval()
    batch = made_up_batch(config, 6, "captions")
    batch = replace(batch, picture_B=torch.tensor([0, 1, 2, 0, 4, 5]))  # two captions of one picture
    images, texts, labels = matched(task, batch, monkeypatch)
    own = list(range(6))
    assert images.tolist()[:6] == texts.tolist()[:6] == own  # the pairs of the data
    assert texts.tolist()[6:12] == own  # each text with a wrong picture
    assert images.tolist()[12:] == own  # each picture with a wrong text
    assert labels.tolist() == [True] * 6 + [False] * 12
    assert all(batch.picture_B[i] != batch.picture_B[t] for i, t in zip(images[6:], texts[6:], strict=True))


def test_negatives_are_drawn_as_often_as_their_similarity_says():
    similarity_BB = torch.randn(4, 4) * 2
    counts_BB = torch.zeros(4, 4)
    for _ in range(3000):
        counts_BB[torch.arange(4), objectives.hard_negatives(similarity_BB, torch.eye(4).bool())] += 1
    weights_BB = np.exp(similarity_BB.double().numpy()) * (1 - np.eye(4))
    np.testing.assert_allclose(counts_BB / 3000, weights_BB / weights_BB.sum(1, keepdims=True), atol=0.04)


@pytest.mark.parametrize("name", ["mlm+itc+itm", "all"])
def test_a_few_pairs_are_learnt_by_heart(name):
    config = config_of(name, dropout=0.0, drop_path=0.0, layer_scale=1.0, init_std=0.05, position_std=0.3)
    task, batch = build(config).train(), made_up_batch(config, 4, "captions")
    optimizer = torch.optim.AdamW(task.parameters(), lr=5e-3)
    history = []
    for _ in range(120):
        output = task(batch)
        history.append({key: value.item() for key, value in output.terms.items()})
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    first, last = history[0], history[-1]
    assert last["itc"] < 0.05 < 1 < first["itc"]
    assert last["itm"] < 0.1 < 0.5 < first["itm"]
    assert last["mlm"] < 0.2 < 3 < first["mlm"]


@pytest.mark.parametrize("policies", [("modality", "moe"), ("shared", "shared"), ("moe", "moe")])
@pytest.mark.parametrize("name", TASKS)
def test_flops_are_those_that_torch_counts(name, policies, monkeypatch):
    """torch counts neither grouped_mm nor the fused attention of CPUs: both take their plain form here."""
    monkeypatch.setattr(moe, "grouped_mm_works", lambda *_: False)
    shallow, deep = policies
    config = config_of(name, shallow_ffn=shallow, deep_ffn=deep, depth=4, embed_dim=48, num_experts=4, top_k=2)
    task, batch = build(config), made_up_batch(config, 2, "full")
    expected = 2 * sum(step_flops(config, VOCAB).values())
    with sdpa_kernel(SDPBackend.MATH):
        with FlopCounterMode(display=False) as forward:
            loss = task(batch).loss
        with FlopCounterMode(display=False) as backward:
            loss.backward()
    assert forward.get_total_flops() == pytest.approx(expected, rel=0.01)
    assert backward.get_total_flops() == pytest.approx(2 * expected, rel=0.02)


@pytest.mark.parametrize("name", ["demo_rival", "scenes_rival", "scenes_all", "base_rival"])
def test_recipes_of_rivals_differ_from_eves_in_the_task_alone(name):
    config = get_recipe(name)
    eve = get_recipe(name.partition("_")[0])
    assert isinstance(config.task, MaskedSignalConfig)
    assert (config.task.itc_weight, config.task.itm_weight, config.task.mlm_weight) == (1, 1, 1)
    assert config.task.mim_weight == (1 if name == "scenes_all" else 0)
    same = replace(config, recipe=eve.recipe, out=eve.out, task=eve.task)
    assert replace(same, train=replace(same.train, accumulation=eve.train.accumulation)) == eve

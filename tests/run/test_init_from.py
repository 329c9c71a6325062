"""Weights of one task's run in another: the whole encoder or an error; new parts are logged."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eve_vl.config import Config
from eve_vl.run.loading import build_task, build_untrained
from eve_vl.run.weight_transfer import model_parts, start_from, transfer
from eve_vl.tasks.contrast_match.config import ContrastMatchConfig
from eve_vl.tasks.masked_signal.task import MaskedSignal
from eve_vl.tasks.nlvr2.config import NLVR2Config
from eve_vl.tasks.retrieval.config import RetrievalConfig
from eve_vl.tasks.task import Sizes
from eve_vl.tasks.vqa.config import VQAConfig
from eve_vl.utils.errors import UserError
from helpers.random_weights import randomize
from helpers.tiny_config import tiny_config
from helpers.tiny_runs import ANSWERS, tiny_run, write_run

IMAGE_POSITIONS = "encoder.image.positions"
TEXT_POSITIONS = "encoder.text.positions"
LAST_LAYER = {"answer_head.3.weight", "answer_head.3.bias"}
PRETRAINED = tiny_config()


def build(
    config: Config,
    seed: int = 0,
    num_answers: int = 4,
    vocab_size: int = 30,
) -> nn.Module:
    labels = tuple(f"answer {number}" for number in range(num_answers))
    task = build_untrained(config, Sizes(vocab_size=vocab_size, labels=labels))
    randomize(task, seed)
    return task


def copied_weights(task: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in task.state_dict().items()}


def weights(config: Config) -> dict[str, Tensor]:
    return copied_weights(build(config, seed=1))


def assert_equal(tensors: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        assert torch.equal(tensor, expected[name]), name


@pytest.mark.parametrize(
    ("section", "head"),
    [
        (VQAConfig(), "answer_head"),
        (NLVR2Config(), "concat_head"),
        (NLVR2Config(head="paired"), "paired_head"),
        (NLVR2Config(head="compare"), "compare_head"),
        (RetrievalConfig(), "contrast"),
    ],
)
def test_encoder_comes_along_and_the_head_is_new(section, head):
    source = weights(PRETRAINED)
    task = build(tiny_config(task=section))
    before = copied_weights(task)
    done = transfer(source, task, "run/best")
    assert done.resized is None
    assert done.new == {name for name in before if name.startswith(head)}
    decoders = ("token_head", "pixel_decoder")
    assert done.unused == {name for name in source if name.startswith(decoders)}
    assert model_parts(done.unused) == "pixel_decoder, token_head"
    new = {name: before[name] for name in done.new}
    assert_equal(task.state_dict(), source | new)
    assert all(parameter.requires_grad for parameter in task.parameters())


def test_a_contrast_that_was_learnt_before_comes_along():
    source = weights(tiny_config(task=ContrastMatchConfig()))
    task = build(tiny_config(task=RetrievalConfig()))
    done = transfer(source, task, "run")
    assert not done.new
    assert model_parts(done.unused) == "token_head"
    assert_equal(task.state_dict(), source)

    only_contrast = weights(tiny_config(task=ContrastMatchConfig(itm_weight=0.0)))
    assert model_parts(transfer(only_contrast, task, "run").new) == "contrast.match_head"


def test_the_same_task_goes_on_and_another_answer_list_starts_its_last_layer_anew():
    config = tiny_config(task=VQAConfig())
    assert not transfer(weights(config), build(config), "run").new
    done = transfer(weights(config), build(config, num_answers=7), "run")
    assert done.new == done.unused == LAST_LAYER


@pytest.mark.parametrize(
    ("answers", "new"),
    [
        (ANSWERS, set()),
        (ANSWERS[::-1], LAST_LAYER),
    ],
)
def test_rows_of_other_answers_are_not_taken_over(answers, new, tmp_path: Path):
    before = tiny_run("vqa")
    config = replace(before.config, init=write_run(before, tmp_path / "before"))
    task = build_task(config, before.tokenizer, answers)
    new_names, _ = start_from(config, task)
    assert set(new_names) == new
    for name, tensor in before.task.state_dict().items():
        assert torch.equal(task.state_dict()[name], tensor) == (name not in new), name


def test_positions_of_images_are_resized():
    source = weights(PRETRAINED)
    task = build(tiny_config(input={"image_size": 24}, task=VQAConfig()))
    done = transfer(source, task, "run")
    assert done.resized == "positions resized from 16 to 36 patches"
    positions = task.state_dict()[IMAGE_POSITIONS]
    assert torch.equal(positions[0], source[IMAGE_POSITIONS][0])
    grid = source[IMAGE_POSITIONS][1:].T.reshape(1, 16, 4, 4)
    expected = F.interpolate(
        grid,
        size=(6, 6),
        mode="bicubic",
        align_corners=False,
    )
    torch.testing.assert_close(positions[1:], expected.flatten(2)[0].T)
    assert IMAGE_POSITIONS not in done.new | done.unused


@pytest.mark.parametrize(
    ("length", "verb"),
    [
        (9, "cut"),
        (20, "extended"),
    ],
)
def test_positions_of_texts_are_cut_or_extended(length: int, verb: str):
    source = weights(PRETRAINED)
    task = build(tiny_config(input={"text_length": length}, task=VQAConfig()))
    done = transfer(source, task, "run")
    assert done.resized == f"text positions {verb} from 12 to {length} tokens"
    rows = [source[TEXT_POSITIONS][min(place, 11)] for place in range(length)]
    assert torch.equal(task.state_dict()[TEXT_POSITIONS], torch.stack(rows))
    assert TEXT_POSITIONS not in done.new | done.unused


@pytest.mark.parametrize(
    ("changes", "vocab_size", "problem"),
    [
        ({"model": {"depth": 4, "num_deep_blocks": 3}}, 30, r"encoder.blocks.3.*missing there"),
        ({"model": {"depth": 2, "num_deep_blocks": 1}}, 30, r"encoder.blocks.2.*missing here"),
        ({"model": {"deep_ffn": "shared"}}, 30, r"encoder.blocks.*missing here"),
        (
            {"input": {"patch_size": 8}},
            30,
            r"encoder.image.proj.weight: \(16, 192\) here, \(16, 48\) there",
        ),
        ({}, 31, r"encoder.text.words.weight: \(31, 16\) here, \(30, 16\) there"),
    ],
)
def test_another_encoder_is_refused_as_a_whole(changes, vocab_size, problem):
    task = build(tiny_config(**changes, task=VQAConfig()), vocab_size=vocab_size)
    before = copied_weights(task)
    start = r"^run/best: its encoder does not fit this model: (1 tensor differs|\d+ tensors differ)"
    with pytest.raises(UserError, match=f"{start}.*{problem}"):
        transfer(weights(PRETRAINED), task, "run/best")
    assert_equal(task.state_dict(), before)


# Parts of the encoder that may start at random


@pytest.mark.parametrize(
    ("model", "pattern", "prefixes"),
    [
        (
            {"deep_ffn": "shared"},
            "encoder.blocks.[12].[fn]*",
            ("encoder.blocks.1.ffn", "encoder.blocks.2.ffn"),
        ),
        ({"depth": 4, "num_deep_blocks": 3}, "encoder.blocks.3.*", ("encoder.blocks.3.",)),
    ],
)
def test_named_parts_of_the_encoder_may_start_at_random(model, pattern, prefixes):
    """What they name but fits is taken all the same."""
    source = weights(PRETRAINED)
    task = build(tiny_config(model=model, task=VQAConfig()))
    with pytest.raises(UserError, match=r"name what may start at random: --init-allow-missing$"):
        transfer(source, task, "run")
    before = copied_weights(task)
    done = transfer(source, task, "run", (pattern,))
    for name in done.new:
        assert name.startswith(("answer_head", *prefixes)), name
    for name, tensor in task.state_dict().items():
        fits = name in source and source[name].shape == tensor.shape
        assert (name in done.new) != fits
        assert torch.equal(tensor, source[name] if fits else before[name]), name


def test_a_start_says_what_of_the_encoder_is_new(tmp_path: Path):
    before = tiny_run("vqa")
    init = write_run(before, tmp_path / "before")
    model: Any = before.config.model
    shared = replace(model, deep_ffn="shared")
    patterns = ("encoder.blocks.*.ffn.*",)
    config = replace(
        before.config,
        init=init,
        model=shared,
        init_allow_missing=patterns,
    )
    new, note = start_from(config, build_task(config, before.tokenizer, ANSWERS))
    assert len(new) == 8  # weights and biases of two layers in two blocks
    assert all(re.match(r"encoder\.blocks\.[12]\.ffn\.fc", name) for name in new)
    assert note == (
        f"weights from {init}; new, at 1 × the learning rate: encoder.blocks; "
        "not used: encoder.blocks"
    )


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        (
            "encoder.blocks.*.ffn.*",
            r"tensors differ, the first encoder\.blocks\.0\.attn\.proj\.bias",
        ),
        (
            "encoder.norm.wait",
            r"^init_allow_missing: 'encoder\.norm\.wait' matches no parameter; "
            r"the nearest: 'encoder\.norm\.weight', ",
        ),
        (
            "answer_head.*",
            r"^init_allow_missing: 'answer_head\.\*' matches no parameter; the nearest: 'enc",
        ),
    ],
)
def test_patterns_that_lack_a_part_or_match_none_are_refused(pattern, problem):
    task = build(tiny_config(model={"deep_ffn": "shared", "embed_dim": 32}, task=VQAConfig()))
    before = copied_weights(task)
    with pytest.raises(UserError, match=problem) as error:
        transfer(weights(PRETRAINED), task, "run", (pattern,))
    assert len(str(error.value)) < 400
    assert_equal(task.state_dict(), before)


# Experts from networks (sparse upcycling)


def masked(model: dict) -> MaskedSignal:
    task = MaskedSignal(tiny_config(model=model), Sizes(vocab_size=30, mask_id=2))
    randomize(task, 1, std=0.2)
    return task.eval()


@pytest.mark.parametrize(
    ("num_experts", "top_k", "expert_ratio", "mlp_ratio"),
    [
        (4, 2, 1.0, 2.0),
        (6, 3, 1.0, 3.0),
        (6, 2, 0.0, 2.0),
        (4, 1, 0.0, 2.0),
    ],
)
def test_experts_start_from_the_networks_of_the_modalities_and_compute_the_same(
    num_experts: int,
    top_k: int,
    expert_ratio: float,
    mlp_ratio: float,
):
    shape = {
        "num_experts": num_experts,
        "top_k": top_k,
        "expert_ratio": expert_ratio,
        "mlp_ratio": mlp_ratio,
    }
    dense = masked(shape | {"deep_ffn": "modality"})
    sparse = masked(shape | {"deep_ffn": "moe"})
    done = transfer(dense.state_dict(), sparse, "there")
    assert done.resized == "experts from the networks of blocks 1, 2"
    assert not done.new
    assert not done.unused

    pixels_BCHW = torch.rand(3, 3, 16, 16) * 2 - 1
    ids_BT = torch.randint(3, 30, (3, 7))
    states = []
    for encoder in (dense.encoder, sparse.encoder):
        text = encoder.text(ids_BT, ids_BT > 30)
        states.append(encoder.encode(encoder.image(pixels_BCHW), text).x_BND)
    torch.testing.assert_close(*states, rtol=0, atol=2e-3)  # the router has a little noise
    router = sparse.get_parameter("encoder.blocks.2.ffn.router.weight")
    assert len(router.unique(dim=0)) == num_experts  # equal experts must be able to part


@pytest.mark.parametrize(
    "shape",
    [
        {"num_experts": 3},
        {"expert_ratio": 0.75},
        {"modality_routing": False},
    ],
    ids=str,
)
def test_experts_that_cannot_hold_the_networks_are_another_encoder(shape: dict):
    dense = masked({"deep_ffn": "modality"})
    sparse = masked(shape | {"deep_ffn": "moe"})
    with pytest.raises(UserError, match="its encoder does not fit this model"):
        transfer(dense.state_dict(), sparse, "there")

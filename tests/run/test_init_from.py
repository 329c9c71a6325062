"""Weights of one task's run in another: the whole encoder or an error; new parts are logged."""

import re
from dataclasses import replace
from pathlib import Path

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
from helpers.tiny_runs import ANSWERS, tiny_run, write_run
from helpers.twins import randomize, tiny_config

POSITIONS = "encoder.image.positions"


def build(config: Config, seed: int = 0, answers: int = 4) -> nn.Module:
    task = build_untrained(
        config, Sizes(vocab_size=30, labels=tuple(f"answer {number}" for number in range(answers)))
    )
    randomize(task, seed)
    return task


def weights(config: Config, seed: int = 1, answers: int = 4) -> dict[str, Tensor]:
    return {
        name: tensor.clone() for name, tensor in build(config, seed, answers).state_dict().items()
    }


def names(task: nn.Module, *starts: str) -> set[str]:
    return {name for name in task.state_dict() if name.startswith(starts)}


PRETRAINED = tiny_config()
CONTRASTED = tiny_config(task=ContrastMatchConfig())
ALL_TASKS = {
    "vqa": (VQAConfig(), "answer_head"),
    "nlvr2": (NLVR2Config(), "concat_head"),
    "nlvr2 paired": (NLVR2Config(head="paired"), "paired_head"),
    "nlvr2 compare": (NLVR2Config(head="compare"), "compare_head"),
    "retrieval": (RetrievalConfig(), "contrast"),
}


@pytest.mark.parametrize(("section", "head"), ALL_TASKS.values(), ids=ALL_TASKS)
def test_encoder_comes_along_and_the_head_is_new(section, head):
    source = weights(PRETRAINED)
    task = build(tiny_config(task=section))
    before = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    done = transfer(source, task, "run/best")
    assert done.resized is None
    assert done.new == names(task, head)
    assert done.unused == {
        name for name in source if name.startswith(("token_head", "pixel_decoder"))
    }
    for name, tensor in task.state_dict().items():
        assert torch.equal(tensor, before[name] if name in done.new else source[name]), name
    assert all(parameter.requires_grad for parameter in task.parameters())
    assert model_parts(done.unused) == "pixel_decoder, token_head"


def test_a_contrast_that_was_learnt_before_comes_along():
    source = weights(CONTRASTED)
    task = build(tiny_config(task=RetrievalConfig()))
    done = transfer(source, task, "run")
    assert not done.new
    assert model_parts(done.unused) == "token_head"
    assert all(torch.equal(tensor, source[name]) for name, tensor in task.state_dict().items())
    only_contrast = tiny_config(task=ContrastMatchConfig(itm_weight=0.0))
    done = transfer(weights(only_contrast), build(tiny_config(task=RetrievalConfig())), "run")
    assert model_parts(done.new) == "contrast.match_head"


def test_the_same_task_goes_on_and_another_answer_list_starts_its_last_layer_anew():
    config = tiny_config(task=VQAConfig())
    assert not transfer(weights(config), build(config), "run").new
    task = build(config, answers=7)
    done = transfer(weights(config), task, "run")
    assert done.new == done.unused == {"answer_head.3.weight", "answer_head.3.bias"}


def test_positions_of_images_are_resized():
    source = weights(PRETRAINED)
    task = build(tiny_config(input={"image_size": 24}, task=VQAConfig()))
    done = transfer(source, task, "run")
    assert done.resized == "positions resized from 16 to 36 patches"
    positions = task.state_dict()[POSITIONS]
    assert torch.equal(positions[0], source[POSITIONS][0])
    grid = source[POSITIONS][1:].T.reshape(1, 16, 4, 4)
    expected = F.interpolate(grid, size=(6, 6), mode="bicubic", align_corners=False).flatten(2)[0].T
    torch.testing.assert_close(positions[1:], expected)
    assert POSITIONS not in done.new | done.unused


@pytest.mark.parametrize(("length", "done"), [(9, "cut"), (20, "extended")])
def test_positions_of_texts_are_cut_or_extended(length: int, done: str):
    name = "encoder.text.positions"
    source = weights(PRETRAINED)
    task = build(tiny_config(input={"text_length": length}, task=VQAConfig()))
    transferred = transfer(source, task, "run")
    assert transferred.resized == f"text positions {done} from 12 to {length} tokens"
    rows = [source[name][min(place, 11)] for place in range(length)]
    assert torch.equal(task.state_dict()[name], torch.stack(rows))
    assert name not in transferred.new | transferred.unused


@pytest.mark.parametrize(
    ("changes", "name", "words"),
    [
        ({"model": {"depth": 4, "num_deep_blocks": 3}}, "encoder.blocks.3.", "missing there"),
        ({"model": {"depth": 2, "num_deep_blocks": 1}}, "encoder.blocks.2.", "missing here"),
        ({"model": {"embed_dim": 32}}, "encoder.", "32"),
        ({"model": {"num_experts": 2}}, "encoder.blocks.", "here"),
        ({"model": {"deep_ffn": "shared"}}, "encoder.blocks.", "here"),
        (
            {"input": {"patch_size": 8}},
            "encoder.image.proj.weight",
            "(16, 192) here, (16, 48) there",
        ),
    ],
)
def test_another_encoder_is_refused_as_a_whole(changes, name, words):
    task = build(tiny_config(**changes, task=VQAConfig()))
    before = {key: tensor.clone() for key, tensor in task.state_dict().items()}
    with pytest.raises(
        UserError,
        match=(
            r"^run/best: its encoder does not fit this model: (1 tensor differs|\d+ tensors "
            r"differ, the first)"
        ),
    ) as caught:
        transfer(weights(PRETRAINED), task, "run/best")
    assert name in str(caught.value) and words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(tensor, before[key]) for key, tensor in task.state_dict().items())


def test_another_vocabulary_is_refused():
    task = build_untrained(tiny_config(task=NLVR2Config()), Sizes(vocab_size=31))
    with pytest.raises(
        UserError, match=r"encoder\.text\.words\.weight: \(31, 16\) here, \(30, 16\) there"
    ):
        transfer(weights(PRETRAINED), task, "run")


@pytest.mark.parametrize(
    ("model", "pattern", "new"),
    [
        (
            {"deep_ffn": "shared"},
            "encoder.blocks.[12].[fn]*",
            ("encoder.blocks.1.ffn", "encoder.blocks.2.ffn"),
        ),
        (
            {"num_experts": 2},
            "encoder.blocks.*.ffn.*",
            ("encoder.blocks.1.ffn", "encoder.blocks.2.ffn"),
        ),
        ({"depth": 4, "num_deep_blocks": 3}, "encoder.blocks.3.*", ("encoder.blocks.3.",)),
    ],
)
def test_named_parts_of_the_encoder_may_start_at_random(model, pattern, new):
    """What they name but fits is taken all the same."""
    source = weights(PRETRAINED)
    task = build(tiny_config(model=model, task=VQAConfig()))
    with pytest.raises(UserError, match=r"name what may start at random: --init-allow-missing$"):
        transfer(source, task, "run")
    before = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    done = transfer(source, task, "run", (pattern,))
    assert {model_parts([name]) for name in done.new if name.startswith("encoder.")} == {
        "encoder.blocks"
    }
    assert done.new - names(task, "answer_head") <= names(task, *new)
    for name, tensor in task.state_dict().items():
        fits = name in source and source[name].shape == tensor.shape
        assert (name in done.new) != fits
        assert torch.equal(tensor, source[name] if fits else before[name]), name


def test_a_start_says_what_of_the_encoder_is_new(tmp_path: Path):
    before = tiny_run("vqa")
    init = write_run(before, tmp_path / "before")
    model = replace(before.config.model, deep_ffn="shared")  # pyright: ignore
    config = replace(
        before.config, init=init, model=model, init_allow_missing=("encoder.blocks.*.ffn.*",)
    )
    new, note = start_from(config, build_task(config, before.tokenizer, ANSWERS))
    layers = [f"{layer}.{kind}" for layer in ("fc1", "fc2") for kind in ("weight", "bias")]
    assert set(new) == {f"encoder.blocks.{block}.ffn.{name}" for block in (1, 2) for name in layers}
    assert (
        note == f"weights from {init}; new, at 1 × the learning rate: encoder.blocks; "
        "not used: encoder.blocks"
    )
    with pytest.raises(UserError, match=r"its encoder does not fit this model"):
        start_from(
            replace(config, init_allow_missing=()), build_task(config, before.tokenizer, ANSWERS)
        )


def test_other_parts_than_the_named_ones_may_not_be_lacking():
    task = build(tiny_config(model={"deep_ffn": "shared", "embed_dim": 32}, task=VQAConfig()))
    with pytest.raises(
        UserError, match=r"tensors differ, the first encoder\.blocks\.0\.attn\.proj\.bias"
    ):
        transfer(weights(PRETRAINED), task, "run", ("encoder.blocks.*.ffn.*",))


def test_a_pattern_that_matches_nothing_is_an_error():
    task = build(tiny_config(task=VQAConfig()))
    source = weights(PRETRAINED)
    before = {name: tensor.clone() for name, tensor in task.state_dict().items()}
    words = (
        r"^init_allow_missing: 'encoder\.norm\.wait' matches no parameter; "
        r"the nearest: 'encoder\.norm\.weight', "
    )
    with pytest.raises(UserError, match=words):
        transfer(source, task, "run", ("encoder.blocks.*", "encoder.norm.wait"))
    assert all(torch.equal(tensor, before[name]) for name, tensor in task.state_dict().items())


@pytest.mark.parametrize("pattern", ["towers.*", "answer_head.*"])
def test_a_pattern_of_nothing_in_the_encoder_is_told_in_one_short_line(pattern):
    with pytest.raises(
        UserError,
        match=rf"^init_allow_missing: '{re.escape(pattern)}' matches no parameter; "
        "the nearest: 'enc",
    ) as caught:
        transfer(weights(PRETRAINED), build(tiny_config(task=VQAConfig())), "run", (pattern,))
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("answers", "new"),
    [(ANSWERS, set()), (ANSWERS[::-1], {"answer_head.3.weight", "answer_head.3.bias"})],
)
def test_rows_of_other_answers_are_not_taken_over(answers, new, tmp_path: Path):
    before = tiny_run("vqa")
    config = replace(before.config, init=write_run(before, tmp_path / "before"))
    task = build_task(config, before.tokenizer, answers)
    new_names, _ = start_from(config, task)
    assert set(new_names) == new
    taken = {
        name
        for name, tensor in task.state_dict().items()
        if torch.equal(tensor, before.task.state_dict()[name])
    }
    assert taken == task.state_dict().keys() - new


# Experts from networks (sparse upcycling)


def masked(model: dict) -> MaskedSignal:
    task = MaskedSignal(tiny_config(model=model), Sizes(vocab_size=30, mask_id=2))
    randomize(task, 1, std=0.2)
    return task.eval()


@pytest.mark.parametrize(
    ("experts", "top_k", "ratio"),
    [(4, 2, 1.0), (6, 3, 1.0), (4, 2, 0.0), (6, 2, 0.0), (2, 1, 0.0), (4, 1, 0.0)],
    ids=lambda value: f"{value:g}",
)
def test_experts_start_from_the_networks_of_the_modalities_and_compute_the_same(
    experts: int, top_k: int, ratio: float
):
    shape = {
        "num_experts": experts,
        "top_k": top_k,
        "expert_ratio": ratio,
        "mlp_ratio": float(top_k if ratio else 2),
    }
    dense, sparse = (masked(shape | {"deep_ffn": policy}) for policy in ("modality", "moe"))
    done = transfer(dense.state_dict(), sparse, "there")
    assert done.resized == f"experts from the networks of blocks {', '.join(map(str, range(1, 3)))}"
    assert not done.new and not done.unused
    pixels_BCHW = torch.rand(3, 3, 16, 16) * 2 - 1
    ids_BT = torch.randint(3, 30, (3, 7))
    encoders = dense.encoder, sparse.encoder
    states = [
        encoder.encode(encoder.image(pixels_BCHW), encoder.text(ids_BT, ids_BT > 30)).x_BND
        for encoder in encoders
    ]
    torch.testing.assert_close(*states, rtol=0, atol=2e-3)  # the router has a little noise
    router = sparse.get_parameter("encoder.blocks.2.ffn.router.weight")
    assert len(router.unique(dim=0)) == experts  # equal experts must be able to part


@pytest.mark.parametrize(
    "shape",
    [
        {"num_experts": 3},
        {"expert_ratio": 0.75},
        {"expert_ratio": 0.5},
        {"modality_routing": False},
        {"embed_dim": 24},
    ],
    ids=str,
)
def test_experts_that_cannot_hold_the_networks_are_another_encoder(shape: dict):
    dense = masked({"deep_ffn": "modality"})
    sparse = masked(shape | {"deep_ffn": "moe"})
    with pytest.raises(UserError, match="its encoder does not fit this model"):
        transfer(dense.state_dict(), sparse, "there")

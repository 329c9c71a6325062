"""Published M3AE checkpoints, tiny and at full size, against a slow forward pass."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import RobertaConfig, RobertaModel

from eve_vl.eve import Eve
from eve_vl.interop.convert import Conversion
from eve_vl.recipes import get_recipe
from eve_vl.run.loading import build_task, load_run
from eve_vl.run.weight_transfer import start_from
from eve_vl.systems.medical.m3ae import convert as m3ae
from eve_vl.systems.medical.m3ae.config import M3aeModelConfig
from helpers.checkpoint_coverage import coverage_of
from helpers.m3ae_checkpoints import (
    NUM_LABELS,
    PUBLISHED,
    TASK_OF_HEAD,
    TINY,
    shapes_of,
    tiny_checkpoint,
)
from helpers.slow_m3ae import NUM_HEADS, SlowM3ae

D = TINY.D
IMAGE_SIZE = TINY.side * TINY.patch


@pytest.fixture(scope="module")
def words(tmp_path_factory) -> Path:
    """A tokenizer.json as RoBERTa's: bytes, four special tokens first and <mask> last."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TINY.V - 1,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    backend.train_from_iterator(["a chest x-ray with a small nodule in the left lung"] * 3, trainer)
    backend.add_special_tokens(["<mask>"])
    backend.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    assert backend.get_vocab_size() == TINY.V
    path = tmp_path_factory.mktemp("words") / "tokenizer.json"
    path.write_text(backend.to_str())
    return path


def converted(eve, tmp_path: Path, tensors: dict[str, Tensor], words: Path, *flags: Any) -> Any:
    torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / "m3ae.ckpt")
    flags = ("--tokenizer", words, "--num-heads", NUM_HEADS, *flags)
    done = eve("convert", "m3ae.ckpt", "run", *flags)
    assert done.returncode == 0, done.stderr
    has_decoder = "mim_head.mask_token" in tensors
    assert ("left out the decoder of pixels" in done.stdout) == has_decoder
    return load_run(tmp_path / "run")


def two_pairs() -> tuple[Tensor, Tensor, Tensor]:
    """Return uint8 images, ids and padding; the second text is shorter."""
    torch.manual_seed(1)
    images = torch.randint(256, (2, 3, IMAGE_SIZE, IMAGE_SIZE), dtype=torch.uint8)
    ids = torch.tensor(
        [
            [0, 7, 9, 30, 11, 2],
            [0, 40, 8, 2, 1, 1],
        ]
    )
    return images, ids, ids == 1


def assert_near(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=2e-5)


@torch.no_grad()
def test_a_pre_trained_checkpoint_gives_the_numbers_of_its_own_code(eve, tmp_path, words):
    """States of towers and pairs, words and matching, of texts with and without padding."""
    tensors = tiny_checkpoint("pairs")
    run = converted(eve, tmp_path, tensors, words)
    assert run.config.task.name == "contrast_match"
    assert run.config.task.mim_weight == 0
    assert run.config.input.text_length == 18

    encoder = run.task.encoder
    slow = SlowM3ae(tensors)
    images, ids, is_padding = two_pairs()
    image = encoder.image(images.float() / 127.5 - 1)
    text = encoder.text(ids, is_padding)
    encoded = encoder.encode(image, text)
    image_alone = encoder.encode(image, None).x_BND
    text_alone = encoder.encode(None, text).x_BND
    pooled, _ = encoder.cls(image, text)
    match = run.task.match(images, ids, is_padding)[0]
    for row in range(2):
        ids_T = ids[row][~is_padding[row]]
        T = len(ids_T)
        pixels = images[row] / 255
        assert_near(image_alone[row], slow.image(pixels))
        assert_near(text_alone[row, :T], slow.text(ids_T))
        x_TD, y_PD = slow.pair(ids_T, pixels)
        assert_near(encoded.text_BTD[row, :T], x_TD)
        assert_near(encoded.x_BND[row, : TINY.side**2 + 1], y_PD)
        assert_near(pooled[row], slow.pooled(ids_T, pixels))
        assert_near(
            run.task.token_head(encoded.text_BTD[row, :T]), slow.token_logits(x_TD, "mlm_head")
        )
        assert_near(match[row], slow.linear(slow.pooled(ids_T, pixels), "itm_head.fc"))

    for name, module in run.task.named_modules():
        if isinstance(module, nn.LayerNorm):
            is_of_tower = name.startswith(("encoder.image", "encoder.text"))
            assert module.eps == (1e-5 if is_of_tower else 1e-12), name


@torch.no_grad()
def test_the_slow_text_tower_is_roberta():
    slow = SlowM3ae(tiny_checkpoint(""))
    _, ids, is_padding = two_pairs()
    config = RobertaConfig(
        hidden_size=D,
        num_hidden_layers=TINY.text_depth,
        num_attention_heads=NUM_HEADS,
        intermediate_size=4 * D,
        vocab_size=TINY.V,
        max_position_embeddings=TINY.positions,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
    )
    roberta = RobertaModel(config).eval()
    assert not roberta.load_state_dict(slow.below("language_encoder."), strict=False).missing_keys
    states = roberta(input_ids=ids, attention_mask=(~is_padding).long()).last_hidden_state
    for row in range(2):
        ids_T = ids[row][~is_padding[row]]
        assert_near(slow.text(ids_T), states[row, : len(ids_T)])


@pytest.mark.parametrize("head", ["vqa", "cls", "irtr"])
@torch.no_grad()
def test_a_fine_tuned_checkpoint_answers_as_its_own_code_does(eve, tmp_path, words, head):
    tensors = tiny_checkpoint(head)
    flags = []
    if head != "irtr":
        labels = [f"label {number}" for number in range(NUM_LABELS)]
        (tmp_path / "labels.txt").write_text("\n".join(labels))
        flags = ["--answers", "labels.txt"]
    run = converted(eve, tmp_path, tensors, words, *flags)
    assert run.config.task.name == TASK_OF_HEAD[head]
    slow = SlowM3ae(tensors)
    images, ids, is_padding = two_pairs()
    for row in range(2):
        pooled = slow.pooled(ids[row][~is_padding[row]], images[row] / 255)
        if head == "irtr":
            match = run.task.match(images, ids, is_padding)[0]
            assert_near(match[row, 1:], slow.linear(pooled, "irtr_head"))
        else:
            logits = run.task.logits(images, ids, is_padding)[0]
            assert_near(logits[row], slow.class_logits(pooled, f"{head}_head"))


def test_positions_are_resized_and_texts_cut(eve, tmp_path, words):
    tensors = tiny_checkpoint("pairs")
    run = converted(eve, tmp_path, tensors, words, "--image-size", 20, "--text-tokens", 8)
    assert (run.config.input.image_size, run.config.input.text_length) == (20, 8)
    text_positions = run.task.get_parameter("encoder.text.embed.positions")
    published = tensors["language_encoder.embeddings.position_embeddings.weight"]
    assert torch.equal(text_positions, published[2:10])
    image_positions = run.task.get_parameter("encoder.image.embed.positions")[1:]
    published = tensors["vision_encoder.visual.positional_embedding"][1:]
    grid = published.T.view(1, D, TINY.side, TINY.side)
    resized = F.interpolate(grid, (5, 5), mode="bicubic")
    torch.testing.assert_close(image_positions, resized[0].flatten(1).T)
    calls = Eve.load(tmp_path / "run").calls
    assert "fill_mask" in calls
    assert "reconstruct" not in calls


def test_pre_training_from_a_converted_checkpoint_needs_only_a_new_decoder(eve, tmp_path, words):
    run = converted(eve, tmp_path, tiny_checkpoint("pairs"), words)
    config = replace(
        get_recipe("m3ae_base"),
        init=tmp_path / "run",
        scratch=False,
        input=run.config.input,
        model=run.config.model,
    )
    new_parameters, _ = start_from(config, build_task(config, run.tokenizer))
    parts = {name.split(".")[0] for name in new_parameters}
    assert parts == {"pixel_decoder"}


@pytest.mark.parametrize("head", TASK_OF_HEAD)
@pytest.mark.parametrize(
    ("patch", "side"),
    [
        (16, 18),
        (32, 9),
    ],
)
def test_full_sizes_have_a_place_for_each_tensor(head, patch, side):
    shapes = shapes_of(head, replace(PUBLISHED, patch=patch, side=side))
    tensors = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    sizes, model, section = m3ae.infer(tensors, "file")
    assert (sizes.image_size, sizes.text_length, model.num_heads) == (patch * side, 512, 12)
    assert isinstance(m3ae.BASE.model, M3aeModelConfig)
    assert model == replace(m3ae.BASE.model, towers="clip_roberta")

    plan = Conversion(
        tensors=tensors,
        sizes=sizes,
        model=model,
        section=section,
        table=m3ae.key_table(section),
        recipe="m3ae_base",
        finetune_prefix="m3ae_",
        unused="",
    )
    coverage = coverage_of(plan, PUBLISHED.V, NUM_LABELS)
    assert coverage.config.task.name == TASK_OF_HEAD[head]
    assert coverage.filled == coverage.ours
    unused = m3ae.UNUSED
    if head == "irtr":
        unused += "|itm_head"
    assert coverage.sources == {name for name in tensors if not re.match(unused, name)}


VISUAL = "vision_encoder.visual"
PROJECTION = "multi_modal_language_proj.weight"
SEGMENTS = "language_encoder.embeddings.token_type_embeddings.weight"


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        # large RoBERTa, then BERT
        (PROJECTION, (D, 48), "has shape (32, 48), but the other tensors ask for (32, 32)"),
        (
            SEGMENTS,
            (2, D),
            "has shape (2, 32), but encoder.text.embed.words.weight needs (270, 32)",
        ),
        (
            f"{VISUAL}.conv1.weight",
            None,
            f"not an M3AE checkpoint ('{VISUAL}.conv1.weight' is missing or unusual)",
        ),
        (
            f"{VISUAL}.positional_embedding",
            (11, D),
            "11 image positions are no [CLS] and a square of patches",
        ),
        (
            f"{VISUAL}.transformer.resblocks.4.ln_1.bias",
            (D,),
            f"1 unknown: {VISUAL}.transformer.resblocks.4.ln_1.bias",
        ),
        (
            "multi_modal_vision_layers.1.output.dense.bias",
            None,
            "1 missing: multi_modal_vision_layers.1.output.dense.bias",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_in_one_line(
    eve, tmp_path, words, name, shape, message
):
    tensors = tiny_checkpoint("pairs")
    if shape is None:
        del tensors[name]
    else:
        tensors[name] = torch.zeros(shape)
    torch.save({"state_dict": tensors}, tmp_path / "m3ae.ckpt")
    done = eve("convert", "m3ae.ckpt", "run", "--tokenizer", words, "--num-heads", NUM_HEADS)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()

"""Published VLMo checkpoints, tiny and at full size, against a slow forward pass.

Letters: T text tokens, N all tokens, D width.
"""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from eve_vl.interop.convert import Conversion
from eve_vl.run.loading import load_run
from eve_vl.systems.vlmo import convert as vlmo
from helpers.checkpoint_coverage import coverage_of
from helpers.slow_vlmo import SlowVlmo
from helpers.vlmo_checkpoints import NUM_ANSWERS, PUBLISHED, TINY, shapes_of, tiny_checkpoint

pytestmark = pytest.mark.usefixtures("no_report")

D = TINY.D
IMAGE_SIZE = TINY.side * TINY.patch


@pytest.fixture(scope="module")
def vocab(tmp_path_factory) -> Path:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "is", "it", "red"]
    words += [f"word{number}" for number in range(TINY.V - len(words))]
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    path.write_text("\n".join(words) + "\n")
    return path


def converted(eve, tmp_path: Path, tensors: dict[str, Tensor], vocab: Path, *flags: Any) -> Any:
    module = {f"module.{name}": tensor for name, tensor in tensors.items()}
    torch.save({"module": module}, tmp_path / "vlmo.pt")
    flags = ("--tokenizer", vocab, "--num-heads", TINY.heads, *flags)
    done = eve("convert", "vlmo.pt", "run", *flags)
    assert done.returncode == 0, done.stderr
    return load_run(tmp_path / "run")


@dataclass
class Pairs:
    """Two images with texts of different lengths, as the contrast reads them of a batch."""

    images: Tensor
    ids_BT: Tensor
    is_padding_BT: Tensor
    num_real: None = None

    def pixels(self) -> Tensor:
        return self.images.float() / 127.5 - 1

    def text(self, row: int) -> Tensor:
        """Return the ids of a text without padding."""
        return self.ids_BT[row][~self.is_padding_BT[row]]


def two_pairs() -> Pairs:
    torch.manual_seed(1)
    images = torch.randint(256, (2, 3, IMAGE_SIZE, IMAGE_SIZE), dtype=torch.uint8)
    ids = torch.tensor(
        [
            [2, 7, 9, 30, 11, 3],
            [2, 40, 8, 3, 0, 0],
        ]
    )
    return Pairs(images, ids, ids == 0)


def assert_near(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("is_relative", [True, False])
@torch.no_grad()
def test_a_checkpoint_of_pairs_gives_the_numbers_of_its_own_code(eve, tmp_path, vocab, is_relative):
    """States, words, matching and both contrasts, of texts with and without padding."""
    tensors = tiny_checkpoint("pairs", replace(TINY, is_relative=is_relative))
    run = converted(eve, tmp_path, tensors, vocab)
    assert run.config.task.name == "contrast_match"
    assert run.config.input.text_length == 40
    assert run.config.model.positions == ("relative" if is_relative else "learned")

    task = run.task
    slow = SlowVlmo(tensors)
    pairs = two_pairs()
    image = task.encoder.image(pairs.pixels())
    text = task.encoder.text(pairs.ids_BT, pairs.is_padding_BT)
    encoded = task.encoder.encode(image, text)
    match = task.match(pairs.images, pairs.ids_BT, pairs.is_padding_BT)[0]
    features = task.contrast.unimodal(task.encoder, pairs)
    for row, pixels in enumerate(pairs.pixels()):
        ids = pairs.text(row)
        T = len(ids)
        expected = slow.pair(ids, pixels)
        assert_near(encoded.text_BTD[row, :T], expected[:T])
        assert_near(encoded.x_BND[row, : TINY.side**2 + 1], expected[T:])
        assert_near(
            task.token_head(encoded.text_BTD[row, :T]), slow.token_logits(expected[:T], "mlm_score")
        )
        assert_near(match[row], slow.linear(slow.pooled(ids, pixels), "itm_score.fc"))
        for contrast, by_pairs in enumerate([False, True]):
            image_feature = slow.image_feature(pixels, by_pairs=by_pairs)
            text_feature = slow.text_feature(ids, by_pairs=by_pairs)
            assert_near(features.image_BXd[row, contrast], image_feature)
            assert_near(features.text_BXd[row, contrast], text_feature)
    for head, name in zip(task.contrast.heads, ("logit_scale", "logit_vl_scale"), strict=True):
        assert_near(1 / head.temperature, tensors[name].exp())


@pytest.mark.parametrize("head", ["vqa", "nlvr2", "retrieval"])
@torch.no_grad()
def test_a_fine_tuned_checkpoint_answers_as_its_own_code_does(eve, tmp_path, vocab, head):
    tensors = tiny_checkpoint(head)
    flags = []
    if head == "vqa":
        answers = [f"answer {number}" for number in range(NUM_ANSWERS)]
        (tmp_path / "answers.txt").write_text("\n".join(answers))
        flags = ["--answers", "answers.txt"]
    task = converted(eve, tmp_path, tensors, vocab, *flags).task
    slow = SlowVlmo(tensors)
    pairs = two_pairs()
    images = pairs.images
    text = (pairs.ids_BT, pairs.is_padding_BT)
    for row, pixels in enumerate(pairs.pixels()):
        ids = pairs.text(row)
        pooled = slow.pooled(ids, pixels)
        if head == "vqa":
            expected = slow.class_logits(pooled, "vqa_classifier")
            assert_near(task.logits(images, *text)[0][row], expected)
        elif head == "nlvr2":
            right_pooled = slow.pooled(ids, pairs.pixels()[1 - row], token_type=2)
            both_pooled = torch.cat([pooled, right_pooled])
            expected = slow.class_logits(both_pooled, "nlvr2_classifier")
            assert_near(task.logits(images, images.flip(0), *text)[0][row], expected)
        else:
            assert_near(task.image_features(images)[row], slow.image_feature(pixels))
            assert_near(task.text_features(*text)[row], slow.text_feature(ids))


def test_pairs_start_from_the_stage_of_texts_with_networks_that_it_lacks(eve, tmp_path, vocab):
    tensors = tiny_checkpoint("texts")
    run = converted(eve, tmp_path, tensors, vocab, "--text-tokens", 0, "--image-size", 16)
    config = run.config
    assert config.recipe == "published"
    assert (config.task.name, config.data.modality) == ("masked_signal", "text")
    assert (config.input.image_size, config.input.text_length) == (16, 196)
    # as many as in VLMo-Base
    assert config.model.ffn_policies == ("modality", "modality_vl", "modality_vl")
    assert 0.015 < run.task.get_parameter("encoder.blocks.2.ffn.vl.fc1.weight").std() < 0.025

    pairs = two_pairs()
    with torch.no_grad():
        text = run.task.encoder.text(pairs.ids_BT, pairs.is_padding_BT)
        states = run.task.encoder.encode(None, text).x_BND[0]
        slow = SlowVlmo(tensors)
        expected = slow.token_logits(slow.text_alone(pairs.text(0)), "mlm_score")
        assert_near(run.task.token_head(states), expected)

    flags = (
        "--init run --out pairs --input.text-length 40 --input.image-size 16 "
        "--train.steps 1 --train.batch-size 2 --train.accumulation 1 --data.num-workers 0 "
        "--data.train scenes:train --data.val scenes:val --data.val-samples 2"
    )
    done = eve("pretrain", "vlmo_base", *flags.split())
    assert done.returncode == 0, done.stderr
    assert load_run(tmp_path / "pairs").config.model == config.model


@pytest.mark.parametrize("head", ["pairs", "vqa", "nlvr2", "retrieval", "texts"])
@pytest.mark.parametrize("name", PUBLISHED)
def test_full_sizes_have_a_place_for_each_tensor(name, head):
    size = PUBLISHED[name]
    shapes = shapes_of(head, size)
    tensors = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    sizes, model, section, recipe = vlmo.infer(tensors, "file")
    assert recipe == (f"vlmo_{name}_texts" if head == "texts" else f"vlmo_{name}")
    assert (model.num_heads, model.num_deep_blocks) == (size.heads, size.top)
    assert sizes.image_size == 16 * size.side
    assert sizes.text_length == (196 if size.is_relative else 40)

    plan = Conversion(
        tensors=tensors,
        sizes=sizes,
        model=model,
        section=section,
        table=vlmo.key_table(tensors),
        recipe=recipe,
        finetune_prefix="vlmo_",
        unused="",
    )
    coverage = coverage_of(plan, size.V, NUM_ANSWERS)
    missing = coverage.ours - coverage.filled
    if head == "texts":
        missing = {key for key in missing if ".vl." not in key and "norm_vl" not in key}
    assert not missing
    unused = {key for key in tensors if key.endswith(("_index", "_ids"))}
    if size.is_relative:
        unused.add("text_embeddings.position_embeddings.weight")
    assert coverage.sources == tensors.keys() - unused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"itm_score.fc.bias": None, "decoder.weight": (2, 2)},
            "1 unknown: decoder.weight; 1 missing: itm_score.fc.bias",
        ),
        (
            {"pooler.dense.weight": (D, 5)},
            "pooler.dense.weight has shape (32, 5), but the other tensors ask for (32, 32)",
        ),
        (
            {"relative_position_bias_table": (400, 6)},
            "relative_position_bias_table has 400 rows, expected (2g - 1)² + 397",
        ),
        (
            {"relative_position_bias_table": (406, 7)},
            "relative_position_bias_table has shape (406, 7), but encoder.relative.image_bias "
            "needs (12, 6)",
        ),
        (
            {"token_type_embeddings.weight": (1, D)},
            "token_type_embeddings.weight has shape (1, 32), but encoder.image.type_embed needs "
            "(32,)",
        ),
        (
            {"transformer.blocks.0.mlp_imag.fc1.bias": None},
            "not a VLMo checkpoint ('transformer.blocks.0.mlp_imag.fc1.bias'",
        ),
        (
            {"transformer.blocks.0.mlp_vl.fc1.bias": (D,)},
            "1 unknown: transformer.blocks.0.mlp_vl.fc1.bias",
        ),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_refused_in_one_line(
    eve, tmp_path, vocab, change, message
):
    tensors = tiny_checkpoint("pairs")
    for name, shape in change.items():
        tensors.pop(name, None)
        if shape is not None:
            tensors[name] = torch.zeros(shape)
    torch.save({"state_dict": tensors}, tmp_path / "vlmo.pt")
    done = eve("convert", "vlmo.pt", "run", "--tokenizer", vocab)
    assert done.returncode == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "run").exists()

"""VLMo's three stages on the real command line, then a search; a few steps each."""

import contextlib
from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from eve_vl.cli.main import main
from helpers.complaints import complaint

pytestmark = pytest.mark.usefixtures("no_report")

FEW = (
    *("--train.steps", "2", "--train.batch-size", "4", "--train.dtype", "float32"),
    *("--data.val-samples", "4", "--data.num-workers", "0"),
)
FIRST = (
    *("pretrain", "vlmo_tiny_images", "--tokenizer.path", "words.json", "--out", "one"),
    *("--model.embed-dim", "24", "--model.depth", "2", *FEW),
)
SECOND = (
    *("pretrain", "vlmo_tiny_texts", "--init", "one"),
    *("--data.train", "words.txt", "--data.val", "held-out", *FEW),
)
# what training on texts changes
LEARNS = (
    "encoder.text.*",
    "encoder.blocks.*.ffn.text.*",
    "encoder.blocks.*.ffn.norm_text.*",
    "encoder.norm.*",
    "encoder.relative.text_bias",
)


def weights(run: Path) -> dict[str, Tensor]:
    return load_file(run / "checkpoints/step_00000002/model.safetensors")


@pytest.fixture(scope="module")
def two_stages(tmp_path_factory) -> Path:
    """Train on images alone (`one`), then on texts alone (`two`)."""
    folder = tmp_path_factory.mktemp("stages")
    lines = [f"a {size} red circle number {size}\n" for size in range(200)]
    (folder / "words.txt").write_text("".join(lines))
    with contextlib.chdir(folder):
        main(["tokenizer", "train", "words.txt", "--out", "words.json", "--vocab-size", "300"])
        main([*FIRST])
        main([*SECOND, "--out", "two"])
    return folder


def test_training_on_texts_leaves_attention_and_images_equal_to_the_bit(two_stages: Path):
    before = weights(two_stages / "one")
    after = weights(two_stages / "two")
    for name in before.keys() & after.keys():
        is_trained = any(fnmatchcase(name, pattern) for pattern in LEARNS)
        assert torch.equal(before[name], after[name]) != is_trained, name
    new_or_gone = {name.partition(".")[0] for name in before.keys() ^ after.keys()}
    assert new_or_gone == {"pixel_decoder", "token_head"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--model.embed-dim", 48), "there; give --model.embed-dim 24 as there"),
        (
            ("--input.text-length", 40),
            "1 tensor differs, encoder.relative.text_bias: (80, 6) here, (64, 6) there; "
            "give --input.text-length 32 as there",
        ),
        (
            ("--train.freeze", "encoder.blocks.*.fnn.*"),
            "train.freeze: 'encoder.blocks.*.fnn.*' matches no parameter; the nearest: ",
        ),
    ],
)
def test_flags_that_do_not_fit_the_start_are_refused(
    eve,
    two_stages: Path,
    monkeypatch,
    flags: tuple,
    message: str,
):
    monkeypatch.chdir(two_stages)
    assert message in complaint(eve(*SECOND, "--out", "wrong", *flags))


def test_pairs_then_search_start_from_the_stages_before(eve, two_stages: Path, monkeypatch):
    monkeypatch.chdir(two_stages)
    sizes = ("--input.image-size", 32, "--input.text-length", 24, "--data.train", "scenes:val")
    done = eve("pretrain", "vlmo_tiny", "--init", "two", "--out", "three", *sizes, *FEW)
    assert done.returncode == 0, done.stderr
    resized = (
        "relative positions resized from 36 to 16 patches; "
        "relative positions of texts cut from 32 to 24 tokens"
    )
    assert f"two/checkpoints/step_00000002; {resized}" in done.stdout
    assert len(weights(two_stages / "three")["encoder.relative.image_bias"]) == 7**2 + 3
    search = ("demo_retrieval", "--init", "three", "--out", "search", "--data.train", "scenes:val")
    done = eve("finetune", *search, *FEW)
    assert done.returncode == 0, done.stderr

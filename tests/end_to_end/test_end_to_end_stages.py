"""VLMo's three stages on the real command line, then a search; a few steps each."""

from fnmatch import fnmatchcase
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

pytestmark = pytest.mark.usefixtures("no_report")

SECOND = (
    *("pretrain", "vlmo_tiny_texts", "--init", "one"),
    *("--data.train", "words.txt", "--data.val", "held-out"),
)
# what training on texts changes
LEARNS = (
    "encoder.text.*",
    "encoder.blocks.*.ffn.text.*",
    "encoder.blocks.*.ffn.norm_text.*",
    "encoder.norm.*",
    "encoder.relative.text_bias",
)
FEW = (
    *("--train.steps", 3, "--train.batch-size", 4, "--train.dtype", "float32"),
    *("--data.val-samples", 4, "--data.num-workers", 0),
)
SMALL = ("--model.embed-dim", 24, "--model.depth", 2)


def weights(run: Path) -> dict[str, Tensor]:
    return load_file(run / "checkpoints/step_00000003/model.safetensors")


def complaint_about(done) -> str:
    """Return the last line of a refused command, which prints nothing else."""
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    return done.stderr.splitlines()[-1]


@pytest.fixture
def two_stages(eve, tmp_path: Path) -> Path:
    """Train on images alone (`one`), then on texts alone (`two`)."""
    lines = [f"a {size} red circle number {size}\n" for size in range(200)]
    (tmp_path / "words.txt").write_text("".join(lines))
    tokenizer = ("--out", "words.json", "--vocab-size", 300)
    assert eve("tokenizer", "train", "words.txt", *tokenizer).returncode == 0
    first = ("pretrain", "vlmo_tiny_images", "--tokenizer.path", "words.json")
    done = eve(*first, "--out", "one", *SMALL, *FEW)
    assert done.returncode == 0, done.stderr
    done = eve(*SECOND, "--out", "two", *FEW)
    assert done.returncode == 0, done.stderr
    shape = "one keeps its shape instead of that of vlmo_tiny_texts: 2 blocks, width 24, "
    assert f"\n{shape}" in done.stdout
    return tmp_path


def test_training_on_texts_leaves_attention_and_images_equal_to_the_bit(two_stages: Path):
    before = weights(two_stages / "one")
    after = weights(two_stages / "two")
    for name in before.keys() & after.keys():
        is_trained = any(fnmatchcase(name, pattern) for pattern in LEARNS)
        assert torch.equal(before[name], after[name]) != is_trained, name
    new_or_gone = {name.partition(".")[0] for name in before.keys() ^ after.keys()}
    assert new_or_gone == {"pixel_decoder", "token_head"}


def test_a_start_that_does_not_fit_is_refused(eve, two_stages: Path):
    misfit = "its encoder does not fit this model: "
    bias = "1 tensor differs, encoder.relative.text_bias: (80, 6) here, (64, 6) there; "
    advice = (
        "leave out the flags that change shapes, give the run's --input.text-length 32, or name "
        "what may start at random"
    )
    line = complaint_about(eve(*SECOND, "--out", "wrong", *FEW, "--model.embed-dim", 48))
    assert misfit in line and advice in line
    line = complaint_about(eve(*SECOND, "--out", "wrong", *FEW, "--input.text-length", 40))
    assert misfit + bias + advice in line
    pattern = "encoder.blocks.*.fnn.*"
    line = complaint_about(eve(*SECOND, "--out", "wrong", *FEW, "--train.freeze", pattern))
    assert f"train.freeze: '{pattern}' matches no parameter; the nearest: " in line


@pytest.mark.parametrize(
    ("recipe", "flags", "difference"),
    [
        ("vlmo_base", ("--model.stem", "conv"), "model.stem conv instead of linear"),
        ("tiny", (), "model.name vlmo instead of eve"),
        ("m3ae_tiny", (), "model.name vlmo instead of m3ae"),
    ],
)
def test_a_start_from_another_system_is_refused(
    eve, two_stages: Path, recipe: str, flags: tuple, difference: str
):
    data = ("--data.train", "scenes:train", "--data.val", "scenes:val") if flags else ()
    start = ("pretrain", recipe, "--init", "two", "--out", "wrong")
    line = complaint_about(eve(*start, *data, *FEW, *flags))
    advice = "start from a run of that recipe"
    assert line.endswith(f": another system than {recipe} ({difference}); {advice}")


def test_pairs_then_search_start_from_the_stages_before(eve, two_stages: Path):
    sizes = ("--input.image-size", 32, "--input.text-length", 24, "--data.train", "scenes:train")
    done = eve("pretrain", "vlmo_tiny", "--init", "two", "--out", "three", *sizes, *FEW)
    assert done.returncode == 0, done.stderr
    resized = (
        "relative positions resized from 36 to 16 patches; "
        "relative positions of texts cut from 32 to 24 tokens"
    )
    assert f"two/checkpoints/step_00000003; {resized}" in done.stdout
    assert len(weights(two_stages / "three")["encoder.relative.image_bias"]) == 7**2 + 3
    done = eve("finetune", "demo_retrieval", "--init", "three", "--out", "search", *FEW)
    assert done.returncode == 0, done.stderr

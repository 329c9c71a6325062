"""VLMo's three stages on the real command line, then a search; a few steps each."""

from fnmatch import fnmatchcase
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import Tensor

pytestmark = pytest.mark.usefixtures("no_report")

LEARNS = (
    "encoder.text.*",
    "encoder.blocks.*.ffn.text.*",
    "encoder.blocks.*.ffn.norm_text.*",
    "encoder.norm.*",
)
FEW = (
    "--train.steps",
    3,
    "--train.batch-size",
    4,
    "--data.val-samples",
    4,
    "--data.num-workers",
    0,
    "--train.dtype",
    "float32",
)
SMALL = ("--model.embed-dim", 24, "--model.depth", 2)


def weights(run: Path) -> dict[str, Tensor]:
    return load_file(run / "checkpoints/step_00000003/model.safetensors")


def test_each_stage_starts_from_the_one_before(eve, tmp_path: Path):
    (tmp_path / "words.txt").write_text(
        "".join(f"a {size} red circle number {size}\n" for size in range(200))
    )
    assert (
        eve(
            "tokenizer", "train", "words.txt", "--out", "words.json", "--vocab-size", 300
        ).returncode
        == 0
    )
    done = eve(
        "pretrain",
        "vlmo_tiny_images",
        "--out",
        "one",
        "--tokenizer.path",
        "words.json",
        *SMALL,
        *FEW,
    )
    assert done.returncode == 0, done.stderr
    second = (
        "pretrain",
        "vlmo_tiny_texts",
        "--init",
        "one",
        "--data.train",
        "words.txt",
        "--data.val",
        "held-out",
    )
    done = eve(*second, "--out", "two", *FEW)
    assert done.returncode == 0, done.stderr
    assert (
        "\none keeps its shape instead of that of vlmo_tiny_texts: 2 blocks, width 24, "
        in done.stdout
    )
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name in (
        one.keys() & two.keys()
    ):  # attention, networks and embedding of images are theirs to the bit
        learns = any(
            fnmatchcase(name, pattern) for pattern in (*LEARNS, "encoder.relative.text_bias")
        )
        assert bool((one[name] != two[name]).any()) == learns, name
    assert {name.partition(".")[0] for name in one.keys() ^ two.keys()} == {
        "pixel_decoder",
        "token_head",
    }
    misfit = "its encoder does not fit this model: "
    first = "1 tensor differs, encoder.relative.text_bias: (80, 6) here, (64, 6) there; "
    advice = "leave out the flags that change shapes, give the run's --input.text-length 32, or name what may start at random"
    no_such = "'encoder.blocks.*.fnn.*' matches no parameter; the nearest: "
    base = (
        "pretrain",
        "vlmo_base",
        "--init",
        "two",
        "--data.train",
        "scenes:train",
        "--data.val",
        "scenes:val",
    )
    for start, (flag, value), *words in (
        (second, ("--model.embed-dim", 48), misfit, advice),
        (second, ("--input.text-length", 40), misfit + first + advice),
        (second, ("--train.freeze", "encoder.blocks.*.fnn.*"), f"train.freeze: {no_such}"),
        (
            base,
            ("--model.stem", "conv"),
            "another system than vlmo_base (model.stem conv instead of linear); start from a run of that recipe",
        ),
    ):
        done = eve(*start, "--out", "wrong", *FEW, flag, value)
        assert done.returncode == 2
        assert all(part in done.stderr.splitlines()[-1] for part in words), done.stderr
        assert done.stderr.count("\n") == 1
    sizes = ("--input.image-size", 32, "--input.text-length", 24, "--data.train", "scenes:train")
    done = eve("pretrain", "vlmo_tiny", "--init", "two", "--out", "three", *sizes, *FEW)
    assert done.returncode == 0, done.stderr
    resized = "relative positions resized from 36 to 16 patches; relative positions of texts cut from 32 to 24 tokens"
    assert f"two/checkpoints/step_00000003; {resized}" in done.stdout
    assert len(weights(tmp_path / "three")["encoder.relative.image_bias"]) == 7**2 + 3
    differ = "model.name vlmo instead of eve"
    own = "start from a run of that recipe"
    for recipe, words in (
        ("tiny", f": another system than tiny ({differ}); {own}"),
        (
            "m3ae_tiny",
            f": another system than m3ae_tiny (model.name vlmo instead of m3ae); {own}",
        ),
    ):
        done = eve("pretrain", recipe, "--init", "two", "--out", "wrong", *FEW)
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].endswith(words)
        assert done.stderr.count("\n") == 1
    done = eve("finetune", "demo_retrieval", "--init", "three", "--out", "search", *FEW)
    assert done.returncode == 0, done.stderr

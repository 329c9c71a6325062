"""`eve pretrain RECIPE --init RUN`: what it takes over from the run, what it prints, and which runs it refuses.

Nothing is trained: with --scratch a config is enough, and an invalid flag stops the command after its messages.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eve_vl.config import config_to_json
from eve_vl.recipes import get_recipe

STOP = "train.steps 0 is not in [1, inf)"
OWN = "start from a run of that recipe"
EVE, MLIM, MEDFLIP, VLMO = "tiny", "mlim_tiny", "medflip_tiny", "vlmo_large_images"
BLOCKS = (
    "model.stem patch_conv instead of linear, model.shallow_ffn shared instead of modality, "
    "model.num_deep_blocks 0 instead of 2"
)
AS_MLIM = "--model.stem patch_conv --model.shallow-ffn shared --model.num-deep-blocks 0"


@pytest.fixture
def printed(eve, tmp_path: Path):
    """The error's last line, and the printed lines except the first, which names the run."""

    def run(recipe: str, start: str, *flags: Any, model: dict[str, Any] | None = None, **sizes: int) -> tuple[str, list[str]]:
        if start != "builtin:icons":
            config = get_recipe(start)
            (tmp_path / "run").mkdir()
            shape = {"model": replace(config.model, **model or {}), "input": replace(config.input, **sizes)}
            (tmp_path / "run/config.json").write_text(config_to_json(replace(config, **shape)))
            (tmp_path / "run/tokenizer.json").write_text("{}")
            start = "run"
        done = eve("pretrain", recipe, "--init", start, "--scratch", "--train.steps", 0, *flags)
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        first, *lines = done.stdout.splitlines()
        assert first == f"eve pretrain {recipe}: starts from {start}"
        return done.stderr.strip(), lines

    return run


@pytest.mark.parametrize(
    ("recipe", "start", "model", "differ", "kept"),
    [
        (EVE, MLIM, {}, BLOCKS, AS_MLIM),
        (MEDFLIP, "m3ae_tiny", {}, "model.fusion_depth 2 instead of 0", "--model.fusion-depth 2"),
        (MEDFLIP, "m3ae_tiny", {"fusion_depth": 1}, "model.fusion_depth 1 instead of 0", "--model.fusion-depth 1"),
        ("vlmo_base", "vlmo_tiny", {}, "model.stem conv instead of linear", "--model.stem conv"),
        (EVE, EVE, {"deep_ffn": "shared"}, "model.deep_ffn shared instead of moe", "--model.deep-ffn shared"),
        (EVE, EVE, {"num_deep_blocks": 0}, "model.num_deep_blocks 0 instead of 2", "--model.num-deep-blocks 0"),
    ],
)
def test_a_run_of_another_system_is_refused_with_the_flags_that_confirm_it(
    printed, tmp_path, recipe, start, model, differ, kept
):
    error, lines = printed(recipe, start, model=model)
    assert error.endswith(f": another system than {recipe} ({differ}); {OWN}, or keep the run's system with {kept}")
    assert not lines
    (tmp_path / "run").rename(tmp_path / "before")
    assert printed(recipe, start, *kept.split(), model=model)[0].endswith(STOP)


@pytest.mark.parametrize(
    ("recipe", "start", "differ"),
    [
        (
            *(MLIM, "builtin:icons"),
            "model.stem conv instead of patch_conv, model.shallow_ffn modality instead of shared, "
            "model.num_deep_blocks 2 instead of 0",
        ),
        ("m3ae_tiny", MEDFLIP, "model.fusion_depth 0 instead of 2"),
        ("m3ae_tiny", EVE, "model.name eve instead of dual_encoder"),
    ],
)
def test_a_system_that_the_task_cannot_train_is_refused_without_flags(printed, recipe, start, differ):
    error, _ = printed(recipe, start)
    assert error.endswith(f": another system than {recipe} ({differ}); {OWN}")


@pytest.mark.parametrize(
    ("recipe", "start", "flags", "problem"),
    [
        ("m3ae_tiny", MEDFLIP, "--model.fusion-depth 2", STOP),
        ("m3ae_tiny", MEDFLIP, "--model.fusion-depth 0", "which model.fusion_depth 0 does not give"),
        (MLIM, EVE, AS_MLIM, STOP),
        (
            MLIM,
            EVE,
            AS_MLIM.replace("patch_conv", "linear", 1),
            "with model.stem patch_conv, which shows nothing of a masked patch",
        ),
    ],
)
def test_flags_may_give_a_run_what_the_task_needs(printed, recipe, start, flags, problem):
    assert problem in printed(recipe, start, *flags.split())[0]


def test_sizes_of_a_run_are_checked_with_its_own_stem(printed):
    flags = ["--model.stem", "linear", "--model.deep-ffn", "moe"]
    assert printed("demo", EVE, *flags, image_size=36, patch_size=12)[0].endswith(STOP)


@pytest.mark.parametrize(
    ("recipe", "start", "model", "shape"),
    [
        ("vlmo_large", VLMO, {"embed_dim": 24, "depth": 3, "num_heads": 2}, "3 blocks, width 24, 2 heads, feed-forward 96"),
        ("base", "base", {"depth": 2}, "2 blocks, width 768, 12 heads, feed-forward 3072"),
        (EVE, EVE, {"drop_path": 0.1}, ""),
        ("m3ae_tiny", "m3ae_tiny", {"image_depth": 3}, "towers of 3 and 2 blocks, 2 layers of co-attention, width "),
        ("icons", "demo", {}, ", 48² pixels"),
    ],
)
def test_a_run_of_another_size_keeps_it_and_prints_so(printed, recipe, start, model, shape):
    error, lines = printed(recipe, start, *(["--data.train", "scenes:train"] if recipe == "icons" else []), model=model)
    assert error.endswith(STOP)
    assert len(lines) == bool(shape)
    assert all(line.startswith(f"run keeps its shape instead of that of {recipe}: ") and shape in line for line in lines)

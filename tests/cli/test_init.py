"""`eve pretrain RECIPE --init RUN`: what it copies, prints and refuses.

Nothing is trained: with --scratch a config is enough, and an invalid flag stops the command after
its messages.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eve_vl.config import config_to_json
from eve_vl.recipes.registry import get_recipe

STOP = "train.steps 0 is not in [1, inf)"
EVE = "tiny"
MLIM = "mlim_tiny"
MEDFLIP = "medflip_tiny"
VLMO = "vlmo_large_images"
BLOCKS = (
    "model.stem patch_conv instead of linear, model.shallow_ffn shared instead of modality, "
    "model.num_deep_blocks 0 instead of 2"
)


@pytest.fixture
def printed(eve, tmp_path: Path):
    """Return the last line of the error, and the printed lines after the one that names the run."""

    def run(
        recipe: str,
        start: str,
        *flags: str,
        model: dict[str, Any],
    ) -> tuple[str, list[str]]:
        if start != "builtin:drawings":
            config = get_recipe(start)
            config = replace(config, model=replace(config.model, **model))
            (tmp_path / "run").mkdir()
            (tmp_path / "run/config.json").write_text(config_to_json(config))
            (tmp_path / "run/tokenizer.json").write_text("{}")
            start = "run"
        done = eve("pretrain", recipe, "--init", start, "--scratch", "--train.steps", 0, *flags)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        first, *lines = done.stdout.splitlines()
        assert first == f"eve pretrain {recipe}: starts from {start}"
        return done.stderr.strip(), lines

    return run


@pytest.mark.parametrize(
    ("recipe", "start", "model", "differ"),
    [
        (EVE, MLIM, {}, BLOCKS),
        (MEDFLIP, "m3ae_tiny", {}, "model.name m3ae instead of dual_encoder"),
        ("vlmo_base", "vlmo_tiny", {}, "model.stem conv instead of linear"),
        (EVE, EVE, {"deep_ffn": "shared"}, "model.deep_ffn shared instead of moe"),
    ],
)
def test_a_run_of_another_system_is_refused(printed, recipe, start, model, differ):
    error, lines = printed(recipe, start, model=model)
    assert error.endswith(
        f": another system than {recipe} ({differ}); start from a run of that recipe"
    )
    assert not lines


@pytest.mark.parametrize(
    ("recipe", "start", "model", "shape"),
    [
        (
            "vlmo_large",
            VLMO,
            {"embed_dim": 24, "depth": 3, "num_heads": 2},
            "3 blocks, width 24, 2 heads, feed-forward 96",
        ),
        (EVE, EVE, {"drop_path": 0.1}, ""),
        (
            "m3ae_tiny",
            "m3ae_tiny",
            {"image_depth": 3},
            "towers of 3 and 2 blocks, width ",
        ),
        ("icons", "demo_words", {}, ", 48² pixels in patches of 16"),
    ],
)
def test_a_run_of_another_size_keeps_it_and_prints_so(printed, recipe, start, model, shape):
    flags = []
    if recipe == "icons":
        flags = ["--data.train", "scenes:train"]
    error, lines = printed(recipe, start, *flags, model=model)
    assert error.endswith(STOP)
    if not shape:
        assert lines == []
        return
    (line,) = lines
    assert line.startswith(f"run keeps its shape instead of that of {recipe}: ")
    assert shape in line

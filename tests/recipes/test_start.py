"""Every recipe whose data is built in starts; flags here make it small, and name the small
validation split.

Of recipes whose steps run the same code, such as `demo` and `scenes`, one trains.
"""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from eve_vl.cli.main import main
from eve_vl.config import Config, DualEncoderConfig
from eve_vl.config.generated_sources import generated
from eve_vl.recipes.registry import get_finetune_recipe, get_recipe, recipes, start_of
from eve_vl.run import training
from eve_vl.run.loading import read_config
from helpers import shortcuts
from helpers.complaints import complaint

pytestmark = pytest.mark.usefixtures("no_report")

FEW = [
    "--train.steps",
    "1",
    "--train.batch-size",
    "4",
    "--train.accumulation",
    "1",
    "--train.threads",
    "1",
    "--train.dtype",
    "float32",
    "--data.num-workers",
    "0",
    "--data.val-samples",
    "4",
]
ONE_ENCODER = [
    "--model.embed-dim",
    "24",
    "--model.num-heads",
    "3",
    "--model.depth",
    "2",
    "--model.num-deep-blocks",
    "1",
]
TWO_ENCODERS = [
    "--model.embed-dim",
    "24",
    "--model.num-heads",
    "3",
    "--model.image-depth",
    "1",
    "--model.text-depth",
    "1",
]
SMALL_INPUT = [
    "--input.image-size",
    "32",
    "--input.patch-size",
    "16",
    "--tokenizer.vocab-size",
    "400",
]
SMALL_DECODER = ["--task.decoder-dim", "24", "--task.decoder-num-heads", "3"]


def shape_flags(name: str) -> list[str]:
    """Return the flags that make a pre-training recipe small."""
    config = get_recipe(name)
    flags = ONE_ENCODER
    if isinstance(config.model, DualEncoderConfig):
        flags = TWO_ENCODERS
    if config.input.image_size < 224:
        return flags
    flags = flags + SMALL_INPUT
    if vars(config.task)["mim_weight"] and config.task.name != "mlim":
        flags = flags + SMALL_DECODER
    return flags


def split(config: Config) -> tuple[str, ...]:
    """The smaller split of a recipe's generated data: the training split has thousands of texts to
    read before the start."""
    kind = generated(config.data.train[0])
    assert kind is not None
    return ("--data.train", f"{kind[0]}:val")


def is_built_in(data) -> bool:
    return all(map(generated, (*data.train, *data.val)))


PRETRAIN = [name for name in recipes("pretrain") if is_built_in(get_recipe(name).data)]
STARTS = {name: start_of(name, recipe) or "" for name, recipe in recipes("finetune").items()}
FINETUNE = [
    name
    for name, start in STARTS.items()
    if is_built_in(get_finetune_recipe(name, get_recipe(start)).data)
]


def test_recipes_of_each_kind_are_started():
    assert {
        "demo",
        "base",
        "vlmo_tiny_images",
        "vlmo_tiny_texts",
        "m3ae_tiny",
        "mlim_tiny",
        "medflip_tiny",
    } <= {*PRETRAIN}
    assert {"demo_vqa", "scenes_nlvr2", "m3ae_tiny_retrieval", "mlim_pairs"} <= {*FINETUNE}


def path_of(config: Config) -> str:
    """What decides which code a config runs: not names, nor the schedule, nor the size of a number
    that is neither 0 nor 1."""
    config = replace(
        config,
        recipe="",
        out=Path(),
        train=replace(config.train, log_every=1, val_every=1, save_every=1),
    )
    number = r"\b(\d+\.\d+(e-\d+)?|\d+e-\d+|\d+)\b"

    def without_size(match: re.Match[str]) -> str:
        return match[0] if float(match[0]) in (0, 1) else "x"

    return re.sub(number, without_size, repr(config))


class Started(dict[str, Path]):
    """A run of each pre-training recipe by its name, trained when it is asked for first."""

    def __init__(self, folder: Path):
        super().__init__()
        self.folder = folder
        self.trained: dict[str, Path] = {}

    def start(self, *words: object) -> Path:
        """Start a recipe on the command line; return the first run of its path."""
        configs: list[Config] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(training, "train", lambda config, **_: configs.append(config))
            main([str(word) for word in words])
        (config,) = configs
        path = path_of(config)
        if path not in self.trained:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(training, "run_lines", shortcuts.RUN_LINES)
                training.train(config)
            self.trained[path] = config.out
        return self.trained[path]

    def __missing__(self, name: str) -> Path:
        flags = (*FEW, *shape_flags(name), *split(get_recipe(name)))
        self[name] = self.start("pretrain", name, "--out", self.folder / name, *flags)
        return self[name]


@pytest.fixture(scope="module")
def started(tmp_path_factory) -> Started:
    return Started(tmp_path_factory.mktemp("started"))


@pytest.mark.parametrize("name", PRETRAIN)
def test_a_pre_training_recipe_starts_by_its_name(name, started: Started):
    assert (started[name] / "checkpoints/step_00000001/model.safetensors").is_file()


@pytest.mark.parametrize("name", FINETUNE)
def test_a_fine_tuning_recipe_starts_by_its_name(name, started: Started, tmp_path: Path):
    start = started[STARTS[name]]
    data = split(get_finetune_recipe(name, read_config(start)))
    flags = (*FEW, *data, "--train.batch-size", 16)
    run = started.start("finetune", name, "--init", start, "--out", tmp_path / "run", *flags)
    assert (run / "checkpoints/step_00000001/model.safetensors").is_file()


def test_recipes_with_one_path_share_a_run(started: Started):
    """Those of `scenes` are those of the demo with more steps."""
    assert started["demo"] == started["scenes"] != started["demo_words"] == started["scenes_words"]
    names = ("demo", "demo_words", "demo_mlm_itc_itm", "scenes_all_losses")
    assert len({started[name] for name in names}) == 4


def test_icons_search_starts_by_its_name_and_names_the_column_that_a_table_lacks(
    eve, started: Started, tmp_path: Path
):
    rows = []
    for number in range(40):
        Image.new("RGB", (8, 8), (6 * number, 0, 0)).save(tmp_path / f"{number}.png")
        parity = "even" if number % 2 == 0 else "odd"
        rows.append({"image": f"{number}.png", "caption": f"red {number}", "set": parity})
    flags = ("--init", started["tiny"], "--scratch", *FEW, "--train.batch-size", 16)
    flags += ("--data.val", "with.jsonl")
    (tmp_path / "with.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = eve("finetune", "icons_search", *flags, "--data.train", "with.jsonl", "--out", "run")
    assert done.returncode == 0, done.stderr
    (tmp_path / "without.jsonl").write_text(
        "".join(json.dumps(row).replace('"set"', '"other"') + "\n" for row in rows)
    )
    done = eve(
        "finetune", "icons_search", *flags, "--data.train", "without.jsonl", "--out", "other"
    )
    assert (
        "without.jsonl: no row has a value in column 'set'. Its columns: image, caption, other."
        in complaint(done)
    )

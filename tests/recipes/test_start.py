"""Every recipe whose data is built in starts; flags here make it small, and name the small
validation split.

Of recipes whose steps run the same code, such as `demo` and `scenes`, one trains.
"""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from eve_vl.cli.main import main
from eve_vl.config import Config, DataConfig, DualEncoderConfig
from eve_vl.config.generated_sources import generated
from eve_vl.recipes.registry import get_finetune_recipe, get_recipe, recipes, start_of
from eve_vl.run import training
from eve_vl.run.loading import read_config
from helpers.complaints import complaint
from helpers.source_files import write_jsonl

pytestmark = pytest.mark.usefixtures("no_report")

FEW = (
    "--train.steps 1 --train.batch-size 4 --train.accumulation 1 --train.threads 1 "
    "--train.dtype float32 --data.num-workers 0 --data.val-samples 4"
)
SMALL_INPUT = "--input.image-size 32 --input.patch-size 16 --tokenizer.vocab-size 400"
SMALL_DECODER = "--task.decoder-dim 24 --task.decoder-num-heads 3"
NUMBER = re.compile(r"\b(\d+\.\d+(e-\d+)?|\d+e-\d+|\d+)\b")


def shape_flags(config: Config) -> list[str]:
    """Return the flags that make a pre-training recipe small."""
    flags = ["--model.embed-dim", "24", "--model.num-heads", "3"]
    if isinstance(config.model, DualEncoderConfig):
        flags += ["--model.image-depth", "1", "--model.text-depth", "1"]
    else:
        flags += ["--model.depth", "2", "--model.num-deep-blocks", "1"]
    if config.input.image_size >= 224:
        flags += SMALL_INPUT.split()
        if vars(config.task)["mim_weight"] and config.task.name != "mlim":
            flags += SMALL_DECODER.split()
    return flags


def small_split(config: Config) -> list[str]:
    """Train on the validation split: the training split has thousands of texts to read before the
    start."""
    kind = generated(config.data.train[0])
    assert kind is not None
    return ["--data.train", f"{kind[0]}:val"]


def is_built_in(data: DataConfig) -> bool:
    return all(map(generated, (*data.train, *data.val)))


PRETRAIN = [name for name in recipes("pretrain") if is_built_in(get_recipe(name).data)]
STARTS = {name: start_of(name, recipe) or "" for name, recipe in recipes("finetune").items()}
FINETUNE = [
    name
    for name, start in STARTS.items()
    if is_built_in(get_finetune_recipe(name, get_recipe(start)).data)
]


def path_of(config: Config) -> str:
    """Return what decides which code a config runs: not names, nor the schedule, nor the size of a
    number that is neither 0 nor 1."""
    train = replace(
        config.train,
        log_every=1,
        val_every=1,
        save_every=1,
    )
    text = repr(
        replace(
            config,
            recipe="",
            out=Path(),
            train=train,
        )
    )
    return NUMBER.sub(lambda match: match[0] if float(match[0]) in (0, 1) else "x", text)


class StartedRuns:
    """A run of each recipe, trained when it is asked for first."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.run_of_path: dict[str, Path] = {}

    def pretrained(self, name: str) -> Path:
        config = get_recipe(name)
        return self._start("pretrain", name, *shape_flags(config), *small_split(config))

    def finetuned(self, name: str) -> Path:
        start = self.pretrained(STARTS[name])
        data = small_split(get_finetune_recipe(name, read_config(start)))
        batch = ("--train.batch-size", "16")
        return self._start("finetune", name, "--init", str(start), *data, *batch)

    def _start(self, verb: str, name: str, *flags: str) -> Path:
        """Start a recipe on the command line; return the first run of its path."""
        configs: list[Config] = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(training, "train", lambda config, **_: configs.append(config))
            main(
                [
                    verb,
                    name,
                    "--out",
                    str(self.folder / name),
                    *FEW.split(),
                    *flags,
                ]
            )
        (config,) = configs
        path = path_of(config)
        if path not in self.run_of_path:
            training.train(config)
            self.run_of_path[path] = config.out
        return self.run_of_path[path]


@pytest.fixture(scope="module")
def started(tmp_path_factory) -> StartedRuns:
    return StartedRuns(tmp_path_factory.mktemp("started"))


def test_recipes_of_each_kind_are_started():
    names = "demo base vlmo_tiny_images vlmo_tiny_texts m3ae_tiny mlim_tiny medflip_tiny"
    assert set(names.split()) <= set(PRETRAIN)
    assert {"demo_vqa", "scenes_nlvr2", "m3ae_tiny_retrieval", "mlim_pairs"} <= set(FINETUNE)


@pytest.mark.parametrize("name", PRETRAIN)
def test_a_pre_training_recipe_starts_by_its_name(name, started: StartedRuns):
    run = started.pretrained(name)
    assert (run / "checkpoints/step_00000001/model.safetensors").is_file()


@pytest.mark.parametrize("name", FINETUNE)
def test_a_fine_tuning_recipe_starts_by_its_name(name, started: StartedRuns):
    run = started.finetuned(name)
    assert (run / "checkpoints/step_00000001/model.safetensors").is_file()


def test_recipes_with_one_path_share_a_run(started: StartedRuns):
    """Those of `scenes` are those of the demo with more steps."""
    assert started.pretrained("demo") == started.pretrained("scenes")
    assert started.pretrained("demo_words") == started.pretrained("scenes_words")
    names = ("demo", "demo_words", "demo_mlm_itc_itm", "scenes_all_losses")
    assert len({started.pretrained(name) for name in names}) == 4


def test_icons_search_starts_and_names_the_column_that_a_table_lacks(
    eve, started: StartedRuns, tmp_path: Path
):
    rows = []
    for number in range(40):
        Image.new("RGB", (8, 8), (6 * number, 0, 0)).save(tmp_path / f"{number}.png")
        parity = "even" if number % 2 == 0 else "odd"
        rows.append(
            {
                "image": f"{number}.png",
                "caption": f"red {number}",
                "set": parity,
            }
        )
    write_jsonl(tmp_path / "with.jsonl", rows)
    write_jsonl(tmp_path / "without.jsonl", [row | {"set": ""} for row in rows])
    flags = (
        "--init",
        started.pretrained("tiny"),
        "--scratch",
        *FEW.split(),
        "--train.batch-size",
        16,
    )
    flags += ("--data.val", "with.jsonl")
    done = eve("finetune", "icons_search", *flags, "--data.train", "with.jsonl", "--out", "run")
    assert done.returncode == 0, done.stderr
    done = eve("finetune", "icons_search", *flags, "--data.train", "without.jsonl", "--out", "no")
    assert "without.jsonl: no row has a value in column 'set'" in complaint(done)

"""Every recipe whose data is built in trains when only its name is given; flags here only make it small."""

from pathlib import Path

import pytest

from eve_vl.config import DualEncoderConfig, generated
from eve_vl.recipes import get_finetune_recipe, get_recipe, recipes, start_of

FEW = (
    *("--train.steps", 1, "--train.batch-size", 4, "--train.accumulation", 1, "--train.threads", 1, "--data.num-workers", 0),
    *("--data.val-samples", 4, "--train.dtype", "float32"),
)
SHAPES = {
    False: ("--model.embed-dim", 24, "--model.depth", 2, "--model.num-heads", 3, "--model.num-deep-blocks", 1),
    True: ("--model.embed-dim", 24, "--model.image-depth", 1, "--model.text-depth", 1, "--model.num-heads", 3),
}
PAPER = ("--input.image-size", 32, "--input.patch-size", 16, "--tokenizer.vocab-size", 400)
DECODER = ("--task.decoder-dim", 24, "--task.decoder-num-heads", 3)


def shape_flags(name: str) -> tuple[object, ...]:
    """The flags that make a pre-training recipe small."""
    config = get_recipe(name)
    flags = SHAPES[isinstance(config.model, DualEncoderConfig)]
    if config.input.image_size < 224:
        return flags
    has_decoder = vars(config.task)["mim_weight"] and config.task.name != "mlim"
    return (*flags, *PAPER, *DECODER * bool(has_decoder))


def split(name: str) -> tuple[str, ...]:
    """The smaller split of a recipe's generated data, since the training split has thousands of captions for a tokenizer."""
    kind = generated(get_recipe(name).data.train[0])
    assert kind is not None
    return ("--data.train", f"{kind[0]}:val")


def is_built_in(data) -> bool:
    return all(map(generated, (*data.train, *data.val)))


PRETRAIN = [name for name in recipes("pretrain") if is_built_in(get_recipe(name).data)]
STARTS = {name: start_of(name, recipe) or "" for name, recipe in recipes("finetune").items()}
FINETUNE = [name for name, start in STARTS.items() if is_built_in(get_finetune_recipe(name, get_recipe(start)).data)]


@pytest.fixture(autouse=True)
def _no_report(monkeypatch) -> None:
    monkeypatch.setattr("eve_vl.report.page.write_report", str)


def test_recipes_of_each_kind_are_started():
    assert {"demo", "base", "vlmo_tiny_images", "vlmo_tiny_texts", "m3ae_tiny", "mlim_tiny", "medflip_tiny"} <= {*PRETRAIN}
    assert {"demo_vqa", "scenes_nlvr2", "m3ae_tiny_retrieval", "mlim_pairs"} <= {*FINETUNE}


@pytest.mark.parametrize("name", PRETRAIN)
def test_a_pre_training_recipe_starts_by_its_name(name, eve, tmp_path: Path):
    done = eve("pretrain", name, "--out", "run", *FEW, *shape_flags(name), *split(name))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/checkpoints/step_00000001/model.safetensors").is_file()


@pytest.fixture(scope="module")
def starts(tmp_path_factory) -> dict[str, Path]:
    """One run of each recipe that a fine-tuning recipe starts from."""
    from eve_vl.cli import main

    folder = tmp_path_factory.mktemp("starts")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("eve_vl.report.page.write_report", str)
        for name in {STARTS[each] for each in FINETUNE}:
            words = ("pretrain", name, "--out", folder / name, *FEW, *shape_flags(name), *split(name))
            main([str(word) for word in words])
    return {path.name: path for path in folder.iterdir()}


@pytest.mark.parametrize("name", FINETUNE)
def test_a_fine_tuning_recipe_starts_by_its_name(name, eve, starts, tmp_path: Path):
    done = eve("finetune", name, "--init", starts[STARTS[name]], "--out", "run", *FEW, "--train.batch-size", 16)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/checkpoints/step_00000001/model.safetensors").is_file()

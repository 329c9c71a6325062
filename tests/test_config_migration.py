"""Sections by name, and configs of earlier versions by hand-made dicts."""

import json
from pathlib import Path

import pytest

from eve_vl.config import (
    ContrastMatchConfig,
    EncoderOnlyConfig,
    EveModelConfig,
    InputConfig,
    MaskedSignalConfig,
    MlimConfig,
    ModelConfig,
    NLVR2Config,
    RetrievalConfig,
    TaskConfig,
    VQAConfig,
    config_from_dict,
    config_to_json,
    from_dict,
    generated,
    kinds_of,
    to_dict,
)
from eve_vl.config.values import FORMAT, STEPS
from eve_vl.errors import UserError
from eve_vl.recipes import get_recipe

MASKED = {"name": "masked_signal", "decoder_depth": 1, "decoder_dim": 16, "decoder_num_heads": 2}


def old(**sections: dict) -> dict:
    """A config.json as the first version wrote it: no format, sizes of inputs in the model, which had no name."""
    model = {"image_size": 64, "patch_size": 8, "text_length": 20, "padded_text_length": 10, "embed_dim": 48, "num_heads": 3}
    return {"recipe": "mine", "out": "runs/mine", "model": model, "task": {"name": "masked_signal"}} | sections


def migrated(**sections: dict) -> TaskConfig:
    return config_from_dict(old(**sections), "run/config.json").task


def test_kinds_are_known_by_name():
    kinds = kinds_of(TaskConfig)
    known = [EncoderOnlyConfig, MaskedSignalConfig, ContrastMatchConfig, RetrievalConfig, VQAConfig, NLVR2Config]
    assert {"encoder", "masked_signal", "contrast_match", "retrieval", "vqa", "nlvr2"} <= set(kinds)
    assert all(kinds[kind.name] is kind for kind in known)
    assert all(kind.title and issubclass(kind, TaskConfig) for kind in kinds.values())
    assert kinds_of(ModelConfig)["eve"] is EveModelConfig
    assert kinds_of(MaskedSignalConfig) == {"contrast_match": ContrastMatchConfig, "mlim": MlimConfig}


@pytest.mark.parametrize("name", kinds_of(TaskConfig))
def test_a_section_comes_back_as_the_kind_that_it_was(name):
    section = kinds_of(TaskConfig)[name]()
    values = json.loads(json.dumps(to_dict(section)))
    assert next(iter(values.items())) == ("name", name)
    recipe = get_recipe("mlim_tiny" if name == "mlim" else "tiny")  # the one task that does not take every model
    again = config_from_dict(json.loads(config_to_json(recipe)) | {"task": values}, "config.json").task
    assert again == section
    assert type(again) is type(section)


def test_a_section_of_a_kind_of_its_own_needs_no_name():
    assert from_dict(InputConfig, to_dict(InputConfig(image_size=32)), "x") == InputConfig(image_size=32)
    assert "name" not in to_dict(InputConfig())


def test_a_file_says_its_format():
    values = json.loads(config_to_json(get_recipe("tiny")))
    assert next(iter(values.items())) == ("format", FORMAT)
    assert len(STEPS) == FORMAT - 1


@pytest.mark.parametrize("form", [FORMAT + 1, 0, "2", 1.5, None, [1]])
def test_another_format_is_one_error(form):
    values = json.loads(config_to_json(get_recipe("tiny"))) | {"format": form, "what only later versions know": 1}
    with pytest.raises(UserError) as caught:
        config_from_dict(values, "run/config.json")
    problem = f"has format {form!r}, but this version knows 1 to {FORMAT}; update the package"
    assert str(caught.value) == f"run/config.json: {problem}"


def test_what_is_no_object_is_refused():
    with pytest.raises(UserError, match=r"^run/config\.json: is not a run's config, which is a JSON object$"):
        config_from_dict(["recipe"], "run/config.json")  # pyright: ignore[reportArgumentType]


def test_sizes_of_inputs_leave_the_model():
    values = old()
    config = config_from_dict(values, "run/config.json")
    assert config.input == InputConfig(image_size=64, patch_size=8, text_length=20, padded_text_length=10)
    assert config.model == EveModelConfig(embed_dim=48, num_heads=3)
    assert (config.recipe, config.out) == ("mine", Path("runs/mine"))
    assert values == old()  # the dict that was given stays as it is
    without = config_from_dict(old(model={"embed_dim": 48, "num_heads": 3}), "run/config.json")
    assert without.input == InputConfig()


@pytest.mark.parametrize("weights", [{}, {"itc_weight": 0.0, "itm_weight": 0.0, "projection_dim": 0}, {"itc_weight": 0}])
def test_masked_signal_stays_without_the_weights_of_rivals(weights):
    task = migrated(task=MASKED | {"mim_weight": 0.5, "normalize_targets": False} | weights)
    assert task == MaskedSignalConfig(
        mim_weight=0.5, normalize_targets=False, decoder_depth=1, decoder_dim=16, decoder_num_heads=2
    )
    assert type(task) is MaskedSignalConfig


@pytest.mark.parametrize("mim_weight", [0.0, 1.0, 0.25])
def test_a_rival_becomes_a_task_of_its_own(mim_weight):
    weights = {"mim_weight": mim_weight, "mlm_weight": 1.0, "itc_weight": 0.5, "itm_weight": 2.0, "projection_dim": 8}
    task = migrated(task=MASKED | weights)
    assert task == ContrastMatchConfig(**weights, decoder_depth=1, decoder_dim=16, decoder_num_heads=2)
    assert type(task) is ContrastMatchConfig


def test_a_rival_that_left_defaults_out_keeps_those_of_its_time():
    """A rival was a masked_signal, whose pixels, without a word, weighed 1, and whose matching weighed 0."""
    task = migrated(task={"name": "masked_signal", "itc_weight": 1.0})
    assert task == ContrastMatchConfig(mim_weight=1.0, mlm_weight=1.0, itc_weight=1.0, itm_weight=0.0)


def test_contrast_alone_is_no_bare_encoder():
    task = migrated(task=MASKED | {"mim_weight": 0.0, "mlm_weight": 0.0, "itc_weight": 1.0, "itm_weight": 0.0})
    assert isinstance(task, ContrastMatchConfig)
    assert (task.mim_weight, task.mlm_weight, task.itc_weight, task.itm_weight) == (0, 0, 1, 0)


def test_masked_signal_without_any_loss_was_a_bare_encoder():
    task = migrated(task=MASKED | {"mim_weight": 0.0, "mlm_weight": 0.0, "itc_weight": 0.0, "itm_weight": 0.0})
    assert task == EncoderOnlyConfig()


@pytest.mark.parametrize(
    "section", [VQAConfig(min_answer_count=3), NLVR2Config(head="paired"), RetrievalConfig(itc_weight=0.5, projection_dim=8)]
)
def test_other_tasks_stay_as_they_are(section):
    assert migrated(task=to_dict(section)) == section


def test_an_unknown_key_of_an_old_file_is_still_an_error():
    with pytest.raises(UserError, match=r"^run/config\.json: unknown key 'embed_dimm'; did you mean 'embed_dim'\?$"):
        config_from_dict(old(model={"embed_dimm": 48}), "run/config.json")


def test_generators_are_told_from_files():
    assert generated("scenes:val") == ("scenes", "val")
    assert generated("scenes") == ("scenes", "train")
    assert generated("scenes.jsonl") is None
    assert generated("folder/scenes:val") is None

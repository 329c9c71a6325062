"""Sections by name, and the format of config.json."""

import json

import pytest

from eve_vl.config import (
    FORMAT,
    EveModelConfig,
    InputConfig,
    ModelConfig,
    TaskConfig,
    config_from_dict,
    config_to_json,
    to_dict,
)
from eve_vl.config.generated_sources import generated
from eve_vl.config.json_form import from_dict
from eve_vl.config.kinds import all_kinds, kinds_of
from eve_vl.recipes import get_recipe
from eve_vl.systems.mlim.pretraining.config import MlimConfig
from eve_vl.tasks.contrast_match.config import ContrastMatchConfig
from eve_vl.tasks.headless.config import HeadlessConfig
from eve_vl.tasks.masked_signal.config import MaskedSignalConfig
from eve_vl.tasks.nlvr2.config import NLVR2Config
from eve_vl.tasks.retrieval.config import RetrievalConfig
from eve_vl.tasks.vqa.config import VQAConfig
from eve_vl.utils.errors import UserError


def test_kinds_are_known_by_name():
    kinds = all_kinds(TaskConfig, "tasks")
    sections = [
        HeadlessConfig,
        MaskedSignalConfig,
        ContrastMatchConfig,
        RetrievalConfig,
        VQAConfig,
        NLVR2Config,
    ]
    for section in sections:
        assert kinds[section.name] is section
    assert all(kind.title and issubclass(kind, TaskConfig) for kind in kinds.values())
    assert kinds_of(ModelConfig)["eve"] is EveModelConfig
    assert kinds_of(MaskedSignalConfig) == {
        "contrast_match": ContrastMatchConfig,
        "mlim": MlimConfig,
    }


@pytest.mark.parametrize("name", all_kinds(TaskConfig, "tasks"))
def test_a_section_comes_back_as_the_kind_that_it_was(name):
    section = all_kinds(TaskConfig, "tasks")[name]()
    values = json.loads(json.dumps(to_dict(section)))
    assert next(iter(values.items())) == ("name", name)
    recipe = get_recipe(
        "mlim_tiny" if name == "mlim" else "tiny"
    )  # the one task that does not take every model
    again = config_from_dict(
        json.loads(config_to_json(recipe)) | {"task": values}, "config.json"
    ).task
    assert again == section
    assert type(again) is type(section)


def test_a_section_of_a_kind_of_its_own_needs_no_name():
    assert from_dict(InputConfig, to_dict(InputConfig(image_size=32)), "x") == InputConfig(
        image_size=32
    )
    assert "name" not in to_dict(InputConfig())


@pytest.mark.parametrize("form", [FORMAT + 1, FORMAT - 1, str(FORMAT), None])
def test_another_format_is_one_error(form):
    values = json.loads(config_to_json(get_recipe("tiny"))) | {
        "format": form,
        "what only later versions know": 1,
    }
    with pytest.raises(UserError) as caught:
        config_from_dict(values, "run/config.json")
    fix = "update the package" if form == FORMAT + 1 else "train the run again"
    problem = f"config format {form!r} is not supported, this version reads {FORMAT}; {fix}"
    assert str(caught.value) == f"run/config.json: {problem}"


def test_what_is_no_object_is_refused():
    with pytest.raises(
        UserError, match=r"^run/config\.json: not a run's config: expected a JSON object$"
    ):
        config_from_dict(["recipe"], "run/config.json")  # pyright: ignore[reportArgumentType]


def test_generators_are_told_from_files():
    assert generated("scenes:val") == ("scenes", "val")
    assert generated("scenes") == ("scenes", "train")
    assert generated("scenes.jsonl") is None
    assert generated("folder/scenes:val") is None


def test_a_removed_field_loads_only_at_the_value_that_had_no_effect():
    config = get_recipe("tiny")
    values = json.loads(config_to_json(config))
    values["data"]["pair_captions"] = False
    assert config_from_dict(values, "run/config.json") == config
    values["data"]["pair_captions"] = True
    with pytest.raises(UserError, match=r"^run/config\.json: unknown key 'pair_captions'"):
        config_from_dict(values, "run/config.json")

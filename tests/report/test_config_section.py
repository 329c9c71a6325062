"""The command on a page makes the config of its run."""

import html
import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from eve_vl.cli.train import run_finetune, run_pretrain
from eve_vl.config import Config, to_dict
from eve_vl.config.json_form import from_dict
from eve_vl.recipes.registry import get_recipe
from eve_vl.report.config_section import command_line
from eve_vl.run.loading import load_run


@pytest.fixture
def trained_configs(monkeypatch) -> list[Config]:
    """The configs that commands train, which are recorded only."""
    configs: list[Config] = []
    monkeypatch.setattr("eve_vl.run.training.train", lambda config, **_: configs.append(config))
    return configs


def changed_config(out: Path) -> Config:
    """Return a config that differs from its recipe in all sections."""
    config = get_recipe("tiny")
    return replace(
        config,
        out=out,
        model=replace(
            config.model,
            modality_routing=False,
            mlp_ratio=3.5,
            shallow_ffn="shared",
        ),
        task=replace(config.task, normalize_targets=True),
        data=replace(
            config.data,
            train=("a b.jsonl", "scenes:train"),
            train_weights=(1.0, 2.5),
            image_root=Path("x"),
            flip=True,
        ),
        train=replace(
            config.train,
            lr=3e-4,
            betas=(0.9, 0.95),
            schedule="linear",
        ),
    )


def test_pretraining_command_makes_the_same_config(
    tmp_path: Path, monkeypatch, trained_configs: list[Config]
):
    monkeypatch.chdir(tmp_path)
    Path("a b.jsonl").touch()
    changed = changed_config(tmp_path / "with space")
    assert from_dict(Config, json.loads(json.dumps(to_dict(changed))), "here") == changed
    assert command_line(get_recipe("tiny")) == "eve pretrain tiny"
    for config in (
        get_recipe("tiny"),
        changed,
        get_recipe("base"),
    ):
        words = shlex.split(command_line(config))
        assert words[:3] == ["eve", "pretrain", config.recipe]
        run_pretrain(words[2:])
        assert trained_configs.pop() == config


def test_command_of_a_run_from_random_weights_makes_the_same_config(
    tmp_path: Path, monkeypatch, trained_configs: list[Config]
):
    monkeypatch.chdir(tmp_path)
    words = ["photos_vqa", "--scratch", "--data.train", "scenes:train", "--data.val", "scenes:val"]
    run_finetune([*words, "--train.lr", "0.002"])
    config = trained_configs.pop()
    command = shlex.split(command_line(config))
    assert command[:4] == ["eve", "finetune", "photos_vqa", "--scratch"]
    run_finetune(command[2:])
    assert trained_configs == [config]


@pytest.mark.parametrize("task", ["vqa", "nlvr2", "retrieval"])
def test_finetuning_command_on_the_page_makes_the_same_config(
    task: str,
    finetuned_runs: dict[str, Path],
    pretrained: Path,
    trained_configs: list[Config],
):
    run = finetuned_runs[task]
    config = load_run(run).config
    command = command_line(config)
    words = shlex.split(command)
    assert words[:5] == ["eve", "finetune", f"scenes_{task}", "--init", str(pretrained)]
    run_finetune(words[2:])
    assert trained_configs == [config]
    assert command in html.unescape((run / "report.html").read_text())

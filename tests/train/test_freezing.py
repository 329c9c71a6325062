"""Frozen parameters, learning rates of parts, and patterns without a match."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from eve_vl.config import TrainConfig
from eve_vl.data.loader import eval_loader
from eve_vl.tasks.evaluator import evaluator_of
from eve_vl.tasks.masked_signal.task import MaskedSignal
from eve_vl.tasks.task import Sizes
from eve_vl.train.bad_samples import BadSamples
from eve_vl.train.freezing import freeze
from eve_vl.train.trainer import Trainer
from eve_vl.utils.errors import UserError
from helpers.tiny_tasks import build, config_of, eval_set, train_set
from helpers.twins import tiny_config

CONFIG = TrainConfig(
    steps=4,
    batch_size=4,
    lr=1e-2,
    warmup=0.0,
    val_every=4,
    save_every=2,
    dtype="float32",
    device="cpu",
)


def fit(run: Path, config: TrainConfig, name: str = "nlvr2_compare") -> nn.Module:
    """Train a tiny task, or go on with it."""
    run.mkdir(exist_ok=True)
    task = build(config_of(name))
    dataset = train_set(task.config, 8)

    def batches(step: int) -> Iterator[Any]:
        while True:
            rows = [(step * 4 + row) % 8 for row in range(4)]
            yield dataset.collate([dataset[(step, 0, row)] for row in rows])
            step += 1

    trainer = Trainer(config, run, task, evaluator_of(task), device=torch.device("cpu"), texts={})
    trainer.resume()
    trainer.fit(
        batches(trainer.step),
        eval_loader(eval_set(task.config), batch_size=23, rank=0, world=1),
        BadSamples(run, num_rows=8, max_share=1, writes=True),
    )
    return task


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "block_muon"])
def test_frozen_parameters_stay_bit_for_bit(tmp_path: Path, monkeypatch, optimizer):
    monkeypatch.setattr(
        "eve_vl.train.parameter_groups.BLOCK_ROWS", 16
    )  # divides 16, 32 and 48 rows
    config = replace(
        CONFIG,
        optimizer=optimizer,
        freeze=("encoder.text.*", "encoder.blocks.[01].*", "*.classify.3.bias"),
    )
    start = dict(build(config_of("nlvr2_compare")).state_dict())
    task = fit(tmp_path / "run", config)
    frozen = {name for name, parameter in task.named_parameters() if not parameter.requires_grad}
    assert {
        "encoder.text.words.weight",
        "encoder.blocks.1.norm1.weight",
        "compare_head.classify.3.bias",
    } <= frozen
    assert all(
        name.startswith(
            ("encoder.text.", "encoder.blocks.0.", "encoder.blocks.1.", "compare_head.")
        )
        for name in frozen
    )
    for name, value in task.state_dict().items():
        assert torch.equal(value, start[name]) == (name in frozen), name
    kept = {
        name.rpartition(".")[0]
        for name in load_file(tmp_path / "run/checkpoints/step_00000004/optimizer.safetensors")
    }
    assert kept == {name for name, _ in task.named_parameters()} - frozen


def test_resumed_run_with_frozen_parameters_equals_uninterrupted_run(tmp_path: Path):
    config = replace(
        CONFIG,
        freeze=("encoder.*",),
        lr_multipliers=(("compare_head.classify.0.*", 0.5),),
        keep_checkpoints=9,
    )
    whole = fit(tmp_path / "run", config).state_dict()
    last = tmp_path / "run/checkpoints/step_00000004"
    last.rename(tmp_path / "last")
    (tmp_path / "run/log.jsonl").unlink()
    again = fit(tmp_path / "run", config).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in whole.items())
    one, two = (load_file(folder / "optimizer.safetensors") for folder in (tmp_path / "last", last))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_running_averages_freeze_with_their_head(tmp_path: Path):
    name = "compare_head.norm.running_mean"
    for patterns, moves in (
        (("encoder.*",), True),
        (("compare_head.*",), False),
        (("*.classify.*",), False),
    ):
        task = fit(tmp_path / patterns[0].strip("*."), replace(CONFIG, freeze=patterns))
        assert bool(task.get_buffer(name).any()) == moves, patterns


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (
            ["encodr.*"],
            r"^train.freeze: 'encodr.\*' matches no parameter; the nearest: 'encoder.\*'",
        ),
        (["encoder.*", "*"], r"^train.freeze encoder.\* \* leaves no parameter to train"),
    ],
)
def test_patterns_that_match_nothing_or_everything_are_refused(patterns, message):
    task = MaskedSignal(tiny_config(), Sizes(vocab_size=30, mask_id=2))
    with pytest.raises(UserError, match=message):
        freeze(task, patterns)

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
from helpers.number_task import step_folder
from helpers.run_comparison import tensor_differences
from helpers.tiny_config import tiny_config
from helpers.tiny_tasks import CPU, build, config_of, eval_set, train_set

CONFIG = TrainConfig(
    steps=4,
    batch_size=4,
    lr=1e-2,
    warmup=0.0,
    val_every=4,
    save_every=2,
    keep_checkpoints=9,
    dtype="float32",
    device="cpu",
)
TASK = config_of("nlvr2_compare")


def fit(run: Path, config: TrainConfig) -> nn.Module:
    """Train a tiny task, or resume it."""
    run.mkdir(exist_ok=True)
    task = build(TASK)
    dataset = train_set(TASK, 8)

    def batches(step: int) -> Iterator[Any]:
        while True:
            rows = [(step * 4 + row) % 8 for row in range(4)]
            yield dataset.collate([dataset[(step, 0, row)] for row in rows])
            step += 1

    trainer = Trainer(config, run, task, evaluator_of(task), device=CPU, texts={})
    trainer.resume()
    val_loader = eval_loader(
        eval_set(TASK),
        batch_size=23,
        rank=0,
        world=1,
    )
    bad_samples = BadSamples(
        run,
        num_rows=8,
        max_share=1,
        writes=True,
    )
    trainer.fit(batches(trainer.step), val_loader, bad_samples)
    return task


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "block_muon"])
def test_frozen_parameters_stay_bit_for_bit(tmp_path: Path, monkeypatch, optimizer):
    """Blocks of 16 rows divide the 16, 32 and 48 rows of matrices."""
    monkeypatch.setattr("eve_vl.train.parameter_groups.BLOCK_ROWS", 16)
    patterns = ("encoder.text.*", "encoder.blocks.[01].*", "*.classify.3.bias")
    before = build(TASK).state_dict()
    task = fit(tmp_path / "run", replace(CONFIG, optimizer=optimizer, freeze=patterns))

    frozen = set()
    for name, parameter in task.named_parameters():
        is_named = name.startswith(("encoder.text.", "encoder.blocks.0.", "encoder.blocks.1."))
        assert parameter.requires_grad != (is_named or name.endswith(".classify.3.bias")), name
        if not parameter.requires_grad:
            frozen.add(name)
    for name, value in task.state_dict().items():
        assert torch.equal(value, before[name]) == (name in frozen), name
    state = load_file(step_folder(tmp_path / "run", 4) / "optimizer.safetensors")
    trained = {name for name, _ in task.named_parameters()} - frozen
    assert {name.rpartition(".")[0] for name in state} == trained


def test_resumed_run_with_frozen_parameters_equals_uninterrupted_run(tmp_path: Path):
    config = replace(
        CONFIG, freeze=("encoder.*",), lr_multipliers=(("compare_head.classify.0.*", 0.5),)
    )
    run = tmp_path / "run"
    fit(run, config)
    uninterrupted = tmp_path / "uninterrupted"
    step_folder(run, 4).rename(uninterrupted)
    fit(run, config)
    assert list(tensor_differences(step_folder(run, 4), uninterrupted)) == []


@pytest.mark.parametrize(
    ("pattern", "moves"),
    [
        ("encoder.*", True),
        ("*.classify.*", False),
    ],
)
def test_running_averages_freeze_with_their_head(tmp_path: Path, pattern, moves):
    task = fit(tmp_path / "run", replace(CONFIG, freeze=(pattern,)))
    assert bool(task.get_buffer("compare_head.norm.running_mean").any()) == moves


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

"""Features of past steps as negatives of contrast."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from eve_vl.tasks.contrast.memory import CrossBatchMemory
from eve_vl.tasks.retrieval.config import RetrievalConfig
from helpers.run_comparison import assert_resumes_to_the_same
from helpers.slow_contrast import slow_contrastive
from helpers.tiny_config import tiny_config
from helpers.tiny_tasks import build, rows_of, train_set


def contrast_task(**options: Any) -> Any:
    section = RetrievalConfig(
        itm_weight=0.0,
        rerank=0,
        projection_dim=8,
        **options,
    )
    return build(tiny_config(task=section, model={"balance_weight": 0.0})).train()


def batch_of(task: Any, rows: Iterable[int], caption_of: Mapping[int, int]) -> Any:
    """Return rows of as many images. caption_of: the row whose caption a row has too."""
    rows = list(rows)
    batch = rows_of(train_set(task.config, 30), rows)
    captions = [caption_of.get(row, row) for row in rows]
    return replace(batch, image_id_B=torch.tensor(rows), caption_B=torch.tensor(captions))


def standardized_as(features: list[Tensor], steps: list[int]) -> Tensor:
    """Return the features of steps, each with mean and deviation of the first step's."""
    std_d, mean_d = torch.std_mean(features[steps[0]], dim=0, correction=0)
    parts = []
    for step in steps:
        step_std_d, step_mean_d = torch.std_mean(features[step], dim=0, correction=0)
        parts.append((features[step] - step_mean_d) / step_std_d * std_d + mean_d)
    return torch.cat(parts)


STEPS = (range(4), range(4, 8), range(8, 12), range(6, 14, 2))  # rows 6, 8 and 10 come twice
CAPTION_OF = {12: 9, 10: 5}


def is_match(row: int, candidate: int) -> bool:
    """Tell whether two rows show one image or share a caption."""
    caption = CAPTION_OF.get(row, row)
    return row == candidate or caption == CAPTION_OF.get(candidate, candidate)


@torch.no_grad()
def test_the_loss_is_that_of_a_loop_over_present_and_remembered_features():
    task = contrast_task(memory_batches=2, dedup_captions=True)
    temperature = task.contrast.features.temperature.item()
    batches = [batch_of(task, rows, CAPTION_OF) for rows in STEPS]
    images = []
    texts = []
    for batch in batches:
        unimodal = task.contrast.unimodal(task.encoder, batch)
        images.append(unimodal.image_BXd[:, 0])
        texts.append(unimodal.text_BXd[:, 0])

    for step, batch in enumerate(batches):
        steps = [step, *range(max(step - 2, 1), step)]  # step 0 ends before a fifth of all steps
        candidates = [row for past in steps for row in STEPS[past]]
        all_images = standardized_as(images, steps)
        all_texts = standardized_as(texts, steps)
        total = 0.0
        for place, row in enumerate(STEPS[step]):
            matches = torch.tensor([is_match(row, candidate) for candidate in candidates])
            counts = ~matches  # remembered matches are left out
            counts[:4] = True
            total += slow_contrastive(
                images[step][[place]],
                texts[step][[place]],
                all_images[counts],
                all_texts[counts],
                matches[None, counts],
                temperature,
            )
        assert task(batch).loss.item() == pytest.approx(total / 4, rel=1e-4)
        task(batch)  # a pass without an update, as to time it, leaves no trace
        task.after_step(0.19 + 0.01 * step)
    assert len(task.memory["keys"]) == 8


def gradients_of_second_step(num_micro_batches: int) -> dict[str, Tensor]:
    """Return the gradients of a step that remembers the one before."""
    task = contrast_task(memory_batches=1)
    for rows in (torch.arange(12), torch.arange(8, 20)):
        task.zero_grad()
        parts = rows.chunk(num_micro_batches)
        batches = [
            batch_of(
                task,
                part.tolist(),
                {19: 8, 13: 12},
            )
            for part in parts
        ]
        for batch in task.before_step(batches):
            (task(batch).loss / num_micro_batches).backward()
        task.after_step(1.0)
    assert len(task.memory["keys"]) == 12
    return {name: parameter.grad for name, parameter in task.named_parameters()}


def test_accumulation_changes_nothing():
    parts = gradients_of_second_step(2)
    for name, gradient in gradients_of_second_step(1).items():
        tolerance = 1e-5 * gradient.abs().max().item()
        torch.testing.assert_close(parts[name], gradient, rtol=1e-4, atol=tolerance, msg=name)


def test_a_memory_that_has_begun_continues_when_steps_are_added():
    memory = CrossBatchMemory(1)
    steps = (
        (0.1, {}),
        (0.3, {"keys": [[1.0], [1.0]]}),
        (0.05, {"keys": [[2.0], [2.0]]}),
    )
    for value, (progress, expected) in enumerate(steps):  # ten times as many steps at the end
        memory.present = {"keys": torch.full((2, 1), float(value))}
        memory.add_step(progress)
        assert {name: rows.tolist() for name, rows in memory.rows.items()} == expected


def test_a_killed_run_resumes_bit_for_bit(eve, pretrained, tmp_path: Path, no_report):
    """The memory lies in checkpoints and, since it is no weight, not in best/."""
    flags = {
        "init": pretrained,
        "data.train": "scenes:val",
        "data.val-samples": 4,
        "data.num-workers": 0,
        "model.dropout": 0.1,
        "task.memory-batches": 3,
        "train.steps": 4,
        "train.save-every": 2,
        "train.val-every": 4,
        "train.log-every": 1,
        "train.threads": 1,
        "train.batch-size": 8,
        "train.accumulation": 2,
        "train.keep-checkpoints": 9,
    }
    words: list[Any] = ["finetune", "demo_retrieval"]
    for name, value in flags.items():
        words += [f"--{name}", value]
    assert_resumes_to_the_same(eve, tuple(words), tmp_path, saved=2, steps=4)

    memory_file = "checkpoints/step_00000004/memory.safetensors"
    whole = load_file(tmp_path / "whole" / memory_file)
    killed = load_file(tmp_path / "killed" / memory_file)
    assert whole.keys() == {"images", "texts", "keys"}
    assert {len(rows) for rows in whole.values()} == {24}
    torch.testing.assert_close(killed, whole, rtol=0, atol=0)
    assert not (tmp_path / "whole/best/memory.safetensors").exists()
    weights = contrast_task(memory_batches=3).state_dict()
    assert weights.keys() == contrast_task().state_dict().keys()

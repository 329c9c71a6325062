"""Two gloo processes train and evaluate the fine-tuning tasks as one process does."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_tasks_pair import items
from tiny_tasks import SECTIONS, TOKENIZER, build, config_of, train_set
from torch import Tensor
from torch.nn import functional as F
from twins import pairs, tiny_config
from two_processes import (
    EVALUATED,
    IMAGES,
    NUM_ROWS,
    WORLD,
    contrast_of_features,
    drawn_negatives,
    evaluation,
    gradients_of_a_step,
    memory_step,
    mlim_step,
    running_mean_at_validation,
    systems_step,
)

from eve_vl.config import MaskedSignalConfig
from eve_vl.data.masking import MaskedPairs
from eve_vl.systems.mlim import PairConfig
from eve_vl.tasks import task_class

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> list[tuple[dict[str, Tensor], dict[str, dict[str, float]]]]:
    """Tensors and numbers of each of two processes."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "run").mkdir()
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(WORLD)]
    done = subprocess.run(
        [*command, str(HERE / "two_processes.py"), str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0 and "Warning" not in done.stderr, done.stderr
    return [
        (load_file(folder / f"{rank}.safetensors"), json.loads((folder / f"{rank}.json").read_text())) for rank in range(WORLD)
    ]


def part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def whole_batch_contrast() -> dict[str, Tensor]:
    """The formula over all rows at once, by plain autograd."""
    rng = torch.Generator().manual_seed(0)
    image, text = (torch.randn(NUM_ROWS, 6, generator=rng).requires_grad_() for _ in range(2))
    temperature = torch.tensor(0.3, requires_grad=True)
    source_image = torch.tensor(IMAGES)
    target = (source_image[:, None] == source_image).float()
    target = target / target.sum(1, keepdim=True)
    scores = F.normalize(image, dim=1) @ F.normalize(text, dim=1).T / temperature
    loss = -((target * scores.log_softmax(1)).sum() + (target * scores.log_softmax(0)).sum()) / (2 * NUM_ROWS)
    loss.backward()
    gradients = {"temperature": temperature.grad, "image": image.grad, "text": text.grad}
    return {"loss": loss.detach()} | {name: value for name, value in gradients.items() if value is not None}


def test_contrast_of_two_processes_is_that_of_the_whole_batch(found):
    expected = whole_batch_contrast()
    assert set(expected) == {"loss", "temperature", "image", "text"}
    for tensors, _ in found:
        torch.testing.assert_close(part(tensors, "features."), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(contrast_of_features(), expected, rtol=1e-5, atol=1e-6)  # one process, no group


@pytest.mark.parametrize("step", [gradients_of_a_step, systems_step, memory_step, mlim_step])
def test_a_step_of_two_processes_has_the_gradients_of_one(step, found):
    expected = step()
    for tensors, _ in found:
        gradients = part(tensors, f"{step.__name__}.")
        assert gradients.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(gradients[name], gradient, rtol=1e-3, atol=1e-5, msg=name)
    assert all(gradient.any() for gradient in expected.values())


@pytest.mark.parametrize("policy", ["modality", "shared", "moe"])
@pytest.mark.parametrize("name", ["words", "pixels", "pair", *SECTIONS])
def test_parameters_without_a_gradient_are_announced(name, policy):
    """DistributedDataParallel waits for them otherwise, and fails at the second step."""
    model = {"deep_ffn": policy, "balance_weight": 0.0}
    if name in SECTIONS:
        config = config_of(name, model=model)
        dataset = train_set(config, NUM_ROWS)
    elif name == "pair":
        config = tiny_config(task=PairConfig(modality_dropout=False), model=model)
        dataset = task_class(PairConfig).dataset([items(NUM_ROWS)], config, TOKENIZER, training=True)
    else:
        weights = {"mim_weight": float(name == "pixels"), "mlm_weight": float(name == "words")}
        settings = replace(MaskedSignalConfig(decoder_depth=1), **weights)
        config = tiny_config(task=settings, model=model)
        dataset = MaskedPairs([pairs(NUM_ROWS)], config, TOKENIZER, training=True)
    task = build(config).train()
    task(dataset.collate([dataset[0, 0, row] for row in range(NUM_ROWS)])).loss.backward()
    unused = [name for name, parameter in task.named_parameters() if parameter.grad is None]
    assert task.find_unused_parameters or not unused


def test_two_processes_draw_the_negatives_of_one(found):
    expected, own = drawn_negatives(), torch.arange(NUM_ROWS)
    for tensors, _ in found:
        drawn = part(tensors, "drawn_negatives.")
        assert drawn.keys() == expected.keys()
        assert all(torch.equal(drawn[name], rows) for name, rows in expected.items())
    is_foreign = expected["images"] // (NUM_ROWS // WORLD) != own // (NUM_ROWS // WORLD)
    assert is_foreign.any() and not is_foreign.all()
    assert (expected["images"] != own).all() and len(expected["images"].unique(dim=0)) > 1


def test_two_processes_judge_by_the_running_averages_of_all_rows(found, tmp_path):
    expected = running_mean_at_validation(tmp_path)
    assert expected.abs().max() > 0.01
    for tensors, _ in found:
        torch.testing.assert_close(tensors["running_mean"], expected, rtol=1e-3, atol=1e-6)


def test_evaluation_of_two_processes_counts_everything_once(found):
    expected = evaluation()
    assert set(expected) == {*EVALUATED, "masked_signal", "pair", "one image"}
    for _, numbers in found:
        for name, values in expected.items():
            assert numbers[name] == pytest.approx(values, rel=1e-6, abs=1e-9), name
    for name, number in (("vqa", "vqa_acc"), ("nlvr2", "nlvr2_acc"), ("retrieval", "r_mean"), ("masked_signal", "mim_mse")):
        assert expected[name][f"{number} low"] < expected[name][number] < expected[name][f"{number} high"]
    assert expected["vqa"]["num_questions"] == expected["nlvr2"]["num_pairs"] == 23

"""Two gloo processes under torchrun train, evaluate and resume as one process does, and are equal
at all times."""

import json
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from helpers.number_task import step_folder
from helpers.run_comparison import assert_close_logs, rows_without_timing, tensor_differences
from helpers.two_process_runs import FLAGS, SAVED, STEPS, torchrun
from helpers.two_processes import (
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

RANKS = range(WORLD)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What two_process_runs.py wrote before one of its processes was killed, and after both had
    been started again."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "run").mkdir()
    stderr = torchrun(folder)
    # the launcher names the process that it sees end first: the killed one, or the other, whose
    # connection has been closed or reset
    assert f"exitcode: -{signal.SIGKILL.value}" in stderr or "by peer" in stderr, stderr
    return folder


@dataclass
class ProcessResults:
    """What a process computed."""

    tensors: dict[str, Tensor]
    numbers: dict[str, dict[str, float]]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Return the tensors whose names begin with a prefix, without it."""
        tensors = {}
        for name, value in self.tensors.items():
            if name.startswith(prefix):
                tensors[name.removeprefix(prefix)] = value
        return tensors


@pytest.fixture(scope="module")
def results(folder: Path) -> list[ProcessResults]:
    all_results = []
    for rank in RANKS:
        tensors = load_file(folder / f"{rank}.safetensors")
        numbers = json.loads((folder / f"{rank}.json").read_text())
        all_results.append(ProcessResults(tensors, numbers))
    return all_results


def test_two_processes_give_the_single_process_curve(eve, folder: Path, tmp_path: Path):
    """On the command line, at the same global batch."""
    assert eve("pretrain", "tiny", "--out", "single", *FLAGS).returncode == 0
    assert_close_logs(folder / "two", tmp_path / "single", rtol=2e-4, atol=2e-5)


def test_killed_run_of_two_processes_resumes_bit_for_bit(folder: Path):
    killed = folder / "killed"
    whole = folder / "whole"
    folders = sorted((killed / "checkpoints").iterdir())
    assert folders == [step_folder(killed, SAVED), step_folder(killed, STEPS)]
    for step in (SAVED, STEPS):
        folder = step_folder(killed, step)
        assert len(list(folder.glob("*.safetensors"))) == 1 + 3 * WORLD
        assert list(tensor_differences(folder, step_folder(whole, step))) == []
    assert rows_without_timing(killed) == rows_without_timing(whole)


def test_processes_and_their_checkpoint_have_the_same_weights(folder: Path):
    saved = load_file(step_folder(folder / "whole", STEPS) / "model.safetensors")
    for rank in RANKS:
        weights = load_file(folder / f"whole/rank_{rank}.safetensors")
        assert weights["compare_head.norm.running_mean"].abs().max() > 0.01
        for name, value in weights.items():
            assert torch.equal(value, saved[name]), name


def test_many_small_updates_of_running_averages_give_the_true_mean(folder: Path):
    expected = {
        "mean": torch.tensor([5.0]),
        "var": torch.tensor([2.0]),
    }
    for rank in RANKS:
        averages = load_file(folder / f"updates_{rank}.safetensors")
        torch.testing.assert_close(averages, expected, rtol=1e-5, atol=0)


def test_rows_of_other_processes_arrive_whole_or_as_wanted(folder: Path):
    first = torch.arange(4.0).view(2, 2)
    for rank in RANKS:
        tensors = load_file(folder / f"rows_{rank}.safetensors")
        assert torch.equal(tensors["rows"], torch.cat([first, first + 10]))
        assert torch.equal(tensors["fetched"], tensors["rows"][tensors["wanted"]])
        # processes weigh them by 1 and 2
        gradient = [[3 * (1 + 2 * rank)] * 2, [3 * (2 + 2 * rank)] * 2]
        assert tensors["gradient"].tolist() == gradient


def test_step_may_leave_parameters_without_a_gradient(folder: Path):
    first, second = (load_file(folder / f"texts_{rank}.safetensors") for rank in RANKS)
    assert any(first[name].any() for name in first if "text" in name)
    for name, gradient in first.items():
        assert torch.equal(gradient, second[name]), name


def test_bad_row_of_one_process_is_one_line_in_all(folder: Path):
    first, second = ((folder / f"bad_{rank}.txt").read_text() for rank in RANKS)
    assert first == second
    assert first.startswith("a row to evaluate on cannot be used, list:5: ")
    assert "\n" not in first


def test_error_of_one_process_is_one_line_in_all_and_keeps_the_weights(folder: Path):
    """The first process has reached the sums over all, whatever ends the second one's data."""
    first, second = ((folder / f"partner_{rank}.txt").read_text() for rank in RANKS)
    assert first == second
    problem = "none of the 18 validation pairs is usable and has another caption"
    assert first.startswith(f"list:17: {problem}")
    assert (step_folder(folder / "partner", 1) / "state.json").is_file()


def whole_batch_contrast() -> dict[str, Tensor]:
    """Return loss and gradients of the formula over all rows at once, by plain autograd."""
    rng = torch.Generator().manual_seed(0)
    image_BD, text_BD = (torch.randn(NUM_ROWS, 6, generator=rng).requires_grad_() for _ in range(2))
    temperature = torch.tensor(0.3, requires_grad=True)
    image_B = torch.tensor(IMAGES)
    target_BB = (image_B[:, None] == image_B).float()
    target_BB = target_BB / target_BB.sum(1, keepdim=True)
    scores_BB = F.normalize(image_BD, dim=1) @ F.normalize(text_BD, dim=1).T / temperature
    text_loss = -(target_BB * scores_BB.log_softmax(1)).sum() / NUM_ROWS
    image_loss = -(target_BB * scores_BB.log_softmax(0)).sum() / NUM_ROWS
    loss = (text_loss + image_loss) / 2
    gradients = torch.autograd.grad(loss, (temperature, image_BD, text_BD))
    names = ("temperature", "image", "text")
    return {
        "loss": loss.detach(),
        **dict(zip(names, gradients, strict=True)),
    }


def test_contrast_of_two_processes_is_that_of_the_whole_batch(results):
    expected = whole_batch_contrast()
    for process in results:
        contrast = process.part("features.")
        torch.testing.assert_close(contrast, expected, rtol=1e-5, atol=1e-6)
    without_group = contrast_of_features()
    torch.testing.assert_close(without_group, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("step", [gradients_of_a_step, systems_step, memory_step, mlim_step])
def test_step_of_two_processes_has_the_gradients_of_one(step, results):
    expected = step()
    assert all(gradient.any() for gradient in expected.values())
    for process in results:
        gradients = process.part(f"{step.__name__}.")
        assert gradients.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(gradients[name], gradient, rtol=1e-3, atol=1e-5, msg=name)


def test_two_processes_draw_the_negatives_of_one(results):
    expected = drawn_negatives()
    for process in results:
        drawn = process.part("drawn_negatives.")
        assert drawn.keys() == expected.keys()
        assert all(torch.equal(drawn[name], rows) for name, rows in expected.items())
    row_B = torch.arange(NUM_ROWS)
    rows_per_process = NUM_ROWS // WORLD
    negative_EB = expected["images"]
    assert (negative_EB != row_B).all()
    assert len(negative_EB.unique(dim=0)) > 1
    is_of_other_process_EB = negative_EB // rows_per_process != row_B // rows_per_process
    assert is_of_other_process_EB.any()
    assert not is_of_other_process_EB.all()


def test_two_processes_evaluate_with_the_running_averages_of_all_rows(results, tmp_path):
    expected = running_mean_at_validation(tmp_path)
    assert expected.abs().max() > 0.01
    for process in results:
        mean = process.tensors["running_mean"]
        torch.testing.assert_close(mean, expected, rtol=1e-3, atol=1e-6)


def test_evaluation_of_two_processes_counts_everything_once(results):
    expected = evaluation()
    assert expected.keys() == {*EVALUATED, "masked_signal", "pair", "one image"}
    for process in results:
        for name, values in expected.items():
            assert process.numbers[name] == pytest.approx(values, rel=1e-6, abs=1e-9), name
    main_metrics = {
        "vqa": "vqa_acc",
        "nlvr2": "nlvr2_acc",
        "retrieval": "r_mean",
        "masked_signal": "mim_mse",
    }
    for name, metric in main_metrics.items():
        numbers = expected[name]
        assert numbers[f"{metric} low"] < numbers[metric] < numbers[f"{metric} high"]
    assert expected["vqa"]["num_questions"] == expected["nlvr2"]["num_pairs"] == 23

"""Two processes with a batch-normalised head: equal at all times, also after a kill and resume."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch.nn.parallel import DistributedDataParallel
from two_process_runs import SAVED, STEPS

from eve_vl.train.log import TIMING
from eve_vl.train.processes import without_sharing
from eve_vl.utils.console import is_main

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += [str(HERE / "two_process_runs.py"), str(folder)]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    first, second = (subprocess.run(command, capture_output=True, text=True, timeout=300, env=env) for _ in range(2))
    assert f"exitcode  : -{signal.SIGKILL.value}" in first.stderr, first.stderr
    assert second.returncode == 0, second.stderr
    return folder


def rows(run: Path) -> list[dict]:
    found = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{name: row[name] for name in row if name not in TIMING} for row in found]


def test_a_killed_run_goes_on_bit_for_bit(folder: Path):
    assert sorted(path.name for path in (folder / "killed/checkpoints").iterdir()) == ["step_00000010", "step_00000020"]
    for step in (SAVED, STEPS):
        for name in ("model", "live", "optimizer", "rng_0", "rng_1"):
            one, two = (
                load_file(folder / run / f"checkpoints/step_{step:08d}/{name}.safetensors") for run in ("whole", "killed")
            )
            assert one.keys() == two.keys()
            for key, value in one.items():
                assert torch.equal(value, two[key]) or key in ("python_gauss", "meter./counts"), (step, name, key)
    assert rows(folder / "whole") == rows(folder / "killed")


def test_all_processes_are_equal_and_as_their_checkpoint(folder: Path):
    one, two = (load_file(folder / f"whole/rank_{rank}.safetensors") for rank in range(2))
    saved = load_file(folder / f"whole/checkpoints/step_{STEPS:08d}/model.safetensors")
    assert one["compare_head.norm.running_mean"].abs().max() > 0.01
    for name, value in one.items():
        assert torch.equal(value, two[name]) and torch.equal(value, saved[name]), name


def test_many_small_updates_give_the_true_average(folder: Path):
    for rank in range(2):
        found = load_file(folder / f"updates_{rank}.safetensors")
        torch.testing.assert_close(found, {"mean": torch.tensor([5.0]), "var": torch.tensor([2.0])}, rtol=1e-5, atol=0)


def test_a_step_may_leave_parameters_without_a_gradient(folder: Path):
    one, two = (load_file(folder / f"texts_{rank}.safetensors") for rank in range(2))
    assert any(one[name].any() for name in one if "text" in name)
    for name, gradient in one.items():
        assert torch.equal(gradient, two[name]), name


def test_a_bad_row_of_one_process_is_one_line_in_all(folder: Path):
    one, two = ((folder / f"bad_{rank}.txt").read_text() for rank in range(2))
    assert one == two
    assert one.startswith("a row to evaluate on cannot be used, list:5: ")
    assert "\n" not in one


def test_an_error_of_one_process_is_one_line_in_all_and_keeps_the_weights(folder: Path):
    """The first process has reached the sums over all, whatever ends the second one's data."""
    one, two = ((folder / f"partner_{rank}.txt").read_text() for rank in range(2))
    assert one == two
    assert one.startswith("list:17: none of the 18 validation pairs is usable and has another caption")
    assert (folder / "partner/checkpoints/step_00000001/state.json").is_file()


@pytest.fixture
def group() -> Iterator[None]:
    """A group of one process."""
    store = dist.HashStore()  # pyright: ignore[reportPrivateImportUsage]
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("may_be_unused", [True, False])
def test_gradients_wait_for_the_last_micro_batch_unless_parameters_may_be_unused(group, may_be_unused):
    """DDP averages none of a parameter that the last pass leaves out: after earlier passes, processes would drift apart."""
    model = DistributedDataParallel(torch.nn.Linear(2, 1), find_unused_parameters=may_be_unused)
    with without_sharing(model):
        assert model.require_backward_grad_sync == may_be_unused


def test_the_first_process_of_a_group_is_the_main_one(group, monkeypatch):
    monkeypatch.setenv("RANK", "3")
    assert is_main()

"""Loading of what a run needs to resume, by any number of processes."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eve_vl.train import processes
from eve_vl.train.checkpoint_files import damaged_error, load_model, verify
from eve_vl.train.optimizer import optimizer_tensors, set_optimizer_tensors
from eve_vl.train.random_state import set_rng_state
from eve_vl.train.tensor_files import read_tensors
from eve_vl.train.tensor_shares import read_shares
from eve_vl.utils import file_io

LIVE = "live"  # file of the weights to continue from, if model.safetensors has averages
MEMORY = "memory"  # file of the features of the last steps
OPTIMIZER = "optimizer"
METER_PREFIX = "meter."  # in rng_*.safetensors, of sums of the open log window


def load_training_state(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, rank: int
) -> dict[str, Any]:
    """Load weights, optimiser and this process's random generators; return state.json.

    Its `meter` holds this process's sums of the open log window. The main process verifies the
    files for all. Raises UserError for a damaged or unfitting folder.
    """
    state = processes.from_main(lambda: verify(folder))
    if not file_io.has_fields(state, num_processes=int) or state["num_processes"] < 1:
        raise damaged_error(folder, f"state.json says num_processes {state.get('num_processes')}")
    tensors = optimizer_tensors(model, optimizer)
    process_tensors: dict[str, Tensor] = {}
    try:
        load_model(folder, model)
        read_shares(tensors, folder, OPTIMIZER)
        if rank < state["num_processes"]:  # additional processes seed their own generators
            process_tensors = read_tensors(folder / f"rng_{rank}.safetensors")
        if process_tensors:
            set_rng_state(process_tensors)
    except (ValueError, OverflowError) as error:
        raise damaged_error(folder, error) from None
    set_optimizer_tensors(model, optimizer, tensors)
    state["meter"] = _without_prefix(process_tensors)
    return state


def _without_prefix(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the sums of the log window among a process's tensors."""
    sums = {}
    for name, value in tensors.items():
        if name.startswith(METER_PREFIX):
            sums[name.removeprefix(METER_PREFIX)] = value
    return sums

"""Shared function of the examples that write runs for `eve_vl/builtin`."""

import json
from collections.abc import Callable
from pathlib import Path

import torch

from eve_vl.builtin.names import folder_of
from eve_vl.config import Config, config_to_json
from eve_vl.metrics.intervals import from_json
from eve_vl.run.loading import read_config
from eve_vl.tasks.task import task_class
from eve_vl.train import best_folder, checkpoint_files, checkpoint_folders, tensor_files
from eve_vl.utils.console import print_line
from eve_vl.utils.file_io import read_json, read_text, write_file


def ship_run(run: Path, out: Path, changed: Callable[[Config], Config]) -> None:
    """Write the best weights of a run in float16, its numbers and a changed config.

    The same run writes the same bytes. Raises UserError.
    """
    folder = checkpoint_folders.chosen_checkpoint(folder_of(run))
    state = checkpoint_files.verify(folder)
    config = changed(read_config(folder))
    weights = checkpoint_files.read_model(folder)
    for name, tensor in weights.items():
        if tensor.dtype == torch.float32:
            weights[name] = tensor.half()
    tensor_files.check_tensors(weights, f"{run} in float16")  # float16 must not overflow
    texts = {
        "config.json": config_to_json(config),
        "tokenizer.json": read_text(folder / "tokenizer.json"),
    }
    labels_file = task_class(type(config.task)).labels_file
    if labels_file:
        texts[labels_file] = read_text(folder / labels_file)
    if "numbers" in state:
        numbers = state["numbers"]
    else:  # pre-training has no best checkpoint
        numbers = read_json(run / "metrics.json", dict)
    best = best_folder.save_best(
        out, step=state["step"], model=weights, texts=texts, numbers=from_json(numbers)
    )
    write_file(out / "config.json", texts["config.json"])
    write_file(out / "metrics.json", json.dumps(numbers, indent=1) + "\n")
    num_bytes = sum(path.stat().st_size for path in best.iterdir())
    print_line(f"{out}: step {state['step']:,}, {num_bytes:,} bytes")

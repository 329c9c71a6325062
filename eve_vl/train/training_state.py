"""The training state: what a run needs to resume, saved by all processes.

Threads write it while training continues, and any number of processes reads it. The main process writes whole weights, because
all readers expect them. Each process writes its share of the optimiser state, and of the live weights of a run with averages:
its shards, or an equal part of each whole tensor. These files have the safetensors format of torch.distributed.checkpoint.
torch's own writer copies the whole state in every process and needs collectives outside the main thread.
"""

import contextlib
import json
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from torch import Tensor, nn

from eve_vl.train import checkpoint, processes
from eve_vl.train.checkpoint import CHECKPOINTS, METER
from eve_vl.train.optim import initial_state
from eve_vl.utils import file_io
from eve_vl.utils.console import is_main
from eve_vl.utils.errors import UserError

PLACES = "DCP_SHARDING_INFO"  # in the header of a file: a JSON object by name, with
PLACE = "saved_offsets"  # the first index of a part on each axis of the whole


def own_part(tensor: Any, *, to_write: bool = False) -> tuple[Tensor, list[int]]:
    """Return this process's part of a tensor, and its first index on each axis.

    to_write: only this process's share of it, where several processes hold the same part.
    """
    part, place, copy, copies = tensor, [0] * tensor.ndim, processes.rank(), processes.world_size()
    if hasattr(tensor, "to_local"):
        part, place = tensor.to_local(), [*tensor.__create_chunk_list__()[0].offsets]
        mesh, copy, copies = tensor.device_mesh, 0, 1
        for index, size, placement in zip(
            mesh.get_coordinate(), mesh.shape, tensor.placements, strict=True
        ):
            if placement.is_replicate():
                copy, copies = copy * size + index, copies * size
    if to_write and not part.ndim:
        return (part if copy == 0 else part.new_empty(0)), place
    if to_write:
        start, end = (len(part) * number // copies for number in (copy, copy + 1))
        return part[start:end], [place[0] + start, *place[1:]]
    return part, place


def read_parts(tensors: Mapping[str, Tensor], folder: Path, name: str) -> None:
    """Fill whole or sharded tensors from a file of whole ones or files of shares.

    Raises UserError, also if the files do not hold all of a tensor.
    """
    parts = {key: own_part(tensor) for key, tensor in tensors.items()}
    lacking = {key: part.numel() for key, (part, _) in parts.items()}
    for path in sorted(folder.glob(f"{name}_*.safetensors")) or [folder / f"{name}.safetensors"]:
        saved, places = checkpoint.read_tensors(path), read_places(path)
        for key in saved.keys() & parts.keys():
            (part, first), share = parts[key], saved[key]
            place: list[int] = places.get(key) or [0] * share.ndim
            if len(first) == len(place) == share.ndim:
                sides = [*zip(first, part.shape, place, share.shape, strict=True)]
                both = [
                    range(max(i, j), min(i + m, j + n)) for i, m, j, n in sides
                ]  # indices of the whole
                if all(both):
                    inside = share[
                        tuple(
                            slice(each.start - j, each.stop - j)
                            for each, j in zip(both, place, strict=True)
                        )
                    ]
                    part[
                        tuple(
                            slice(each.start - i, each.stop - i)
                            for each, i in zip(both, first, strict=True)
                        )
                    ] = inside
                    lacking[key] -= inside.numel()
    if missing := [key for key, num in lacking.items() if num]:
        raise UserError(f"{name}.safetensors: does not hold all of {missing[0]}")


def read_places(path: Path) -> dict[str, list[int]]:
    """Return the first index of each share in a file.

    Empty for a file of whole tensors. Raises UserError.
    """
    text = checkpoint.read_metadata(path).get(PLACES, "{}")
    with file_io.reading(path, KeyError, TypeError):
        places = file_io.require_type(file_io.parse_json(text), dict)
        return {name: [*map(int, each[PLACE])] for name, each in places.items()}


def load_training_state(
    folder: Path, model: nn.Module, optimizer: torch.optim.Optimizer, rank: int
) -> dict[str, Any]:
    """Load weights, optimiser and this process's random generators; return state.json.

    Its `meter` holds this process's sums of the open log window. The main process verifies the files for all. Raises UserError
    for a damaged or unfitting folder.
    """
    state = processes.from_main(lambda: checkpoint.verify(folder))
    if not file_io.has_fields(state, num_processes=int) or state["num_processes"] < 1:
        raise checkpoint.damaged(
            folder, f"state.json says num_processes {state.get('num_processes')}"
        )
    try:
        checkpoint.load_model(folder, model)
        read_parts(tensors := optimizer_tensors(model, optimizer), folder, "optimizer")
        rng = (
            checkpoint.read_tensors(folder / f"rng_{rank}.safetensors")
            if rank < state["num_processes"]
            else {}
        )
        if rng:  # additional processes of a resumed run seed their own generators
            checkpoint.set_rng_state(rng)
    except (ValueError, OverflowError) as error:
        raise checkpoint.damaged(folder, error) from None
    for name, value in tensors.items():
        optimizer.state[model.get_parameter(name.rpartition(".")[0])][name.rpartition(".")[2]] = (
            value
        )
    state["meter"] = {
        name.removeprefix(METER): value for name, value in rng.items() if name.startswith(METER)
    }
    return state


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's state by parameter name.

    Parameters without a gradient so far have their initial state.
    """
    parts = {
        parameter: group["parts"]
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    return {
        f"{name}.{key}": value
        for name, parameter in model.named_parameters()
        if parameter in parts
        for key, value in (
            optimizer.state.get(parameter) or initial_state(parameter, parts[parameter])
        ).items()
    }


class CheckpointWriter:
    """The writer of a run's checkpoints, one at a time.

    in_background: training continues once tensors are copied, and a thread writes them. Every process must call each method.
    """

    def __init__(self, run: Path, *, keep: int, in_background: bool):
        """keep: number of checkpoints that stay."""
        self.run, self.keep, self.in_background = run, keep, in_background
        self.sums: Future[tuple[dict[str, str], str]] | None = (
            None  # of the files of this process, or its problem
        )
        self.opened = contextlib.ExitStack()  # the temporary folder, on the main process

    def copied(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors that training does not change while they are written."""
        return {
            name: tensor.detach().to("cpu", copy=self.in_background)
            for name, tensor in tensors.items()
        }

    def start(
        self,
        own: Mapping[str, Mapping[str, Tensor]],
        shared: Mapping[str, Mapping[str, Tensor]],
        texts: Mapping[str, str],
        state: Mapping[str, Any],
    ) -> None:
        """Copy tensors and begin to write a checkpoint, after `finish`.

        own: of files of this process, by name; nothing else may change them. shared: of files that processes share, by name.
        texts: further files of the main process. state: JSON values with the `step`. Raises UserError as `finish` does.
        """
        folder = self.run / CHECKPOINTS / f"step_{state['step']:08d}"
        temporary = processes.from_main(lambda: self._open(folder))
        files, metadata, suffix = (
            {**own},
            {},
            f"_{processes.rank()}" if processes.world_size() > 1 else "",
        )
        for name, tensors in shared.items():
            shares = {key: own_part(tensor, to_write=True) for key, tensor in tensors.items()}
            shares = {key: share for key, share in shares.items() if share[0].numel()}
            files[f"{name}{suffix}"] = self.copied({key: part for key, (part, _) in shares.items()})
            places = {key: {PLACE: place} for key, (_, place) in shares.items()}
            metadata[f"{name}{suffix}"] = {PLACES: json.dumps(places)}
        self.folder, self.temporary, self.state = folder, temporary, state
        self.sums = Future()
        Thread(
            target=self._write,
            args=(self.sums, files, texts if is_main() else {}, metadata),
            daemon=True,
        ).start()
        if not self.in_background:
            self.finish()

    def _open(self, folder: Path) -> Path:
        with self._reporting(folder):
            return self.opened.enter_context(file_io.atomic_folder(folder))

    def _write(self, sums: Future[tuple[dict[str, str], str]], *files: Any) -> None:
        try:
            with self._reporting(self.folder):
                sums.set_result((checkpoint.write_files(self.temporary, *files), ""))
        except UserError as error:
            sums.set_result(({}, str(error)))
        except BaseException as error:
            sums.set_exception(error)

    @staticmethod
    def _reporting(folder: Path) -> contextlib.AbstractContextManager[None]:
        return file_io.reporting_write_errors(
            folder, *checkpoint.WRITE_ERRORS, advice=checkpoint.ADVICE
        )

    def poll(self) -> None:
        """Put the checkpoint in place if all processes have written their files."""
        if self.sums is not None and not processes.any_process(not self.sums.done()):
            self.finish()

    def finish(self) -> None:
        """Wait for all files, then put the checkpoint in place and delete old ones.

        Raises UserError in all processes if one cannot write; older checkpoints then stay.
        """
        if self.sums is not None:
            sums, self.sums = self.sums, None
            found = processes.gather_objects(sums.result())
            processes.from_main(lambda: self._put_in_place(found))

    def _put_in_place(self, found: list[tuple[dict[str, str], str]]) -> None:
        with self._reporting(self.folder), self.opened:
            for _, problem in found:
                if problem:
                    raise UserError(problem)
            checkpoint.write_state(
                self.temporary,
                self.state,
                {name: each for sums, _ in found for name, each in sums.items()},
            )
        checkpoint.delete_folders(*checkpoint.checkpoint_folders(self.run)[: -self.keep])
        file_io.delete_temporary(self.folder.parent)

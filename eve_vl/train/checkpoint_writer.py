"""Writing of checkpoints by all processes, in threads while training continues.

The main process writes whole weights, because all readers expect them. Each process writes its
share of the optimiser state, and of the live weights of a run with averages. torch's own writer
copies the whole state in every process and needs collectives outside the main thread.
"""

import contextlib
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from typing import Any

from torch import Tensor

from eve_vl.train import processes
from eve_vl.train.checkpoint_files import ADVICE, WRITE_ERRORS, write_files, write_state
from eve_vl.train.checkpoint_folders import CHECKPOINTS, checkpoint_folders, delete_folders
from eve_vl.train.tensor_shares import share_to_write, shares_metadata
from eve_vl.utils import file_io
from eve_vl.utils.console import is_main
from eve_vl.utils.errors import UserError


@dataclass
class WrittenFiles:
    """The files that a process has written, or why it could not."""

    checksums: dict[str, str] = field(default_factory=dict)
    problem: str = ""


class CheckpointWriter:
    """The writer of a run's checkpoints, one at a time.

    in_background: training continues once tensors are copied, and a thread writes them. Every
    process must call each method.
    """

    def __init__(self, run: Path, *, keep: int, in_background: bool):
        """keep: number of checkpoints that stay."""
        self.run = run
        self.keep = keep
        self.in_background = in_background
        self.writing: Future[WrittenFiles] | None = None  # of the files of this process
        self.opened = contextlib.ExitStack()  # the temporary folder, on the main process

    def copied(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors that training does not change while they are written."""
        copies = {}
        for name, tensor in tensors.items():
            copies[name] = tensor.detach().to("cpu", copy=self.in_background)
        return copies

    def start(
        self,
        unshared: Mapping[str, Mapping[str, Tensor]],
        shared: Mapping[str, Mapping[str, Tensor]],
        texts: Mapping[str, str],
        state: Mapping[str, Any],
    ) -> None:
        """Copy tensors and begin to write a checkpoint, after `finish`.

        unshared: of files of this process, by name; nothing else may change them. shared: of files
        that processes share, by name. texts: further files of the main process. state: JSON values
        with the `step`. Raises UserError as `finish` does.
        """
        self.state = state
        self.folder = self.run / CHECKPOINTS / f"step_{state['step']:08d}"
        self.temporary = processes.from_main(self._open)
        suffix = f"_{processes.rank()}" if processes.world_size() > 1 else ""
        files = {**unshared}
        metadata = {}
        for name, tensors in shared.items():
            shares = {key: share_to_write(tensor) for key, tensor in tensors.items()}
            shares = {key: share for key, share in shares.items() if share.values.numel()}
            values = {key: share.values for key, share in shares.items()}
            files[f"{name}{suffix}"] = self.copied(values)
            metadata[f"{name}{suffix}"] = shares_metadata(shares)
        self.writing = Future()
        arguments = (self.writing, files, texts if is_main() else {}, metadata)
        Thread(target=self._write, args=arguments, daemon=True).start()
        if not self.in_background:
            self.finish()

    def _open(self) -> Path:
        with self._reporting():
            return self.opened.enter_context(file_io.atomic_folder(self.folder))

    def _write(self, writing: Future[WrittenFiles], *files: Any) -> None:
        try:
            with self._reporting():
                writing.set_result(WrittenFiles(write_files(self.temporary, *files)))
        except UserError as error:
            writing.set_result(WrittenFiles(problem=str(error)))
        except BaseException as error:
            writing.set_exception(error)

    def _reporting(self) -> contextlib.AbstractContextManager[None]:
        return file_io.reporting_write_errors(self.folder, *WRITE_ERRORS, advice=ADVICE)

    @property
    def is_writing(self) -> bool:
        """Whether this process is still writing files."""
        return self.writing is not None and not self.writing.done()

    def finish(self) -> None:
        """Wait for all files, then put the checkpoint in place and delete old ones.

        Raises UserError in all processes if one cannot write; older checkpoints then stay.
        """
        if self.writing is None:
            return
        writing = self.writing
        self.writing = None
        written = processes.gather_objects(writing.result())
        processes.from_main(lambda: self._put_in_place(written))

    def _put_in_place(self, written: Sequence[WrittenFiles]) -> None:
        checksums = {}
        with self._reporting(), self.opened:
            for files in written:
                if files.problem:
                    raise UserError(files.problem)
                checksums.update(files.checksums)
            write_state(self.temporary, self.state, checksums)
        delete_folders(*checkpoint_folders(self.run)[: -self.keep])
        file_io.delete_temporary(self.folder.parent)

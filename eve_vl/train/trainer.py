"""The only training loop: all it knows of a task is `StepOutput` and `Evaluator`."""

import contextlib
import itertools
import math
import operator
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eve_vl.config import TrainConfig
from eve_vl.train import (
    Evaluator,
    StepOutput,
    StoppedError,
    checkpoint,
    evaluation_batches,
    num_skipped,
    processes,
    unusable,
)
from eve_vl.train.best import BestWeights, Validated, on_training_rows
from eve_vl.train.log import STOPPED_EARLY, BadSamples, Meter, RunLog
from eve_vl.train.optim import (
    Averages,
    build_optimizer,
    freeze,
    learning_rate,
    running_averages,
)
from eve_vl.train.processes import (
    autocast,
    parallelize,
    pick_dtype,
    share_running_averages,
    without_sharing,
    wrap_blocks,
)
from eve_vl.train.shard import clip_gradients, gathered, unsharded
from eve_vl.train.training_state import (
    CheckpointWriter,
    load_training_state,
    optimizer_tensors,
    read_parts,
)
from eve_vl.utils.console import is_main, progress
from eve_vl.utils.errors import SharedError, UserError
from eve_vl.utils.file_io import delete_temporary, write_file
from eve_vl.utils.runtime import stop_signals

HANDING_OVER = (EOFError, ConnectionError, FileNotFoundError)
"""Errors if a loading process ends while it hands over a batch, by a socket."""


class Trainer:
    """Optimise one task and write its run folder."""

    def __init__(
        self,
        config: TrainConfig,
        run: Path,
        task: nn.Module,
        evaluator: Evaluator | None = None,
        *,
        device: torch.device,
        texts: dict[str, str],
        new: Collection[str] = (),
        notes: Sequence[str] = (),
        skip_invalid: bool = False,
    ):
        """Set up optimiser, precision and process group.

        evaluator: for validation; None: only `train_step` is used. texts: files of every checkpoint. new: parameters that train
        with head_lr_multiplier. notes: lines for the log. skip_invalid: leave unusable rows out of validation.
        """
        self.skip_invalid = skip_invalid
        self.config, self.run, self.device, self.texts, self.notes, self.new = (
            config,
            run,
            device,
            texts,
            notes,
            sorted(new),
        )
        self.task: Any = task.to(device)
        self.dtype = pick_dtype(config.dtype, device)
        self.frozen_averages = freeze(self.task, config.freeze)
        wrap_blocks(self.task, config)
        self.model = parallelize(self.task, device, config.layout)
        self.optimizer = build_optimizer(
            self.task.named_parameters(), config, new, products=self.dtype
        )
        self.averages = Averages(self.task, config.ema_decay)
        self.evaluator = evaluator
        self.main_metric = evaluator.main_metric if evaluator else None
        self.watched = self.main_metric or (evaluator.main_loss if evaluator else None)
        if config.patience and self.watched is None:
            raise UserError(
                "train.patience: validation of this task has no number to watch; leave it out"
            )
        self.scores: list[float] = []
        self.window: dict[str, Tensor] = {}  # sums of the open log window of a resumed run
        self.step = 0
        in_background = (
            device.type != "cpu" or processes.world_size() > 1
        )  # else it would take cores and memory from training
        self.writer = CheckpointWriter(
            run, keep=config.keep_checkpoints, in_background=in_background
        )
        self.choice = BestWeights(run, self.main_metric)
        self.mark: Callable[[str], None] = lambda _: (
            None
        )  # profiling hook after each part of a step
        self.training_rows: Callable[[], Iterable[Any]] | None = (
            None  # a loader of some, as validation reads them
        )
        self.best_texts: Callable[[dict[str, float]], dict[str, str]] = (
            lambda _: {}
        )  # files that differ in best/

    @property
    def samples_consumed(self) -> int:
        """Samples that all processes have trained on."""
        return self.step * self.config.batch_size

    def resume(self) -> bool:
        """Load the newest checkpoint of the run folder; return whether there is one."""
        folders = checkpoint.known_checkpoints(self.run)
        if is_main():
            delete_temporary(self.run, checkpoint.BEST)
            delete_temporary(self.run / checkpoint.CHECKPOINTS)
        if folders:
            state = load_training_state(folders[-1], self.task, self.optimizer, processes.rank())
            if self.averages.values:
                live = {
                    name: torch.empty_like(value) for name, value in self.averages.live().items()
                }
                read_parts(live, folders[-1], checkpoint.LIVE)
                self.averages.restore(live)
            if (remembered := folders[-1] / f"{checkpoint.MEMORY}.safetensors").is_file():
                tensors = checkpoint.read_tensors(remembered)
                self.task.memory.update(
                    {name: value.to(self.device) for name, value in tensors.items()}
                )
            self.step = state["step"]
            if state["num_processes"] == processes.world_size():
                self.window = {
                    name: value.to(self.device) for name, value in state["meter"].items()
                }
            self.choice.restore(self.step)
        return bool(folders)

    def save(self) -> None:
        """Begin to write a checkpoint; every process must call this."""
        self.writer.finish()  # before copies are made
        with self.averages.in_place():
            model = gathered(self.task.state_dict())
            own = {"model": self.writer.copied(model)} if is_main() else {}
        meter = {f"{checkpoint.METER}{name}": value for name, value in self.meter.state().items()}
        own[f"rng_{processes.rank()}"] = checkpoint.get_rng_state() | meter
        if is_main() and (remembered := getattr(self.task, "memory", None)):
            own[checkpoint.MEMORY] = self.writer.copied(remembered)
        shared = {
            "optimizer": optimizer_tensors(self.task, self.optimizer),
            checkpoint.LIVE: self.averages.live(),
        }
        state: dict[str, Any] = {"step": self.step, "new": self.new}
        state |= {"num_processes": processes.world_size(), "threads": torch.get_num_threads()}
        self.writer.start(
            own, {name: tensors for name, tensors in shared.items() if tensors}, self.texts, state
        )

    def fit(
        self, train_loader: Iterable[Any], val_loader: Iterable[Any], bad_samples: BadSamples
    ) -> dict[str, float]:
        """Train to the last step; return the numbers of best/, else of the last step.

        train_loader: endless micro-batches after `samples_consumed` samples.
        Raises StoppedError after SIGINT, SIGTERM or SIGHUP, UserError for a non-finite loss or a full disk.
        """
        log = RunLog(self.run, first_step=self.step, num_steps=self.config.steps, enabled=is_main())
        with contextlib.closing(log), stop_signals() as stop:
            try:
                numbers = self._loop(iter(train_loader), val_loader, bad_samples, log, stop)
            except Exception as error:
                is_of_loader = isinstance(error, HANDING_OVER) or "DataLoader worker" in str(error)
                if (
                    stop and processes.world_size() == 1 and is_of_loader
                ):  # its process got the signal, too
                    self.save()
                    self.writer.finish()
                    raise self._stopped(stop) from None
                if self._is_shared(error):
                    self.writer.finish()
                raise
            self.writer.finish()
            return numbers

    @staticmethod
    def _is_shared(error: Exception) -> bool:
        """Return whether all processes raise an error; they can still save then."""
        return processes.world_size() == 1 or isinstance(error, SharedError)

    def _loop(
        self,
        batches: Iterator[Any],
        val_loader: Iterable[Any],
        bad_samples: BadSamples,
        log: RunLog,
        stop: Collection[int],
    ) -> dict[str, float]:
        config = self.config
        self.meter = Meter(self.window)
        past = [row for row in processes.gather_objects(log.old)[0] if row["kind"] == "val"]
        self.scores = [row[self.watched] for row in past if self.watched in row]
        is_stalled = self.step < config.steps and self._has_stalled()
        for text in () if is_stalled else self.notes:  # they describe the training that follows
            log.note(self.step, text)
        if self.step:
            left = "; nothing left to train" * (is_stalled or self.step >= config.steps)
            left += (
                f": train.patience {config.patience} has ended it; a larger one, or 0, continues"
                * is_stalled
            )
            log.print_line(f"resuming from step {self.step} of {config.steps}{left}")
        numbers: dict[str, float] | None = None
        was_validated = any(row["step"] == self.step for row in past)
        if (
            self.step and self._is_due(config.val_every) and not was_validated
        ):  # it stopped between saving and validation
            numbers = self._validate(val_loader, log)
        while self.step < config.steps and not self._has_stalled():
            start = time.perf_counter()
            micro_batches = [next(batches) for _ in range(config.accumulation)]
            self.meter.loading_seconds += time.perf_counter() - start
            skipped = [error for batch in micro_batches for error in batch.skipped]
            if processes.any_process(bool(skipped)):
                everywhere = itertools.chain(*processes.gather_objects(skipped))
                bad_samples.add(everywhere, self.samples_consumed + config.batch_size)
            self.meter.add(self.train_step(micro_batches))
            self.step += 1
            log.tick(self.step)
            is_stopped = processes.any_process(bool(stop)) and self.step < config.steps
            is_saved = self._is_due(config.save_every) or is_stopped
            if self._is_due(config.log_every):
                window, self.meter = self.meter, Meter()
                log.row("train", self.step, window.result(config, self.step))
            start = time.perf_counter()
            self.writer.poll()
            if is_saved:
                self.save()
            numbers = self._validate(val_loader, log) if self._is_due(config.val_every) else None
            self.meter.start += time.perf_counter() - start  # their time does not count
            if is_stopped:
                raise self._stopped(stop)
        return self.chosen or numbers or self.evaluate(val_loader)

    def _stopped(self, stop: Collection[int]) -> StoppedError:
        where = (
            f"stopped at step {self.step} of {self.config.steps}, checkpoint saved in {self.run}"
        )
        stopped = StoppedError(f"{where}; run the same command again to resume")
        stopped.code = 128 + next(iter(stop), signal.SIGTERM)
        return stopped

    @property
    def chosen(self) -> dict[str, float] | None:
        """Numbers of the weights in best/; None without any."""
        return self.choice.best.numbers if self.choice.best else None

    def _has_stalled(self) -> bool:
        """Return whether the last train.patience validations brought no improvement."""
        sign = 1 if self.main_metric else -1
        scores = [-math.inf if math.isnan(score) else sign * score for score in self.scores]
        return 0 < self.config.patience < len(scores) - (scores.index(max(scores)) if scores else 0)

    def _is_due(self, every: int) -> bool:
        """Return whether an action of every `every` steps and of the last step is due."""
        return self.step % every == 0 or self.step == self.config.steps

    def _validate(self, val_loader: Iterable[Any], log: RunLog) -> dict[str, float]:
        self.writer.finish()  # else a kill would lose the checkpoint, or best/ could stay without the one of its step
        try:
            numbers, rows = self._evaluate(val_loader)
        except UserError as error:
            if self._is_shared(error):
                self.save()
            raise
        self._choose(numbers, rows)
        self.scores += [numbers[name] for name in (self.watched,) if name in numbers]
        if is_early := self._has_stalled() and self.step < self.config.steps:
            if self.step % self.config.save_every:
                self.save()
            num = self.config.patience
            log.note(
                self.step,
                f"{STOPPED_EARLY}: {num} validation{'s' * (num > 1)} without a better {self.watched}",
            )
        if (is_early or self.step == self.config.steps) and self.evaluator:
            found = self.chosen or numbers
            closing = (
                self._on_training_rows(numbers),
                self.choice.closing(self.step, int(self.config.warmup * self.config.steps)),
            )
            for text in filter(
                None, [*self.evaluator.warnings(found), self.evaluator.comparison(found), *closing]
            ):
                log.note(self.step, text)
        log.row("val", self.step, numbers)  # last: a resumed run repeats a validation without a row
        return numbers

    def _on_training_rows(self, numbers: Mapping[str, float]) -> str:
        """Return a sentence on training rows against validation rows; empty if unknown."""
        if self.training_rows is None or self.watched is None or self.watched not in numbers:
            return ""
        try:
            seen, _ = self._evaluate(self.training_rows(), skip_invalid=True)
        except (
            UserError
        ):  # a finished run must not fail at its last sentence; all processes meet the same error
            return ""
        if self.watched not in seen:
            return ""
        return on_training_rows(
            self.watched,
            seen[self.watched],
            numbers[self.watched],
            is_score=self.main_metric is not None,
        )

    def _choose(self, numbers: dict[str, float], rows: Mapping[str, float]) -> None:
        """Choose the weights of best/ among this step and earlier ones.

        Every process must call this.
        """
        name = self.main_metric
        if name is not None and name not in numbers:
            lacking = (
                "no labels, or too few of each kind; give other rows, or more (--data.val-samples)"
            )
            raise SharedError(
                f"validation gives no {name} to choose the best weights by: its rows have {lacking}"
            )

        def save() -> None:
            with self.averages.in_place():
                model, texts = (
                    gathered(self.task.state_dict()),
                    {**self.texts, **self.best_texts(numbers)},
                )
                content = {
                    "step": self.step,
                    "model": model,
                    "texts": texts,
                    "numbers": numbers,
                    "rows": rows,
                }
                processes.from_main(lambda: checkpoint.save_best(self.run, **content))

        if name is not None:
            self.choice.update(
                Validated(step=self.step, numbers=numbers, rows=rows), len(self.scores), save
            )

    def train_step(self, micro_batches: list[Any]) -> dict[str, Tensor]:
        """Run one optimiser step; return its terms, averaged over micro-batches."""
        self.model.train()
        for module in self.frozen_averages:
            module.eval()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.config) * group["lr_scale"]
        self.optimizer.zero_grad(set_to_none=True)
        terms: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=self.device))
        num, losses, given = len(micro_batches), [], micro_batches
        micro_batches = [batch.to(self.device) for batch in micro_batches]
        buffers = [buffer.clone() for buffer in running_averages(self.task)]
        if hasattr(self.task, "before_step"):
            with autocast(self.device, self.dtype):
                micro_batches = self.task.before_step(micro_batches)
        for index, batch in enumerate(micro_batches):
            with without_sharing(self.model) if index < num - 1 else contextlib.nullcontext():
                with autocast(self.device, self.dtype):
                    output: StepOutput = self.model(batch)
                for name, value in {"loss": output.loss, **output.terms}.items():
                    terms[name] = terms[name] + value.detach().float() / num
                losses.append(output.loss.detach().float())
                self.mark("forward")
                (output.loss / num).backward()
                self.mark("backward")
        max_norm = self.config.clip_norm or float("inf")
        terms["grad_norm"] = clip_gradients(self.task, max_norm)
        self._check_finite(given, terms, [*losses, terms["grad_norm"]], buffers)
        self.optimizer.step()
        self.averages.update(self.step)
        share_running_averages(self.task)
        if hasattr(self.task, "after_step"):
            self.task.after_step((self.step + 1) / self.config.steps)
        self.mark("optimizer")
        return terms

    def _check_finite(
        self,
        micro_batches: list[Any],
        terms: Mapping[str, Tensor],
        values: Sequence[Tensor],
        buffers: Sequence[Tensor],
    ) -> None:
        """Raise SharedError in all processes for a value that is not finite.

        Saves batch, rows and weights. values: losses of the micro-batches, and last the gradient norm. buffers: running
        averages from before the step.
        """
        num_bad_V = processes.sum_over_processes((~torch.stack([*values]).isfinite()).float())
        if not num_bad_V.any():
            return
        for buffer, before in zip(running_averages(self.task), buffers, strict=True):
            buffer.copy_(before)
        first = int(num_bad_V.bool().int().argmax())
        is_loss = first < len(micro_batches)
        batch = micro_batches[first if is_loss else -1]
        folder = self.run / f"non_finite_step_{self.step:08d}_rank_{processes.rank()}"
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {
            each.name: value
            for each in fields(batch)
            if isinstance(value := getattr(batch, each.name), Tensor)
        }
        checkpoint.write_tensors(folder / "batch.safetensors", tensors)
        write_file(folder / "samples.txt", "\n".join(batch.where))
        model = gathered(self.task.state_dict())
        if is_main():
            checkpoint.write_tensors(folder / "model.safetensors", model)
        processes.barrier()  # the first process that ends would end the others
        numbers = ", ".join(f"{name} {number.item():.4g}" for name, number in terms.items())
        problem = f"{'loss' if is_loss else 'gradient norm'} is not finite at step {self.step} ({numbers})"
        there = f"stopped before the update; weights, batch and sample names are in {folder}"
        raise SharedError(
            f"{problem}: {there}; a lower train.lr or train.dtype float32 often helps"
        )

    def evaluate(self, loader: Iterable[Any]) -> dict[str, float]:
        """Return the task's numbers on a loader.

        Raises UserError in all processes for an unusable row, unless skip_invalid.
        """
        return self._evaluate(loader)[0]

    def _evaluate(
        self, loader: Iterable[Any], *, skip_invalid: bool = False
    ) -> tuple[dict[str, float], Mapping[str, float]]:
        assert self.evaluator is not None
        skip_invalid = skip_invalid or self.skip_invalid
        # an error in one process only would leave the others waiting
        skipped: list[Any] | None = [] if skip_invalid or processes.world_size() > 1 else None
        failed: list[UserError] = []
        loader = progress(
            _up_to_error(loader, failed), "validating", operator.length_hint(loader) or None
        )
        evaluated = evaluation_batches(self.task, loader, self.device, self.dtype, skipped)
        with self.averages.in_place(), unsharded(self.task), evaluated as batches:
            numbers, rows = self.evaluator.validate(batches)
        failed += [unusable(error) for error in skipped or () if not skip_invalid]
        if met := [*itertools.chain(*processes.gather_objects([str(error) for error in failed]))]:
            raise SharedError(met[0])
        return numbers | num_skipped(skipped), rows


def _up_to_error(loader: Iterable[Any], failed: list[UserError]) -> Iterator[Any]:
    """Yield batches; list a UserError if other processes wait in sums over all."""
    try:
        yield from loader
    except UserError as error:
        if processes.world_size() == 1:
            raise
        failed.append(error)

"""The only training loop: all it knows of a task is `StepOutput` and `Evaluator`."""

import contextlib
import dataclasses
import gc
import itertools
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eve_vl.config import TrainConfig
from eve_vl.train import processes
from eve_vl.train.bad_samples import BadSamples
from eve_vl.train.best_folder import ValidatedStep, save_best
from eve_vl.train.best_weights import BestWeights
from eve_vl.train.block_wrapping import wrap_blocks
from eve_vl.train.checkpoint_folders import BEST, CHECKPOINTS, checkpoint_folders_of_main
from eve_vl.train.checkpoint_writer import CheckpointWriter
from eve_vl.train.data_parallel import parallelize, without_gradient_averaging
from eve_vl.train.devices import autocast, pick_dtype, use_tf32
from eve_vl.train.early_stopping import EarlyStopping
from eve_vl.train.evaluation_batches import Evaluator
from eve_vl.train.finite_check import FiniteCheck, StepToCheck
from eve_vl.train.freezing import freeze
from eve_vl.train.gradient_clipping import clip_gradients
from eve_vl.train.learning_rate import learning_rate
from eve_vl.train.meter import Meter
from eve_vl.train.optimizer import build_optimizer, optimizer_tensors
from eve_vl.train.overfitting import compare_with_training_rows
from eve_vl.train.random_state import get_rng_state
from eve_vl.train.run_log import STOPPED_EARLY, RunLog
from eve_vl.train.running_averages import (
    copy_running_averages,
    share_running_averages,
)
from eve_vl.train.shard import gathered
from eve_vl.train.step import StepOutput
from eve_vl.train.tensor_files import read_tensors
from eve_vl.train.tensor_shares import read_shares
from eve_vl.train.training_state import (
    LIVE,
    MEMORY,
    METER_PREFIX,
    OPTIMIZER,
    load_training_state,
)
from eve_vl.train.validation import Validation, validate
from eve_vl.train.weight_averages import WeightAverages
from eve_vl.utils.console import is_main, pluralize
from eve_vl.utils.errors import SharedError, StoppedError, UserError
from eve_vl.utils.file_io import delete_temporary
from eve_vl.utils.memory import garbage_collection_paused
from eve_vl.utils.signals import stop_signals

HANDING_OVER = (EOFError, ConnectionError, FileNotFoundError)
"""Errors if a loading process ends while it hands over a batch, by a socket."""
COLLECT_EVERY = 100  # steps between garbage collections


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

        evaluator: for validation; None: only `train_step` is used. texts: files of every
        checkpoint. new: parameters that train with head_lr_multiplier. notes: lines for the log.
        skip_invalid: leave unusable rows out of validation.
        """
        self.config = config
        self.run = run
        self.device = device
        self.texts = texts
        self.notes = notes
        self.new = sorted(new)
        self.skip_invalid = skip_invalid

        self.task: Any = task.to(device)
        self.dtype = pick_dtype(config.dtype, device)
        use_tf32(device, self.dtype)
        self.frozen_normalisations = freeze(self.task, config.freeze)
        wrap_blocks(self.task, config)
        self.model = parallelize(self.task, device, config.layout)
        self.optimizer: Any = build_optimizer(
            self.task.named_parameters(), config, new, products=self.dtype
        )
        self.averages = WeightAverages(self.task, config.ema_decay)
        self.finite_check = FiniteCheck(run, self.task, device)

        self.evaluator = evaluator
        self.main_metric = evaluator.main_metric if evaluator else None
        self.watched = self.main_metric or (evaluator.main_loss if evaluator else None)
        if config.patience and self.watched is None:
            raise UserError(
                "train.patience: validation of this task has no number to watch; leave it out"
            )
        self.early_stopping = EarlyStopping(
            config.patience, is_higher_better=self.main_metric is not None
        )
        self.best_weights = BestWeights(run, self.main_metric)

        self.step = 0
        self.window: dict[str, Tensor] = {}  # sums of the open log window of a resumed run
        # a single process on a CPU would lose cores and memory to the writer
        in_background = device.type != "cpu" or processes.world_size() > 1
        self.writer = CheckpointWriter(
            run, keep=config.keep_checkpoints, in_background=in_background
        )
        # profiling hook after each part of a step
        self.mark: Callable[[str], None] = lambda _: None
        # a loader of some training rows, as validation reads them
        self.training_rows: Callable[[], Iterable[Any]] | None = None
        # the step to end at, by the step that is reached; asked at each log row, in all processes
        self.last_step: Callable[[int], int] = lambda _: self.config.steps
        # files that differ in best/
        self.best_texts: Callable[[dict[str, float]], dict[str, str]] = lambda _: {}

    @property
    def samples_consumed(self) -> int:
        """Samples that all processes have trained on."""
        return self.step * self.config.batch_size

    # --- resuming and saving ---

    def resume(self) -> bool:
        """Load the newest checkpoint of the run folder; return whether there is one."""
        folders = checkpoint_folders_of_main(self.run)
        if is_main():
            delete_temporary(self.run, BEST)
            delete_temporary(self.run / CHECKPOINTS)
        if not folders:
            return False
        folder = folders[-1]
        state = load_training_state(folder, self.task, self.optimizer, processes.rank())
        self._restore_live_weights(folder)
        self._restore_memory(folder)
        self.step = state["step"]
        if state["num_processes"] == processes.world_size():
            for name, value in state["meter"].items():
                self.window[name] = value.to(self.device)
        self.best_weights.restore(self.step)
        return True

    def _restore_live_weights(self, folder: Path) -> None:
        if self.averages.values:
            live = {name: torch.empty_like(value) for name, value in self.averages.live().items()}
            read_shares(live, folder, LIVE)
            self.averages.restore(live)

    def _restore_memory(self, folder: Path) -> None:
        path = folder / f"{MEMORY}.safetensors"
        if path.is_file():
            for name, value in read_tensors(path).items():
                self.task.memory[name] = value.to(self.device)

    def save(self) -> None:
        """Begin to write a checkpoint; every process must call this."""
        self.writer.finish()  # before copies are made
        unshared: dict[str, Mapping[str, Tensor]] = {}
        with self.averages.in_place():
            weights = gathered(self.task.state_dict())
            if is_main():
                unshared["model"] = self.writer.copied(weights)
        process_tensors = get_rng_state()
        for name, value in self.meter.state().items():
            process_tensors[f"{METER_PREFIX}{name}"] = value
        unshared[f"rng_{processes.rank()}"] = process_tensors
        memory = getattr(self.task, "memory", None)
        if is_main() and memory:
            unshared[MEMORY] = self.writer.copied(memory)

        shared = {OPTIMIZER: optimizer_tensors(self.task, self.optimizer)}
        live = self.averages.live()
        if live:
            shared[LIVE] = live
        state = {
            "step": self.step,
            "new": self.new,
            "num_processes": processes.world_size(),
            "threads": torch.get_num_threads(),
        }
        shared = {name: tensors for name, tensors in shared.items() if tensors}
        self.writer.start(unshared, shared, self.texts, state)

    # --- the loop ---

    def fit(
        self, train_loader: Iterable[Any], val_loader: Iterable[Any], bad_samples: BadSamples
    ) -> dict[str, float]:
        """Train to the last step; return the numbers of best/, else of the last step.

        train_loader: endless micro-batches after `samples_consumed` samples. Raises StoppedError
        after SIGINT, SIGTERM or SIGHUP, UserError for a non-finite loss or a full disk.
        """
        log = RunLog(self.run, first_step=self.step, num_steps=self.config.steps, enabled=is_main())
        with contextlib.closing(log), stop_signals() as signals, garbage_collection_paused():
            try:
                numbers = self._loop(iter(train_loader), val_loader, bad_samples, log, signals)
            except Exception as error:
                is_of_loader = isinstance(error, HANDING_OVER) or "DataLoader worker" in str(error)
                if signals and processes.world_size() == 1 and is_of_loader:
                    # the loader's process got the signal, too
                    self.save()
                    self.writer.finish()
                    raise self._stopped(signals) from None
                if _is_shared(error):
                    self.writer.finish()
                raise
            self.writer.finish()
            return numbers

    def _loop(
        self,
        batches: Iterator[Any],
        val_loader: Iterable[Any],
        bad_samples: BadSamples,
        log: RunLog,
        signals: Collection[int],
    ) -> dict[str, float]:
        self.meter = Meter(self.window)
        earlier_rows = processes.gather_objects(log.earlier_rows)[0]
        validations = [row for row in earlier_rows if row["kind"] == "val"]
        self._restore_scores(validations)
        self._print_start(log)
        numbers: dict[str, float] | None = None
        was_validated = any(row["step"] == self.step for row in validations)
        if self.step and self._is_due(self.config.val_every) and not was_validated:
            numbers = self._validate(val_loader, log)  # the run stopped after saving

        while self.step < self.config.steps and not self.early_stopping.has_stalled():
            micro_batches = self._load(batches)
            skipped = [error for batch in micro_batches for error in batch.skipped]
            self.meter.add(self.train_step(micro_batches))
            self.step += 1
            log.tick(self.step)
            config = self.config  # of this step
            if self._is_due(config.log_every):
                self._ask_for_last_step(log)

            has_skipped, is_stopped, is_writing = processes.any_process_of_each(
                [bool(skipped), bool(signals), self.writer.is_writing]
            )
            if has_skipped:
                everywhere = itertools.chain.from_iterable(processes.gather_objects(skipped))
                bad_samples.add(everywhere, self.samples_consumed)
            is_stopped = is_stopped and self.step < self.config.steps
            is_saved = self._is_due(config.save_every) or is_stopped
            is_logged = self._is_due(config.log_every)
            is_validated = self._is_due(config.val_every)
            if is_saved or is_logged or is_validated:
                self.finite_check.finish()

            if is_logged:
                window = self.meter
                self.meter = Meter()
                log.row("train", self.step, window.result(config, self.step))
            pause_start = time.perf_counter()
            if not is_writing:
                self.writer.finish()
            if is_saved:
                self.save()
            numbers = self._validate(val_loader, log) if is_validated else None
            if is_validated or self.step % COLLECT_EVERY == 0:
                gc.collect()
            self.meter.start += time.perf_counter() - pause_start  # their time does not count
            if is_stopped:
                raise self._stopped(signals)
        return self.best_numbers or numbers or self.evaluate(val_loader)

    def _restore_scores(self, validations: Sequence[Mapping[str, float]]) -> None:
        for row in validations:
            if self.watched is not None and self.watched in row:
                self.early_stopping.scores.append(row[self.watched])

    def _print_start(self, log: RunLog) -> None:
        is_stalled = self.step < self.config.steps and self.early_stopping.has_stalled()
        if not is_stalled:  # the notes describe the training that follows
            for text in self.notes:
                log.note(self.step, text)
        if not self.step:
            return
        line = f"resuming from step {self.step} of {self.config.steps}"
        if is_stalled or self.step >= self.config.steps:
            line += "; nothing left to train"
        if is_stalled:
            patience = self.config.patience
            line += f": train.patience {patience} has ended it; a larger one, or 0, continues"
        log.print_line(line)

    def _load(self, batches: Iterator[Any]) -> list[Any]:
        """Return the micro-batches of a step, and count the time that it takes."""
        start = time.perf_counter()
        micro_batches = [next(batches) for _ in range(self.config.accumulation)]
        self.meter.loading_seconds += time.perf_counter() - start
        return micro_batches

    def _stopped(self, signals: Collection[int]) -> StoppedError:
        first_signal = next(iter(signals), signal.SIGTERM)
        return StoppedError(
            f"stopped at step {self.step} of {self.config.steps}, checkpoint saved in {self.run}; "
            "run the same command again to resume",
            code=128 + first_signal,
        )

    def _ask_for_last_step(self, log: RunLog) -> None:
        """Follow a caller whose number of steps depends on the time that they take."""
        steps = self.last_step(self.step)
        if steps != self.config.steps:
            self.config = dataclasses.replace(self.config, steps=steps)
            log.set_num_steps(steps)

    def _is_due(self, every: int) -> bool:
        """Return whether an action of every `every` steps and of the last step is due."""
        return self.step % every == 0 or self.step == self.config.steps

    # --- one step ---

    def train_step(self, micro_batches: list[Any]) -> dict[str, Tensor]:
        """Run one optimiser step; return its terms, averaged over micro-batches."""
        self.model.train()
        for module in self.frozen_normalisations:
            module.eval()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, self.config) * group["lr_scale"]
        self.optimizer.zero_grad(set_to_none=True)

        sent_batches = [batch.to(self.device) for batch in micro_batches]
        averages_before = copy_running_averages(self.task)
        if hasattr(self.task, "before_step"):
            with autocast(self.device, self.dtype):
                sent_batches = self.task.before_step(sent_batches)
        terms: dict[str, Tensor] = defaultdict(lambda: torch.zeros((), device=self.device))
        losses = self._accumulate_gradients(sent_batches, terms)
        terms["grad_norm"] = clip_gradients(self.task, self.config.clip_norm or float("inf"))

        step = StepToCheck(
            step=self.step,
            micro_batches=micro_batches,
            losses=losses,
            grad_norm=terms["grad_norm"],
            terms=terms,
            running_averages=averages_before,
        )
        self.optimizer.found_inf = self.finite_check.before_update(step)
        self.optimizer.step()
        self.averages.update(self.step)
        share_running_averages(self.task)
        if hasattr(self.task, "after_step"):
            self.task.after_step((self.step + 1) / self.config.steps)
        self.mark("optimizer")
        return terms

    def _accumulate_gradients(
        self, micro_batches: Sequence[Any], terms: dict[str, Tensor]
    ) -> list[Tensor]:
        """Add the gradients and terms of micro-batches; return their losses.

        Gradients are averaged over processes after the last one.
        """
        num = len(micro_batches)
        losses = []
        for index, batch in enumerate(micro_batches):
            is_last = index == num - 1
            averaging = (
                contextlib.nullcontext() if is_last else without_gradient_averaging(self.model)
            )
            with averaging:
                with autocast(self.device, self.dtype):
                    output: StepOutput = self.model(batch)
                for name, value in {"loss": output.loss, **output.terms}.items():
                    terms[name] = terms[name] + value.detach().float() / num
                losses.append(output.loss.detach().float())
                self.mark("forward")
                loss = output.loss / num
                loss.backward(self.finite_check.loss_gradient(loss))
                self.mark("backward")
        return losses

    # --- validation ---

    @property
    def best_numbers(self) -> dict[str, float] | None:
        """Numbers of the weights in best/; None without any."""
        best = self.best_weights.best
        return best.numbers if best else None

    def evaluate(self, loader: Iterable[Any]) -> dict[str, float]:
        """Return the task's numbers on a loader.

        Raises UserError in all processes for an unusable row, unless skip_invalid.
        """
        return self._evaluate(loader, skip_invalid=self.skip_invalid).numbers

    def _evaluate(self, loader: Iterable[Any], *, skip_invalid: bool) -> Validation:
        assert self.evaluator is not None
        with self.averages.in_place():
            return validate(
                self.task,
                self.evaluator,
                loader,
                self.device,
                self.dtype,
                skip_invalid=skip_invalid,
            )

    def _validate(self, val_loader: Iterable[Any], log: RunLog) -> dict[str, float]:
        """Validate, choose the weights of best/, and log the numbers."""
        # else a kill would lose the checkpoint, or best/ could stay without the one of its step
        self.writer.finish()
        try:
            validation = self._evaluate(val_loader, skip_invalid=self.skip_invalid)
        except UserError as error:
            if _is_shared(error):
                self.save()
            raise
        numbers = validation.numbers
        self._choose_best(validation)
        if self.watched is not None and self.watched in numbers:
            self.early_stopping.scores.append(numbers[self.watched])
        is_early = self.early_stopping.has_stalled() and self.step < self.config.steps
        if is_early:
            if self.step % self.config.save_every:
                self.save()
            validations = pluralize(self.config.patience, "validation")
            log.note(self.step, f"{STOPPED_EARLY}: {validations} without a better {self.watched}")
        if is_early or self.step == self.config.steps:
            self._note_conclusions(numbers, log)
        log.row("val", self.step, numbers)  # last: a resumed run repeats a validation without a row
        return numbers

    def _note_conclusions(self, numbers: Mapping[str, float], log: RunLog) -> None:
        """Add sentences about the end of training to the log."""
        assert self.evaluator is not None
        final_numbers = self.best_numbers or numbers
        num_warmup = int(self.config.warmup * self.config.steps)
        sentences = [
            *self.evaluator.warnings(final_numbers),
            self.evaluator.comparison(final_numbers),
            self._compare_with_training_rows(numbers),
            self.best_weights.closing(self.step, num_warmup),
        ]
        for sentence in sentences:
            if sentence:
                log.note(self.step, sentence)

    def _compare_with_training_rows(self, numbers: Mapping[str, float]) -> str:
        """Return a sentence on training rows against validation rows; empty if unknown."""
        if self.training_rows is None or self.watched is None or self.watched not in numbers:
            return ""
        try:
            training = self._evaluate(self.training_rows(), skip_invalid=True)
        except UserError:
            # a finished run must not fail at its last sentence; all processes meet the same error
            return ""
        if self.watched not in training.numbers:
            return ""
        return compare_with_training_rows(
            self.watched,
            training.numbers[self.watched],
            numbers[self.watched],
            is_score=self.main_metric is not None,
        )

    def _choose_best(self, validation: Validation) -> None:
        """Choose the weights of best/ among this step and earlier ones.

        Every process must call this.
        """
        if self.main_metric is None:
            return
        numbers = validation.numbers
        if self.main_metric not in numbers:
            raise SharedError(
                f"validation gives no {self.main_metric} to choose the best weights by: its rows "
                "have no labels, or too few of each kind; give other rows, or more "
                "(--data.val-samples)"
            )

        def save() -> None:
            with self.averages.in_place():
                weights = gathered(self.task.state_dict())
                texts = {**self.texts, **self.best_texts(numbers)}
                processes.from_main(
                    lambda: save_best(
                        self.run,
                        step=self.step,
                        model=weights,
                        texts=texts,
                        numbers=numbers,
                        rows=validation.rows,
                    )
                )

        now = ValidatedStep(step=self.step, numbers=numbers, rows=validation.rows)
        self.best_weights.update(now, len(self.early_stopping.scores), save)


def _is_shared(error: Exception) -> bool:
    """Return whether all processes raise an error; they can still save then."""
    return processes.world_size() == 1 or isinstance(error, SharedError)

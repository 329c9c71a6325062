"""How much memory a step takes: each measurement is a process of its own, for a process never forgets its peak.

python -m eve_vl.study.memory reads one Probe as JSON and writes one Peak: that is how `measure` calls it.
"""

import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from eve_vl.config import Config, from_dict, to_dict
from eve_vl.cpu import malloc_environment
from eve_vl.errors import UserError
from eve_vl.run import AnyTask, build_untrained
from eve_vl.study.variants import Texts, made_up_batch
from eve_vl.train.device import autocast, pick_device, pick_dtype
from eve_vl.train.optim import build_optimizer

GIB = 2**30
MAX_STEP_SECONDS = 60.0  # a larger step is not run just to see whether it fits
MAX_TRIES = 6
OUT_OF_MEMORY = 3  # exit status of a probe that a GPU has no room for


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One training step to run."""

    config: Config
    batch: int
    texts: Texts


@dataclass(frozen=True, kw_only=True)
class Peak:
    """What a step took."""

    batch: int
    bytes: int
    """Weights, gradients, optimiser and activations; on CPU of the whole process."""
    seconds: float
    """Wall clock of forward and backward, the first of its process."""


@dataclass(frozen=True, kw_only=True)
class Memory:
    """How a task's memory grows with its batch."""

    peaks: tuple[Peak, ...]

    def line(self, name: str) -> tuple[float, float]:
        """Return the value of `bytes` or `seconds` at batch 0 and its growth per pair, through the two largest batches.

        While activations are smaller than the gradients that take their place, memory does not grow at all.
        """
        first, second = sorted(self.peaks, key=lambda peak: peak.batch)[-2:]
        low, high = float(getattr(first, name)), float(getattr(second, name))
        slope = max(0.0, (high - low) / (second.batch - first.batch))
        return high - slope * second.batch, slope

    def at(self, batch: int, name: str = "bytes") -> float:
        """Return bytes (or seconds) at a batch: measured, else on the line."""
        for peak in self.peaks:
            if peak.batch == batch:
                return getattr(peak, name)
        start, slope = self.line(name)
        return start + slope * batch

    def largest_under(self, cap: int) -> int:
        """Return the largest batch that the line puts under `cap` bytes, at most four times the largest measured; 0 if none."""
        start, slope = self.line("bytes")
        most = 4 * max(peak.batch for peak in self.peaks)
        if slope == 0:
            return most if start <= cap else 0
        return max(0, min(most, int((cap - start) / slope)))


@dataclass(frozen=True, kw_only=True)
class Largest:
    """The largest batch under a memory cap."""

    batch: int
    memory: Memory
    is_verified: bool
    """Whether a step of that batch was run and stayed under the cap; else it is a guess: running it would take too long."""


Measure = Callable[[Probe], Peak | None]
"""Runs a probe; None if a GPU has not enough memory for it."""


def growth(config: Config, batch: int, texts: Texts, measure: Measure) -> Memory:
    """Measure a quarter and a half of a batch. Raises UserError if that is too much already."""
    small = max(1, batch // 4)
    peaks = []
    for size in (small, max(small + 1, batch // 2)):
        peak = measure(Probe(config=config, batch=size, texts=texts))
        if peak is None:
            raise UserError(f"a batch of {size} does not fit the device's memory; give a smaller --batch")
        peaks.append(peak)
    return Memory(peaks=tuple(peaks))


def largest_batch(config: Config, memory: Memory, cap: int, texts: Texts, measure: Measure) -> Largest:
    """Search for the largest batch under `cap` bytes: run what the line predicts, draw the line anew, until it agrees."""
    too_large = min((peak.batch for peak in memory.peaks if peak.bytes > cap), default=1 << 31)
    for _ in range(MAX_TRIES):
        fits = max((peak.batch for peak in memory.peaks if peak.bytes <= cap), default=0)
        guess = min(memory.largest_under(cap), too_large - 1)
        if guess <= fits:
            break
        if memory.at(guess, "seconds") > MAX_STEP_SECONDS:
            return Largest(batch=guess, memory=memory, is_verified=False)
        peak = measure(Probe(config=config, batch=guess, texts=texts))
        if peak is not None:
            memory = Memory(peaks=(*memory.peaks, peak))
        if peak is None or peak.bytes > cap:
            too_large = guess
    fits = max((peak.batch for peak in memory.peaks if peak.bytes <= cap), default=0)
    return Largest(batch=fits, memory=memory, is_verified=True)


def subprocess_measure(device: torch.device, threads: int) -> Measure:
    """Return a function that runs a probe in a fresh process, with as many threads. Raises UserError if it fails."""
    environment = os.environ | malloc_environment() | {"OMP_NUM_THREADS": str(threads)}

    def measure(probe: Probe) -> Peak | None:
        question = dataclasses.asdict(probe) | {"config": to_dict(probe.config), "device": device.type}
        done = subprocess.run(
            [sys.executable, "-m", "eve_vl.study.memory"],
            input=json.dumps(question),
            capture_output=True,
            text=True,
            env=environment,
        )
        if done.returncode == OUT_OF_MEMORY:
            return None
        if done.returncode:
            reason = "killed, out of memory perhaps" if done.returncode < 0 else (done.stderr.strip().splitlines() or ["?"])[-1]
            raise UserError(f"a step of batch {probe.batch} could not be measured ({reason}); give a smaller --batch")
        return Peak(**json.loads(done.stdout))

    return measure


def run_probe(probe: Probe, device: torch.device) -> Peak:
    """Run one training step in this process and return its peak so far."""
    config = probe.config
    dtype = pick_dtype(config.train.dtype, device)
    task = with_quick_weights(config, device)
    optimizer = build_optimizer(task.named_parameters(), config.train, products=dtype)
    for parameter in task.parameters():  # the optimiser's state exists before activations do, as from the second step on
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    batch = made_up_batch(config, probe.batch, probe.texts).to(device)
    synchronize(device)
    start = time.perf_counter()
    with autocast(device, dtype):
        loss = task(batch).loss
    loss.backward()
    synchronize(device)
    seconds = time.perf_counter() - start
    nn.utils.clip_grad_norm_(task.parameters(), 1.0)
    optimizer.step()
    return Peak(batch=probe.batch, bytes=peak_bytes(device), seconds=seconds)


def with_quick_weights(config: Config, device: torch.device) -> AnyTask:
    """Return the task of a config in training mode; its weights are drawn carelessly, which takes seconds less at Base size."""
    with torch.device("meta"):
        task = build_untrained(config, config.tokenizer.vocab_size, mask_id=2)
    task = task.to_empty(device=device).train()
    for parameter in task.parameters():
        nn.init.ones_(parameter) if parameter.ndim < 2 else nn.init.uniform_(parameter, -0.03, 0.03)
    return task


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(device: torch.device) -> int:
    """Return the most memory that this process has held: the GPU allocator's peak, or resident memory on CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    if status.exists():  # getrusage would count what the parent had before exec
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text())
        assert found is not None
        return int(found[1]) * 1024
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main() -> None:
    """Answer the probe on standard input."""
    question = json.loads(sys.stdin.read())
    config = from_dict(Config, question["config"], "probe")
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    probe = Probe(config=config, batch=question["batch"], texts=question["texts"])
    try:
        peak = run_probe(probe, pick_device(question["device"]))
    except torch.OutOfMemoryError:
        sys.exit(OUT_OF_MEMORY)
    sys.stdout.write(json.dumps(dataclasses.asdict(peak)) + "\n")


if __name__ == "__main__":
    main()

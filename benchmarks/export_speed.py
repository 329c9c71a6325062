"""Compare the speed of a run's ONNX files with torch on this processor.

    python benchmarks/export_speed.py RUN [--parts answerer] [--threads 1]

Exports the run into a temporary folder, then computes the same inputs with torch and onnxruntime in turn, with the same number
of threads. Texts of all lengths are padded to the run's maximum. Prints torch's time over onnxruntime's: above 1, onnxruntime
is faster. The first round does not count.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from eve_vl.utils.runtime import keep_memory, yield_cores

yield_cores()

import torch  # noqa: E402
from timing import spread  # noqa: E402

from eve_vl.interop.onnx import LONGEST, Part, example, export_run, opened  # noqa: E402
from eve_vl.run.loading import load_run  # noqa: E402

BATCHES = (1, 8)


def ratios(first: Callable[[], object], second: Callable[[], object], rounds: int, now: Callable[[], float]) -> list[float]:
    """Return the first call's time over the second's for each round after the warm-up."""
    found = []
    for _ in range(1 + rounds):
        start = now()
        first()
        middle = now()
        second()
        found.append((middle - start) / (now() - middle))
    return found[1:]


@torch.inference_mode()
def main() -> None:
    """Print a line per file and batch size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--parts", nargs="*", default=[])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    keep_memory()
    torch.set_num_threads(args.threads)
    now = time.process_time if args.threads == 1 else time.perf_counter
    run = load_run(args.run, torch.device("cpu"))
    with tempfile.TemporaryDirectory() as name:
        for one in export_run(args.run, Path(name) / "onnx", args.parts):
            part = Part(run.task, one.name).eval()
            onnx = opened(Path(name) / "onnx" / f"{one.name}.onnx", part.inputs)
            for batch in BATCHES:
                given = example(run, part.inputs, batch, LONGEST)
                found = ratios(lambda: part(*given), lambda: onnx(*given), args.rounds, now)  # noqa: B023
                print(f"{one.name:16} batch {batch}: {spread(found)} times the speed of torch", flush=True)


if __name__ == "__main__":
    main()

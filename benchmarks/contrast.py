"""Measure memory and time of contrast and hard negatives, whole and by slices.

    python benchmarks/contrast.py [--rows 4096] [--width 256] [--json FILE]

Both ways take turns within one process and one thread. The whole way makes all matrices (rows,
candidates) at once, as it was before. The other one makes slices of rows, at most
`objectives.AT_ONCE` numbers of each matrix. Memory is the peak of live tensors that a step adds, in
float32 matrices of all rows and candidates. Prints ratios, and the largest difference of loss and
gradients.

Letters: B rows, d width of features.
"""

import argparse
import json
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from timing import interleaved, machine, ratio, spread
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from eve_vl import objectives
from eve_vl.tasks.contrast import negatives
from eve_vl.tasks.contrast.negatives import shares_key


class LivePeak(TorchDispatchMode):
    """Peak bytes of the tensors that are made inside it and still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(results):
            if (
                isinstance(tensor, Tensor)
                and (storage := tensor.untyped_storage())._cdata not in self.seen
            ):
                self.seen.add(storage._cdata)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        return results

    def _gone(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.now -= size


class Step:
    """Contrast of made-up features, its gradients, and two hard partners of each row."""

    def __init__(self, num_rows: int, width: int):
        rng = torch.Generator().manual_seed(0)
        self.num_rows, self.temperature, self.results = num_rows, torch.tensor(0.07), {}
        self.features = [
            F.normalize(torch.randn(num_rows, width, generator=rng), dim=1) for _ in range(2)
        ]
        self.keys_B1 = torch.arange(num_rows)[:, None] // 2  # two captions of each image

    def contrast(self, is_whole: bool) -> None:
        """Compute the loss and its gradients by both features and the temperature."""
        image_Bd, text_Bd, temperature = given = [
            each.clone().requires_grad_() for each in (*self.features, self.temperature)
        ]
        lazy = objectives.LazyRows(
            lambda rows: objectives.even_targets(shares_key(self.keys_B1[rows], self.keys_B1))
        )
        target_BB = lazy[:] if is_whole else lazy
        loss = objectives.contrastive(image_Bd, text_Bd, image_Bd, text_Bd, target_BB, temperature)
        self.results[is_whole] = [loss.detach(), *torch.autograd.grad(loss, given)]

    def partners(self, is_whole: bool) -> None:
        """Draw them."""
        del is_whole
        image_Bd, text_Bd = self.features
        negatives.hard(self.keys_B1, image_Bd, text_Bd, self.temperature)

    def ways(self, name: str) -> dict[str, Callable[[], None]]:
        """Return a part of the step, whole and by slices."""

        def run(is_whole: bool) -> None:
            limit = self.num_rows**2 if is_whole else objectives.AT_ONCE
            with mock.patch.object(objectives, "AT_ONCE", limit):
                getattr(self, name)(is_whole)

        return {"whole": partial(run, True), "slices": partial(run, False)}

    def peaks(self, name: str) -> dict[str, float]:
        """Return the peaks of both ways in matrices."""
        found = {}
        for way, run in self.ways(name).items():
            with LivePeak() as live:
                run()
            found[way] = live.peak / (4 * self.num_rows**2)
        return found

    def difference(self) -> float:
        """Return the largest relative difference of loss and gradients.

        Each difference is relative to the largest value of the whole way.
        """
        pairs = zip(self.results[True], self.results[False], strict=True)
        return max(((a - b).abs().max() / a.abs().max()).item() for a, b in pairs)


def main() -> None:
    """Print a line per part of the step."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--width", type=int, default=256, help="of the features")
    parser.add_argument("--rounds", type=int, default=5, help="after the warm-up")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    args = parser.parse_args()
    torch.set_num_threads(1)
    step, about, found = Step(args.rows, args.width), machine(), {}
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    for name in ("contrast", "partners"):
        peaks, seconds = step.peaks(name), interleaved(step.ways(name), args.rounds)
        median, low, high = ratio(seconds["slices"], seconds["whole"])
        found[name] = {"peaks": peaks, "seconds": seconds, "ratio": median, "min": low, "max": high}
        memory = f"{peaks['whole']:.2f} → {peaks['slices']:.2f} matrices"
        print(
            f"{name:9} {memory}; {spread(seconds['whole'])} s; by slices {median:.2f}× "
            f"({low:.2f}–{high:.2f})"
        )
    found["difference"] = step.difference()
    print(f"largest relative difference of loss and gradients {found['difference']:.1e}")
    if args.json:
        args.json.write_text(
            json.dumps({"machine": about, **vars(args) | {"json": None}, "found": found}, indent=1)
            + "\n"
        )


if __name__ == "__main__":
    main()

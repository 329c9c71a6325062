"""Compare recall at COCO 5K's size: ours against sorting the whole score matrix.

    python benchmarks/retrieval_scale.py [--images 5000] [--texts 25000] [--width 768] [--threads 1]

Synthetic features, five texts per image. Each variant runs in its own process, so its peak memory
is its own. Prints seconds, memory and whether both results are equal.
"""

import argparse
import json
import resource
import subprocess
import sys
import time

import torch
from torch.nn import functional as F

from eve_vl.metrics import retrieval
from eve_vl.metrics.matches import Relevance
from eve_vl.metrics.ranks import Ranks, best_ranks

VARIANTS = ("sorting", "ours")


def recall(name: str, args: argparse.Namespace) -> dict[str, float]:
    """Return recalls, seconds and this process's peak memory (GiB) before and after."""
    torch.set_num_threads(args.threads)
    generator = torch.Generator().manual_seed(0)
    image_Id = F.normalize(torch.randn(args.images, args.width, generator=generator), dim=1)
    image_T = torch.arange(args.texts) * args.images // args.texts
    text_Td = F.normalize(
        image_Id[image_T] + 0.3 * torch.randn(args.texts, args.width, generator=generator), dim=1
    )
    relevance = Relevance.from_pairs(image_T, torch.arange(args.texts), args.images, args.texts)
    before, start = peak(), time.perf_counter()
    if name == "ours":
        ranks = (
            best_ranks(image_Id, text_Td, relevance.texts_of_image),
            best_ranks(text_Td, image_Id, relevance.images_of_text),
        )
    else:
        scores_IT = image_Id @ text_Td.T
        places_IT = scores_IT.argsort(dim=1, descending=True, stable=True).argsort(1)
        text_to_image_IT = torch.full((args.images, args.texts), args.texts)
        text_to_image_IT[image_T, torch.arange(args.texts)] = places_IT[
            image_T, torch.arange(args.texts)
        ]
        places_TI = scores_IT.T.argsort(dim=1, descending=True, stable=True).argsort(1)
        places = text_to_image_IT.min(1).values, places_TI[torch.arange(args.texts), image_T]
        ranks = [
            Ranks(better_Q=each, tied_Q=torch.ones_like(each), true_Q=torch.ones_like(each))
            for each in places
        ]
    seconds = time.perf_counter() - start
    return retrieval.summary(ranks[0], ranks[1]) | {
        "seconds": seconds,
        "before": before,
        "peak": peak(),
    }


def peak() -> float:
    """Return this process's peak memory in GiB (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    """Run each variant in a process and compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--texts", type=int, default=25_000)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--variant", choices=VARIANTS, help="run only this variant and print its numbers as JSON"
    )
    args = parser.parse_args()
    if args.variant:
        print(json.dumps(recall(args.variant, args)))
        return
    found = {}
    for name in VARIANTS:
        command = [sys.executable, *sys.argv, "--variant", name]
        found[name] = json.loads(
            subprocess.run(command, check=True, capture_output=True, text=True).stdout
        )
        row = found[name]
        print(
            f"{name:8} {row['seconds']:6.1f} s, {row['peak']:.2f} GiB ({row['before']:.2f} "
            f"before), r_mean {row['r_mean']:.4f}"
        )
    ours, sorting = found["ours"], found["sorting"]
    print(
        f"ours: {ours['seconds'] / sorting['seconds']:.2f} of the time, "
        f"{ours['peak'] / sorting['peak']:.2f} of the memory"
    )


if __name__ == "__main__":
    main()

"""Compare training crops from JPEG files: our decoder against PIL and torchvision.

    python benchmarks/image_decoding.py [--json FILE] [--quick]

Synthetic noisy photos of 640×480 pixels (quality 88, about 100 kB) become random crops of 224 pixels. The usual code ends
with normalised float32; ours keeps uint8, which the device normalises, so normalisation is also measured on top. One thread,
processor time; the variants take turns, so each round's ratio is taken under the same load.
"""

import argparse
import io
import json
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFilter
from timing import Goal, interleaved, machine, ratio
from torch import Tensor
from torchvision import transforms as v1

from eve_vl.config import InputConfig
from eve_vl.data.crops import train_crop
from eve_vl.data.decoding import decode
from eve_vl.data.image_refs import ImageBytes
from eve_vl.utils.memory import keep_memory

SIZE, SCALE = 224, (0.5, 1.0)
GOAL = Goal(limit=2.2, at_least=True)


def made_up_photo(seed: int, width: int = 640, height: int = 480) -> bytes:
    """Return a JPEG with a photo's spectrum.

    It has soft shapes at several scales and sensor noise.
    """
    rng = np.random.default_rng(seed)
    pixels = np.zeros((height, width, 3))
    for cells in (4, 16, 64):
        coarse = rng.integers(0, 256, (cells * 3 // 4, cells, 3), dtype=np.uint8)
        layer = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        pixels += np.asarray(layer.filter(ImageFilter.GaussianBlur(1)), dtype=float) / 3
    pixels += rng.normal(0, 9, pixels.shape)
    file = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=88)
    return file.getvalue()


def variants(files: Sequence[bytes]) -> dict[str, Callable[[], None]]:
    """Return the pipelines by name; each turns all files into crops."""
    usual = v1.Compose(
        [
            v1.RandomResizedCrop(SIZE, scale=SCALE, interpolation=v1.InterpolationMode.BICUBIC),
            v1.ToTensor(),
            v1.Normalize([0.5] * 3, [0.5] * 3),
        ]
    )
    crop = train_crop(InputConfig(image_size=SIZE), rng=np.random.default_rng(0), scale=SCALE)

    def usual_one(data: bytes) -> Tensor:
        with Image.open(io.BytesIO(data)) as image:
            return usual(image.convert("RGB"))  # pyright: ignore[reportReturnType]

    def ours_one(data: bytes) -> Tensor:
        return decode(ImageBytes(data=data), "made up", crop=crop)

    def normalized_one(data: bytes) -> Tensor:
        return ours_one(data).float().div_(127.5).sub_(1)

    def over_all(one: Callable[[bytes], Tensor]) -> Callable[[], None]:
        def run() -> None:
            for data in files:
                assert one(data).shape == (3, SIZE, SIZE)

        return run

    return {
        "usual": over_all(usual_one),
        "ours": over_all(ours_one),
        "ours + normalise": over_all(normalized_one),
    }


def main() -> None:
    """Measure, print a table and write JSON on request."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument(
        "--quick", action="store_true", help="few images: checks the script, measures nothing"
    )
    parser.add_argument("--repeats", type=int, default=9, help="rounds after the warm-up")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    keep_memory()
    repeats, num_files = (2, 4) if args.quick else (args.repeats, 100)
    files = [made_up_photo(seed) for seed in range(num_files)]
    kilobytes = statistics.mean(len(data) for data in files) / 1000
    about = machine()
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    print(
        f"{num_files} JPEGs of 640×480, {kilobytes:.0f} kB on average, to {SIZE}²; median (least–largest) of {repeats} rounds"
    )
    seconds = interleaved(variants(files), repeats)
    rows = []
    for name, times in seconds.items():
        rate = num_files / statistics.median(times)
        median, low, high = ratio(seconds["usual"], times)
        verdict = GOAL.check(median) if name == "ours" and not args.quick else ""
        print(
            f"{name:17} {rate:7.0f} images/s/core   {median:.2f}× ({low:.2f}–{high:.2f})   {verdict}"
        )
        rows.append(
            {
                "name": name,
                "rate": rate,
                "ratio": median,
                "min": low,
                "max": high,
                "seconds": times,
                "goal": verdict,
            }
        )
    if args.json:
        args.json.write_text(
            json.dumps({"machine": about, "kilobytes": kilobytes, "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()

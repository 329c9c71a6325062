"""Measure the memory of `eve index` by the number of images.

    python benchmarks/index_memory.py [--images 1000 100000 1000000] [--folder FOLDER] [--json FILE] [--quick]

Images are synthetic PNG files of 8×8 pixels, all different, a thousand per folder, encoded by a small untrained run. The
command runs as its own process. Its private pages are sampled twenty times a second; the resident peak also counts shared and
mapped pages. The sizes use the same folder, so each adds images to the same index. At the end the command runs once more
without changes.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from timing import machine

from eve_vl.utils.console import progress
from search import small_run

PER_FOLDER, SIDE = 1000, 8


def made_up_images(folder: Path, first: int, end: int) -> None:
    """Write the missing images by number."""
    for start in progress(
        range(first, end, PER_FOLDER), "drawing", len(range(first, end, PER_FOLDER))
    ):
        inside = folder / f"{start:08}"
        inside.mkdir(parents=True, exist_ok=True)
        for number in range(start, min(start + PER_FOLDER, end)):
            pixels = np.random.default_rng(number).integers(
                256, size=(SIDE, SIDE, 3), dtype=np.uint8
            )
            Image.fromarray(pixels).save(inside / f"{number:08}.png", compress_level=1)


def own_memory(process: int) -> int:
    """Return the bytes of a process's private pages, 0 after its end."""
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return next(
        (
            1024 * int(line.split()[1])
            for line in status.splitlines()
            if line.startswith("RssAnon:")
        ),
        0,
    )


def measured(command: list[str]) -> dict[str, float]:
    """Run a command; return its seconds and memory peaks in bytes."""
    start, own, resident = time.perf_counter(), 0, 0
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            own = max(own, own_memory(process.pid))
            if (file := Path(f"/proc/{process.pid}/status")).exists():
                peaks = [
                    line for line in file.read_text().splitlines() if line.startswith("VmHWM:")
                ]
                resident = max(resident, *(1024 * int(line.split()[1]) for line in peaks), 0)
            time.sleep(0.05)
        assert process.stdout is not None
        if process.returncode:
            sys.exit(f"error: {' '.join(command)} ended with {process.returncode}")
        print(process.stdout.read().strip().splitlines()[0])
    return {"seconds": time.perf_counter() - start, "own": own, "resident": resident}


def main() -> None:
    """Measure, print and write JSON on request."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--images",
        type=int,
        nargs="+",
        default=[1000, 100_000, 1_000_000],
        help="numbers of images",
    )
    parser.add_argument(
        "--folder", type=Path, help="folder for the images (default: a temporary folder)"
    )
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="little of everything: checks the script, measures nothing",
    )
    args = parser.parse_args()
    numbers = [4, 8] if args.quick else sorted(args.images)
    about = machine()
    print(", ".join(f"{name} {value}" for name, value in about.items()))
    found = []
    with tempfile.TemporaryDirectory(dir=args.folder) as place:
        folder = Path(place)
        small_run(folder / "run", 256, 32)
        command = [
            sys.executable,
            "-m",
            "eve_vl",
            "index",
            str(folder / "images"),
            "--run",
            str(folder / "run"),
        ]
        for first, num in zip([0, *numbers], [*numbers, numbers[-1]], strict=True):
            made_up_images(folder / "images", first, num)
            values = measured([*command, "--out", str(folder / "index")])
            found.append({"images": num, "added": num - first, **values})
            shown = ", ".join(
                f"{name} {values[name] / 2**20:,.0f} MB" for name in ("own", "resident")
            )
            print(
                f"{num:9,} images, {num - first:,} of them new: {shown}, {values['seconds']:,.0f} s",
                flush=True,
            )
    least, most = found[0], found[-2]
    each = (most["own"] - least["own"]) / (most["images"] - least["images"])
    print(f"{each:,.0f} bytes of own memory for each further image")
    if args.json:
        args.json.write_text(json.dumps({"machine": about, "found": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()

"""Cells of the open_clip baseline: environment, settings, images, evaluation."""

import hashlib
import json
import math
import os
import subprocess
import venv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision

from equal_compute.cells import Cell, num_read
from eve_vl.config import Config
from eve_vl.data.crops import Crop
from eve_vl.data.decoding import decode
from eve_vl.data.opening import open_sources
from eve_vl.data.records import Source
from eve_vl.data.row_dataset import NAMES_A_SIDE
from eve_vl.data.row_hashes import row_name
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.metrics import retrieval as metrics
from eve_vl.metrics.matches import Relevance
from eve_vl.metrics.ranks import best_ranks
from eve_vl.tasks.retrieval.evaluation import first_hits
from eve_vl.tasks.retrieval.search_set import SearchSet
from eve_vl.train.devices import pick_dtype
from eve_vl.utils.console import print_line, progress
from eve_vl.utils.errors import UserError
from eve_vl.utils.file_io import atomic_folder, read_json, write_file

JOB = "retrieval"
SCRIPT = Path(__file__).with_name("open_clip_train.py")
SETTINGS: Mapping[str, Any] = {
    "batch": 128,
    "rate": 1e-3,
    "warmup": 0.1,
    "patch": 16,
    "width": 192,
    "blocks": 1,
}
GRID: Mapping[str, Sequence[Any]] = {
    "batch": (64, 128, 256),
    "rate": (5e-4, 1e-3, 2e-3),
    "warmup": (0.05, 0.2),
    "patch": (16, 32),
    "width": (192,),
    "blocks": (1,),
}
TUNED = "open_clip.json"
TRAINED_WITH = "trained_with.json"
MAX_TRAINING = 100_000  # images
LIBC = {  # as `eve_vl.utils.memory.keep_memory` sets it for our runs
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str((1 << 31) - 1),
    "MALLOC_TOP_PAD_": str(64 << 20),
}


def environment(out: Path) -> Path:
    """Return the Python of open_clip's environment; build it if missing.

    The environment has our version of torch.
    """
    folder = out / "open_clip_env"
    python, ready = folder / "bin" / "python", folder / "ready"
    if not ready.is_file():
        print_line(f"building {folder}: open_clip and torch")
        venv.create(folder, clear=True, with_pip=True)
        versions = [
            f"{each.__name__}=={each.__version__.partition('+')[0]}"
            for each in (torch, torchvision)
        ]
        done = subprocess.run(
            [python, "-m", "pip", "install", "--quiet", *versions, "open_clip_torch"], check=False
        )
        if done.returncode:
            raise UserError(
                f"{folder}: pip could not install open_clip_torch; see its output above"
            )
        ready.touch()
    return python


def settings_of(out: Path, family: str) -> tuple[dict[str, Any], str]:
    """Return a family's settings (tuned or default) and their origin in words."""
    tuned = read_json(out / TUNED, dict) if (out / TUNED).is_file() else {}
    if family not in tuned:
        return dict(SETTINGS), "not tuned"
    found = tuned[family]
    how = f"best of {len(found['tried'])} by validation within {found['budget']:g} core-seconds"
    return {**SETTINGS, **found["settings"]}, how


def write_training(folder: Path, config: Config) -> None:
    """Write the training images of `config` with their captions.

    They are so large that the smallest crop has the size of the input.
    """
    if folder.is_dir():
        return
    side = math.ceil(config.input.image_size / math.sqrt(config.data.crop_scale[0]))
    (source,) = open_sources(config.data.train, config.data, config.input.image_size)
    with atomic_folder(folder) as temporary:
        captions = write_images(
            temporary, [(source, row) for row in range(min(len(source), MAX_TRAINING))], side
        )
        flips = [
            config.data.flip and not any(map(NAMES_A_SIDE.search, given)) for given in captions
        ]
        (temporary / "texts.json").write_text(json.dumps({"captions": captions, "may_flip": flips}))


def write_images(
    folder: Path, places: Sequence[tuple[Source[Any], int]], side: int
) -> list[Sequence[str]]:
    """Write images.npy, uint8 (N, 3, S, S), and return the captions. side: S, in pixels."""
    captions = []
    pixels_NCHW = np.lib.format.open_memmap(
        folder / "images.npy", "w+", np.uint8, (len(places), 3, side, side)
    )
    for number, (source, row) in enumerate(progress(places, "decoding images", len(places))):
        pair = source[row]
        pixels_NCHW[number] = decode(pair.image, pair.where, crop=Crop(size=side)).numpy()
        captions.append(pair.captions)
    pixels_NCHW.flush()
    return captions


def searched(source: str, config: Config) -> SearchSet:
    """Return the retrieval set of our own runs."""
    sources = open_sources([source], config.data, config.input.image_size)
    config = replace(config, data=replace(config.data, val_samples=num_read(source, sources)))
    return SearchSet(
        sources, config, Tokenizer.train(["any will do"], 300)
    )  # the tokenizer only affects batching


def write_reading(folder: Path, source: str, config: Config) -> None:
    """Write the images and texts to evaluate on."""
    if folder.is_dir():
        return
    search = searched(source, config)
    with atomic_folder(folder) as temporary:
        places = [(image.source, image.row) for image in search.images]
        write_images(temporary, places, config.input.image_size)
        (temporary / "texts.json").write_text(json.dumps({"texts": search.texts}))


def numbers_of(
    search: SearchSet, images_ID: np.ndarray, texts_TD: np.ndarray
) -> tuple[dict[str, float], dict[str, float]]:
    """Evaluate features by our own protocol; return numbers and first hits per query.

    The protocol merges equal captions.
    """
    image_P = [image for image, texts in enumerate(search.captions_of) for _ in texts]
    text_P = [text for texts in search.captions_of for text in texts]
    relevance = Relevance.from_pairs(image_P, text_P, len(images_ID), len(texts_TD))
    images, texts = torch.from_numpy(images_ID), torch.from_numpy(texts_TD)
    ranks_I = best_ranks(images, texts, relevance.texts_of_image)
    ranks_T = best_ranks(texts, images, relevance.images_of_text)
    names = [row_name(image.source[image.row]) for image in search.images]
    return metrics.summary(ranks_I, ranks_T, relevance.image_T), first_hits(
        names, relevance, ranks_I, ranks_T
    )


@dataclass(frozen=True)
class OpenClipCell(Cell):
    """A cell that open_clip trains."""

    settings: Mapping[str, Any]
    name: str = ""
    """Name of the settings during tuning."""

    @property
    def folder(self) -> Path:
        """Folder of its files."""
        return super().folder / self.name

    @property
    def config(self) -> Config:
        """Config with image size, crop and evaluation data."""
        return self.plan[-1].config

    def given(self, part: str, source: str) -> Path:
        """Return the folder of a source's decoded images and texts.

        Its name has a hash of the rows and settings.
        """
        rows = Path(source).read_bytes() if Path(source).is_file() else b""
        made_of = (
            source,
            self.config.input.image_size,
            self.config.data.crop_scale,
            self.config.data.flip,
            hashlib.sha1(rows).hexdigest(),
        )
        return (
            self.out
            / "data"
            / self.task
            / f"open_clip_{part}_{hashlib.sha1(repr(made_of).encode()).hexdigest()[:8]}"
        )

    def stages(self, job: str) -> list[dict[str, Any]]:
        """Return the settings that decide its numbers."""
        return [{"run": "open_clip", **self.settings}]

    def cost(self) -> float:
        """Return the remaining core-seconds."""
        return 0 if (self.folder / "result.json").is_file() else self.budget

    def prepare(self) -> None:
        """Write its images and texts, once for all cells of a task."""
        write_training(self.given("train", self.data.train), self.config)
        for suffix, source in self.data.read[self.on].items():
            write_reading(self.given(self.on + suffix, source), source, self.config)

    def trained_with(self) -> dict[str, Any]:
        """Return the flags of its training."""
        data = self.config.data
        flags = {
            "data": str(self.given("train", self.data.train)),
            "budget": self.budget,
            "seed": self.seed,
            **self.settings,
        }
        dtype = str(pick_dtype("auto", torch.device("cpu"))).removeprefix("torch.")
        return flags | {
            "side": self.config.input.image_size,
            "dtype": dtype,
            "augment": data.augment,
            "crop": [*data.crop_scale],
        }

    def refuse_other(self) -> None:
        """Raise UserError if other flags started this training; else write the flags."""
        path, flags = self.folder / TRAINED_WITH, self.trained_with()
        if (self.folder / "state.pt").is_file() and (
            not path.is_file() or read_json(path, dict) != flags
        ):
            raise UserError(
                f"{self.folder}: was started with other settings than {self.arm} has now; move it "
                "away"
            )
        write_file(path, json.dumps(flags, indent=1) + "\n")

    def do(self) -> None:
        """Train or resume, then evaluate."""
        self.refuse_other()
        numbers, rows = {}, {}
        for suffix, source in self.data.read[self.on].items():
            features = self.folder / f"{self.on}{suffix}.npz"
            flags = {
                "read": self.given(self.on + suffix, source),
                "features": features,
                "out": self.folder,
                **self.trained_with(),
            }
            values = {
                name: map(str, value if isinstance(value, list) else [value])
                for name, value in flags.items()
            }
            words = [word for name, given in values.items() for word in (f"--{name}", *given)]
            surroundings = {**os.environ, **LIBC, "OMP_NUM_THREADS": "1", "PYTHONPATH": ""}
            subprocess.run([environment(self.out), SCRIPT, *words], check=True, env=surroundings)
            with np.load(features) as found:
                of_part, hits = numbers_of(
                    searched(source, self.config), found["images"], found["texts"]
                )
            numbers |= {name + suffix: value for name, value in of_part.items()}
            rows |= {suffix + name: value for name, value in hits.items()}
        result = read_json(self.folder / "result.json", dict)
        self.keep(JOB, [result["core_seconds"]], [result["pairs"]], numbers, rows)


def versions(cells: Sequence[OpenClipCell]) -> list[str]:
    """Return the open_clip versions of the finished cells."""
    files = [cell.folder / "result.json" for cell in cells]
    return sorted(
        {
            read_json(path, dict).get("open_clip", "of unknown version")
            for path in files
            if path.is_file()
        }
    )


def choose(out: Path, family: str, cells: Sequence[OpenClipCell]) -> None:
    """Store the settings with the highest mean recall.

    Candidates are the settings of these cells and of earlier ones with the same budget.
    """
    tuned = read_json(out / TUNED, dict) if (out / TUNED).is_file() else {}
    before, now = (
        tuned.get(family, {"budget": cells[0].budget, "tried": []}),
        [dict(cell.settings) for cell in cells],
    )
    tried = [
        each
        for each in before["tried"]
        if before["budget"] == cells[0].budget and each["settings"] not in now
    ]
    for cell in cells:
        result = cell.result(JOB)
        assert result is not None
        tried.append({"settings": dict(cell.settings), "r_mean": result["numbers"]["r_mean"]})
    best = max(tried, key=lambda each: each["r_mean"])
    tuned[family] = {"settings": best["settings"], "budget": cells[0].budget, "tried": tried}
    write_file(out / TUNED, json.dumps(tuned, indent=1) + "\n")

"""`Eve`, the Python interface to a run.

`Eve.load(RUN)` has a method for each call that the run's heads allow. All calls run in float32 and
in evaluation mode, so the numbers equal those of `eve evaluate`. Other rows of a batch never change
a result, except with model.routing reference, whose experts drop tokens.

Letters: n inputs, d width of features.
"""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eve_vl.builtin.names import is_name
from eve_vl.config import DataConfig, TaskConfig
from eve_vl.config.generated_sources import generated
from eve_vl.config.kinds import all_kinds
from eve_vl.config.plugins import load_file
from eve_vl.interop.run_names import run_path
from eve_vl.predict.batching import chunked
from eve_vl.predict.requests import known_requests
from eve_vl.predict.user_images import Images
from eve_vl.predict.user_texts import Texts
from eve_vl.run.loading import LoadedRun, load_run
from eve_vl.search.index import Index
from eve_vl.tasks.predictor import predictor_class, predictor_of
from eve_vl.train.devices import pick_device
from eve_vl.utils.errors import BadSampleError, UserError

Sources = str | Path | Iterable[str | Path]
ALWAYS = ("encode_image", "encode_text")


class NoSuchCallError(UserError, AttributeError):
    """A call that the run's heads do not allow; `hasattr` is False."""


class Features(np.ndarray):
    """Features, float32 (n, d), with the names of their rows.

    Results of arithmetic are plain arrays.
    """

    names: tuple[str, ...] = ()
    """Name of each row: the image's path, its row in a source, or the text itself; slices have no
    names."""
    skipped: tuple[BadSampleError, ...] = ()
    """Rows of sources that could not be used, with `where` and `reason`."""

    def __array_wrap__(
        self, array: np.ndarray, context: Any = None, return_scalar: bool = False
    ) -> Any:
        return array[()] if return_scalar else np.asarray(array)


class Eve:
    """A loaded run.

    `calls` lists its methods, such as `answer` and `match` (see `help(eve.answer)`). Any other call
    raises UserError, which says how to get a run that allows it. `predict.requests` documents all
    calls.

    Images are paths, encoded bytes, Pillow images, arrays (H, W, 3) or (H, W), or tensors (3, H, W)
    or (H, W). Values are uint8 or floats in [0, 1]. Images are squeezed to the run's square, as in
    evaluation. Texts are cut after input.text_length tokens, as in training. UserError names the
    unusable input, a list's item by its index.
    """

    def __init__(self, run: LoadedRun):
        self.run = run
        self.task = run.task
        self.tokenizer = run.tokenizer
        self.predictor = predictor_of(run)
        self.inputs = self.predictor.inputs

    @classmethod
    def load(
        cls,
        path: str | Path,
        device: str | torch.device = "auto",
        *,
        code: str | Path | None = None,
    ) -> "Eve":
        """Load a run folder (its best checkpoint, else its newest) or one checkpoint.

        device: cpu, cuda, cuda:1, mps, …; auto: cuda if available. code: Python file that defines
        the run's task; the file is executed. Raises UserError.
        """
        if code is not None:
            load_file(code)
        return cls(load_run(run_path(path), pick_device(device)))

    @property
    def calls(self) -> tuple[str, ...]:
        """Return the names of the calls that the run's heads allow."""
        return (*ALWAYS, *self.predictor.calls())

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Return a call of the run. Raises UserError if the run's heads do not allow it."""
        if name not in known_requests():
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        self.need(name)
        return self.predictor.call(name)

    def __repr__(self) -> str:
        config = self.run.config
        calls = ", ".join(self.calls)
        return f"Eve({self.run.shown}: {config.task.name}, step {self.run.step}; calls {calls})"

    def __dir__(self) -> Iterable[str]:
        """List attributes and calls."""
        return [*super().__dir__(), *self.calls]

    def encode_image(
        self, images: Images, batch_size: int = 64, *, progress: bool = False, **reading: Any
    ) -> Features:
        """Return features of one or several images, (n, d), each of length 1, in order.

        images: one image, a list, an iterator, an array (n, H, W, 3), a tensor (n, 3, H, W), or a
        source that --data.train accepts: a folder of images, a table, shards. Unusable rows of a
        source are skipped and listed in `skipped`. At most `batch_size` images are in memory.
        progress: show a bar. reading: options for sources, such as image_column="photo" (see
        `readers.open_source`).

        Features of a run with contrast (retrieval, or pre-trained with it) compare with those of
        texts by dot product. Features of other runs are the normalised [CLS] state of the image
        without a text: compare them with images only.
        """

        def compute(pixels: list[Tensor]) -> Tensor:
            return self.task.image_features(torch.stack(pixels).to(self.run.device))

        skipped: list[BadSampleError] = []
        data = DataConfig(**reading)
        rows = self.inputs.stream_images(images, data, skipped=skipped, progress=progress)
        return self._features(rows, compute, batch_size, skipped)

    def encode_text(
        self, texts: Texts, batch_size: int = 64, *, progress: bool = False, **reading: Any
    ) -> Features:
        """Return features of one or several texts, (n, d), each of length 1, in order.

        texts: a Path is a source (a file of texts, a table), of which all texts are encoded. See
        `encode_image`.
        """

        def compute(ids: list[np.ndarray]) -> Tensor:
            return self.task.text_features(*self.inputs.padded(ids))

        skipped: list[BadSampleError] = []
        data = DataConfig(**reading)
        rows = self.inputs.stream_texts(texts, data, skipped=skipped, progress=progress)
        return self._features(rows, compute, batch_size, skipped)

    @torch.no_grad()
    def _features(
        self,
        rows: Iterator[tuple[str, Any]],
        compute: Callable[[list[Any]], Tensor],
        batch_size: int,
        skipped: list[BadSampleError],
    ) -> Features:
        """Return the features of (name, value) rows; `skipped` fills while they are read."""
        names: list[str] = []
        parts = [np.zeros((0, self.task.feature_dim), np.float32)]
        for chunk in chunked(rows, batch_size):
            names += [name for name, _ in chunk]
            parts.append(compute([value for _, value in chunk]).cpu().numpy())
        features = np.concatenate(parts).view(Features)
        features.names = tuple(names)
        features.skipped = tuple(skipped)
        return features

    def index(
        self,
        sources: Sources = (),
        out: str | Path = "index",
        *,
        batch_size: int = 64,
        **reading: Any,
    ) -> Index:
        """Build or update an index of images and their captions, and return it.

        sources: folders of images, tables or shards; default: the index's own. New and changed
        images are read, deleted ones are removed; `changes` of the index counts them and lists
        unreadable images. An interrupted update resumes. reading: options for sources, as in
        `encode_image`, and `drop`: sources to remove. To open an index again:
        `eve_vl.search.index.Index.open(FOLDER, eve)`. Raises UserError, also for the index of
        another run.
        """
        return Index.update(out, self, sources, batch_size=batch_size, **reading)

    def need(self, call: str) -> None:
        """Raise UserError if the run's heads do not allow a call.

        The error says how to get a run that does.
        """
        if call in self.calls:
            return
        run_name = self.run.shown
        if call == "experts":
            fix = "to get one with experts: eve pretrain RECIPE --model.deep-ffn moe"
            raise NoSuchCallError(f"experts: {run_name} is a run without experts; {fix}")
        task_name = self.run.config.task.name
        problem = f"{run_name} is a run of task {task_name}, which allows {', '.join(self.calls)}"
        fix = self.predictor.how_to_get(call) or self._how_to_train(call)
        raise NoSuchCallError(f"{call}: {problem}; to get one that allows {call}: {fix}")

    def _how_to_train(self, call: str) -> str:
        """Return the command that trains a run of another task, which allows a call."""
        kinds = [
            kind
            for kind in all_kinds(TaskConfig, "tasks").values()
            if call in predictor_class(kind).requests() and not kind.is_pretraining
        ]
        init = self._existing_init()
        if not kinds:
            command = "eve pretrain, or the run that this one started from"
            return f"{command}, {init}" if init else command
        kind = kinds[0]
        config = self.run.config
        problems = config.model.problems_with(kind(), "image_text")
        if problems:
            return f"eve pretrain of another model, because {problems[0]}"

        has_own_data = not all(map(generated, config.data.train))
        recipe = kind.recipe or kind.name
        if not kind.recipe and config.input.image_size < 224:
            recipe = (kind.small_recipe or kind.name) if has_own_data else f"demo_{kind.name}"
            if call in ("match", "explain"):  # the rest have no matching head
                recipe = "scenes_retrieval"
        command = f"eve finetune {recipe} --init {self._start(init)}"
        if has_own_data:
            command += " --data.train PATH --data.val held-out"
        return command

    def _existing_init(self) -> Path | None:
        """Return the run that this one started from, unless it is gone or not in the package."""
        init = self.run.config.init
        if init is None or is_name(self.run.shown):
            return None
        if is_name(init) or init.exists():
            return init
        return None

    def _start(self, init: Path | None) -> str | Path:
        """Return the run to fine-tune from: this one if it was pre-trained, or its start."""
        if self.run.config.task.is_pretraining:
            return self.run.shown
        if init is not None:
            return init
        return self.run.shown if self.run.config.init else "PRETRAINED"

"""A run in the hands of a person: `Eve.load(RUN)`, then one call for each thing that its heads can do.

Everything is computed in float32 and in evaluation mode, so that the numbers are those of `eve evaluate` and a picture's
or a text's neighbours in a batch never change its result (except in runs of model.routing official, whose experts drop tokens).

Letters: n inputs, d width of features.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from eve_vl.config import TaskConfig, kinds_of
from eve_vl.config.code import load_file
from eve_vl.data.inputs import GivenImage, ImageLike, given_images, given_texts
from eve_vl.errors import UserError
from eve_vl.loading import LoadedRun, load_run
from eve_vl.train.device import pick_device

Item = TypeVar("Item")
ALWAYS = ("encode_image", "encode_text")


class NoSuchCallError(UserError, AttributeError):
    """A call that needs other heads; for `hasattr` it is not there."""


class Eve:
    """One run. `calls` names what it can do, as `answer` or `match`, which are methods then (`help(eve.answer)` tells more);
    any other call raises UserError, which says how to get a run that can.

    Pictures are paths, encoded bytes, Pillow images, arrays (H, W, 3) or (H, W), or tensors (3, H, W) or (H, W), of uint8
    or of float in [0, 1]. They are squeezed to the run's square, as in evaluation. Texts of more than input.text_length
    tokens are cut, as in training. UserError names what cannot be used, a list's items by their place from 0.
    """

    def __init__(self, run: LoadedRun):
        self.run, self.task, self.tokenizer = run, run.task, run.tokenizer
        self._calls = run.calls

    @classmethod
    def load(cls, path: str | Path, device: str = "auto", *, code: str | Path | None = None) -> "Eve":
        """Load a run folder (its best weights, else its newest) or one of its checkpoints.

        device: auto (cuda where there is one), cpu or cuda. code: the file of the run's own task, which is then run; a run
        that needs one says so. Raises UserError.
        """
        if code is not None:
            load_file(code)
        if device not in ("auto", "cpu", "cuda"):
            raise UserError(f"device {device!r} is not one of auto, cpu, cuda")
        return cls(load_run(Path(path).expanduser(), pick_device(device), check=False))

    @property
    def calls(self) -> tuple[str, ...]:
        """Return the names of the calls that this run's heads allow."""
        return (*ALWAYS, *self._calls.offered())

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Return a call of the run's task. Raises UserError for one that needs other heads."""
        known = {call for kind in kinds_of(TaskConfig).values() for call in kind.calls} | {"look"}
        if name not in known:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        self.need(name)
        return getattr(self._calls, name)

    def __dir__(self) -> Iterable[str]:
        """List the calls too."""
        return [*super().__dir__(), *self.calls]

    def encode_image(self, images: ImageLike | Sequence[ImageLike], batch_size: int = 64) -> np.ndarray:
        """Return features of one picture or a list of them, float32 (n, d), each of length 1, in order.

        Of a run with contrast (retrieval, or pre-trained with it) they compare with texts by dot product. Of any other they are
        the normalised [CLS] state of the picture alone: compare pictures with pictures only.
        """
        return self._gather(map(self._encode_images, _chunks(given_images(images), batch_size)))

    def encode_text(self, texts: str | Sequence[str], batch_size: int = 64) -> np.ndarray:
        """Return features of one text or a list of them, float32 (n, d), each of length 1, in order; see `encode_image`."""
        return self._gather(map(self._encode_texts, _chunks(given_texts(texts), batch_size)))

    @torch.no_grad()
    def _encode_images(self, images: Sequence[GivenImage]) -> np.ndarray:
        return self.task.image_features(self._calls.inputs.images(images)).cpu().numpy()

    @torch.no_grad()
    def _encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        return self.task.text_features(*self._calls.inputs.texts(texts)).cpu().numpy()

    def _gather(self, features: Iterable[np.ndarray]) -> np.ndarray:
        return np.concatenate([np.zeros((0, self.task.feature_dim), np.float32), *features])

    def need(self, call: str) -> None:
        """Raise UserError, which says how to get a run that does, if the run's heads do not allow a call."""
        if call in self.calls:
            return
        config = self.run.config
        tasks = [kind for kind in kinds_of(TaskConfig).values() if call in (*kind.calls, "look")]  # all can look
        finetuned = [kind.name for kind in tasks if not kind.is_pretraining]
        if (how := self._calls.how_to_get(call)) is None and finetuned:
            small = "demo_" if config.input.image_size < 224 else ""
            start = self.run.folder if config.task.is_pretraining else config.init or "PRETRAINED"
            how = f"eve finetune {small}{finetuned[0]} --init {start}"
        elif how is None:
            how = "eve pretrain, or the run that this one started from" + (f", {config.init}" if config.init else "")
        raise NoSuchCallError(
            f"{call}: {self.run.folder} is a run of task {config.task.name}, which allows {', '.join(self.calls)}; "
            f"to get one that allows {call}: {how}"
        )


def _chunks(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    if size < 1:
        raise UserError(f"batch_size {size} is not positive")
    return (items[start : start + size] for start in range(0, len(items), size))

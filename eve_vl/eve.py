"""A run in the hands of a person: `Eve.load(RUN)`, then one call for each thing that its heads can do.

Everything is computed in float32 and in evaluation mode, so that the numbers are those of `eve evaluate` and an image's
or a text's neighbours in a batch never change its result (except with model.routing reference, whose experts drop tokens).

Letters: n inputs, d width of features.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eve_vl import builtin
from eve_vl.config import DataConfig, TaskConfig, kinds_of
from eve_vl.config.plugins import load_file
from eve_vl.config.tasks import ANY
from eve_vl.predict.inputs import Images, Texts, chunked
from eve_vl.run.loading import LoadedRun, load_run
from eve_vl.search.index import Index
from eve_vl.train.device import pick_device
from eve_vl.utils.errors import BadSampleError, UserError

ALWAYS = ("encode_image", "encode_text")


class NoSuchCallError(UserError, AttributeError):
    """A call that needs other heads; for `hasattr` it is not there."""


class Features(np.ndarray):
    """Features, float32 (n, d), that know what they are of; anything computed from them is a plain array."""

    names: tuple[str, ...] = ()
    """Of each row: the path of the image, or the row of a source that holds it; the text itself. A part of it has none."""
    skipped: tuple[BadSampleError, ...] = ()
    """Rows of sources that could not be used: `where` and `reason`."""

    def __array_wrap__(self, array: np.ndarray, context: Any = None, return_scalar: bool = False) -> Any:
        return array[()] if return_scalar else np.asarray(array)


class Eve:
    """One run. `calls` names what it can do, as `answer` or `match`, which are methods then (`help(eve.answer)` tells more);
    any other call raises UserError, which says how to get a run that can.

    Images are paths, encoded bytes, Pillow images, arrays (H, W, 3) or (H, W), or tensors (3, H, W) or (H, W), of uint8
    or of float in [0, 1]. They are squeezed to the run's square, as in evaluation. Texts of more than input.text_length
    tokens are cut, as in training. UserError names what cannot be used, a list's items by their place from 0.
    """

    def __init__(self, run: LoadedRun):
        self.run, self.task, self.tokenizer = run, run.task, run.tokenizer
        self._predictor = run.predictor
        self.inputs = self._predictor.inputs

    @classmethod
    def load(cls, path: str | Path, device: str | torch.device = "auto", *, code: str | Path | None = None) -> "Eve":
        """Load a run folder (its best weights, else its newest) or one of its checkpoints.

        device: as torch spells it, such as cpu, cuda, cuda:1 or mps; auto: cuda where there is one. code: the file of the run's
        own task, which is then run; a run that needs one says so. Raises UserError.
        """
        if code is not None:
            load_file(code)
        return cls(load_run(path, pick_device(device)))

    @property
    def calls(self) -> tuple[str, ...]:
        """Return the names of the calls that this run's heads allow."""
        return (*ALWAYS, *self._predictor.everything())

    def __getattr__(self, name: str) -> Callable[..., Any]:
        """Return a call of the run's task. Raises UserError for one that needs other heads."""
        known = {call for kind in kinds_of(TaskConfig).values() for call in kind.calls} | {*ANY}
        if name not in known:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        self.need(name)
        return getattr(self._predictor, name)

    def __repr__(self) -> str:
        config = self.run.config
        return f"Eve({self.run.shown}: {config.task.name}, step {self.run.step}; calls {', '.join(self.calls)})"

    def __dir__(self) -> Iterable[str]:
        """List the calls too."""
        return [*super().__dir__(), *self.calls]

    def encode_image(self, images: Images, batch_size: int = 64, *, progress: bool = False, **reading: Any) -> Features:
        """Return features of one image or several, (n, d), each of length 1, in order.

        Several are a list, an iterator, an array (n, H, W, 3), a tensor (n, 3, H, W), or what --data.train takes: a folder of
        images, a table, shards. Rows of these that cannot be used are skipped, and listed. At most `batch_size` images are
        in memory. reading: how to read a source, as image_column="photo" (see `readers.open_source`). progress: show a bar.

        Of a run with contrast (retrieval, or pre-trained with it) they compare with texts by dot product. Of any other they are
        the normalised [CLS] state of the image alone: compare images with images only.
        """
        compute = lambda pixels: self.task.image_features(torch.stack(pixels).to(self.run.device))  # noqa: E731
        return self._features("image", images, compute, batch_size, progress, DataConfig(**reading))

    def encode_text(self, texts: Texts, batch_size: int = 64, *, progress: bool = False, **reading: Any) -> Features:
        """Return features of one text or several, (n, d), each of length 1, in order; of a Path, which is a file of texts, a
        table or another source, those of all its texts. See `encode_image`."""
        compute = lambda ids: self.task.text_features(*self._predictor.inputs.padded(ids))  # noqa: E731
        return self._features("text", texts, compute, batch_size, progress, DataConfig(**reading))

    @torch.no_grad()
    def _features(
        self, what: str, given: Any, compute: Callable[[list[Any]], Tensor], batch_size: int, progress: bool, data: DataConfig
    ) -> Features:
        names: list[str] = []
        skipped: list[BadSampleError] = []
        parts = [np.zeros((0, self.task.feature_dim), np.float32)]
        rows = self._predictor.inputs.stream(given, what, data, skipped=skipped, progress=progress)
        for chunk in chunked(rows, batch_size):
            names += [name for name, _ in chunk]
            parts.append(compute([value for _, value in chunk]).cpu().numpy())
        features = np.concatenate(parts).view(Features)
        features.names, features.skipped = tuple(names), tuple(skipped)
        return features

    def index(
        self,
        sources: str | Path | Iterable[str | Path] = (),
        out: str | Path = "index",
        *,
        batch_size: int = 64,
        **reading: Any,
    ) -> Index:
        """Make an index of images and of their captions, or bring it up to date, and return it, to `search` in.

        sources: folders of images, tables or shards; none: those that the index has. What is new or has changed in them is
        read, what is gone is forgotten; `changes` of the index says what that was, and which images are broken. What was
        interrupted goes on where it was. reading: how to read sources, as in `encode_image`; drop: sources to forget.
        To search in it later: `eve_vl.search.index.Index.open(FOLDER, eve)`. Raises UserError, also if it is another run's.
        """
        return Index.update(out, self, sources, batch_size=batch_size, **reading)

    def need(self, call: str) -> None:
        """Raise UserError, which says how to get a run that does, if the run's heads do not allow a call."""
        if call in self.calls:
            return
        config, shown = self.run.config, self.run.shown
        init = config.init  # which may be gone, and which the package does not bring
        if init and (builtin.is_named(shown) or not (builtin.is_named(init) or init.exists())):
            init = None
        if call == "experts":
            problem = f"experts: {shown} is a run without experts, so its tokens have nothing to choose from"
            raise NoSuchCallError(f"{problem}; to get one with them: eve pretrain RECIPE --model.deep-ffn moe")
        tasks = [kind for kind in kinds_of(TaskConfig).values() if call in (*kind.calls, "explain")]  # all can look
        finetuned = [kind for kind in tasks if not kind.is_pretraining]
        if (how := self._predictor.how_to_get(call)) is None and finetuned:
            unfit = config.model.problems_with(finetuned[0](), "image_text")
            # the search of the demo has no matching head
            small = ("scenes_" if call in ("match", "explain") else "demo_") if config.input.image_size < 224 else ""
            start = shown if config.task.is_pretraining else init or (shown if config.init else "PRETRAINED")
            how = f"eve finetune {finetuned[0].recipe or small + finetuned[0].name} --init {start}"
            how = f"eve pretrain of another model, for {unfit[0]}" if unfit else how
        elif how is None:
            how = "eve pretrain, or the run that this one started from" + (f", {init}" if init else "")
        raise NoSuchCallError(
            f"{call}: {shown} is a run of task {config.task.name}, which allows {', '.join(self.calls)}; "
            f"to get one that allows {call}: {how}"
        )

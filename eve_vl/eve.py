"""A run in the hands of a person: `Eve.load(RUN)`, then one call for each thing that its heads can do.

Everything is computed in float32 and in evaluation mode, so that the numbers are those of `eve evaluate` and a picture's
or a text's neighbours in a batch never change its result (except in runs of model.routing official, whose experts drop tokens).

Letters: B batch, M masked tokens, V vocabulary, n inputs, d width of features, H height, W width.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, overload

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from eve_vl.config import MaskedSignalConfig
from eve_vl.data import inputs
from eve_vl.data.batch import normalize
from eve_vl.data.inputs import GivenImage, ImageLike, given_image, given_images, given_text, given_texts
from eve_vl.data.masking import generator, mask_patches, mask_tokens
from eve_vl.data.tokenizer import MASK_TEXT
from eve_vl.errors import UserError
from eve_vl.look import Look, can_contrast, can_match, look, match_logits
from eve_vl.model.embed import Tokens, hide, patchify, to_pictures
from eve_vl.run import LoadedRun, load_run
from eve_vl.tasks.masked_signal import MaskedSignal
from eve_vl.tasks.nlvr2 import NLVR2
from eve_vl.tasks.retrieval import Retrieval
from eve_vl.tasks.vqa import VQA
from eve_vl.train.device import pick_device

Item = TypeVar("Item")
ALWAYS = ("encode_image", "encode_text")
FINETUNED_FOR = {"match": "retrieval", "answer": "vqa", "judge": "nlvr2", "look": "vqa"}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """An answer of the run's list, and the probability that it is right; several may be."""

    answer: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """Whether a statement is judged to be true, and the probability that it is."""

    verdict: bool
    probability: float


@dataclass(frozen=True, kw_only=True)
class Guess:
    """A token as people would read it, and its probability; those of the whole vocabulary add up to 1."""

    text: str
    probability: float


@dataclass(frozen=True, kw_only=True)
class Filled:
    """A text whose masks are filled with the best guesses, and the guesses for each mask, best first."""

    text: str
    guesses: tuple[tuple[Guess, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Reconstruction:
    """A picture as the run sees it, with patches in grey, and with these rebuilt; uint8 (image_size, image_size, 3)."""

    original: np.ndarray
    masked: np.ndarray
    rebuilt: np.ndarray


class Eve:
    """One run. `calls` names what it can do; any other call raises UserError, which says how to get a run that can.

    Pictures are paths, encoded bytes, Pillow images, arrays (H, W, 3) or (H, W), or tensors (3, H, W) or (H, W), of uint8
    or of float in [0, 1]. They are squeezed to the run's square, as in evaluation. Texts of more than model.text_length
    tokens are cut, as in training. UserError names what cannot be used, a list's items by their place from 0.
    """

    def __init__(self, run: LoadedRun):
        self.run, self.model, self.task, self.tokenizer = run, run.config.model, run.task, run.tokenizer
        self.device = next(run.task.parameters()).device
        self._head = run.task.contrast.features if can_contrast(run.task) else None

    @classmethod
    def load(cls, path: str | Path, device: str = "auto") -> "Eve":
        """Load a run folder (its best weights, else its newest) or one of its checkpoints.

        device: auto (cuda where there is one), cpu or cuda. Raises UserError.
        """
        if device not in ("auto", "cpu", "cuda"):
            raise UserError(f"device {device!r} is not one of auto, cpu, cuda")
        return cls(load_run(Path(path).expanduser(), pick_device(device)))

    @property
    def calls(self) -> tuple[str, ...]:
        """Return the names of the calls that this run's heads allow."""
        found = [*ALWAYS]
        if can_match(self.task):
            found.append("match")
        if isinstance(self.task, VQA):
            found.append("answer")
        if isinstance(self.task, NLVR2):
            found.append("judge")
        if isinstance(self.task, MaskedSignal):
            found += ["fill_mask"] * bool(self.task.settings.mlm_weight) + ["reconstruct"] * bool(self.task.settings.mim_weight)
        return (*found, "look") if {"match", "answer", "judge", "fill_mask"} & {*found} else tuple(found)

    def encode_image(self, images: ImageLike | Sequence[ImageLike], batch_size: int = 64) -> np.ndarray:
        """Return features of one picture or a list of them, float32 (n, d), each of length 1, in order.

        Of a run with contrast (retrieval, or pre-trained with task.itc_weight) they compare with texts by dot product. Of any
        other they are the normalised [CLS] state of the picture alone: compare pictures with pictures only.
        """
        return self._gather(map(self._encode_images, _parts(given_images(images), batch_size)))

    def encode_text(self, texts: str | Sequence[str], batch_size: int = 64) -> np.ndarray:
        """Return features of one text or a list of them, float32 (n, d), each of length 1, in order; see `encode_image`."""
        return self._gather(map(self._encode_texts, _parts(given_texts(texts), batch_size)))

    @overload
    def match(self, image: ImageLike, text: str, batch_size: int = 64) -> float: ...
    @overload
    def match(self, image: Sequence[ImageLike], text: Sequence[str], batch_size: int = 64) -> np.ndarray: ...
    @torch.no_grad()
    def match(
        self, image: ImageLike | Sequence[ImageLike], text: str | Sequence[str], batch_size: int = 64
    ) -> float | np.ndarray:
        """Return the probability that a picture and a text belong together; of lists, pair by pair, float32 (n,).

        In training, two of three pairs were made not to, and hard to tell from those that do.
        """
        self.need("match")
        assert can_match(self.task)
        images, texts = given_images(image), given_texts(text)
        is_one = isinstance(text, str) and not isinstance(image, list | tuple)
        if len(images) != len(texts) or isinstance(text, str) == isinstance(image, list | tuple):
            raise UserError(f"{len(images)} pictures and {len(texts)} texts given: give one of each, or lists of equal length")
        found = [np.zeros(0, np.float32)]
        for part in _parts(list(zip(images, texts, strict=True)), batch_size):
            batch = inputs.pairs([one for one, _ in part], [one for _, one in part], self.tokenizer, self.model)
            found.append(match_logits(self.task, batch.to(self.device)).softmax(1)[:, 1].cpu().numpy())
        return float(found[1][0]) if is_one else np.concatenate(found)

    @torch.no_grad()
    def answer(self, image: ImageLike, question: str, top: int = 5) -> list[Answer]:
        """Return the `top` best answers to a question about a picture, best first."""
        self.need("answer")
        assert isinstance(self.task, VQA)
        batch = inputs.pairs([given_image(image)], [given_text(question)], self.tokenizer, self.model)
        probability_A = self.task.predict(batch.to(self.device))[0][0].sigmoid()
        return [Answer(answer=self.task.answers[index], probability=value) for index, value in _best(probability_A, top)]

    @torch.no_grad()
    def judge(self, left: ImageLike, right: ImageLike, statement: str) -> Judgement:
        """Return whether a statement is true of two pictures."""
        self.need("judge")
        assert isinstance(self.task, NLVR2)
        pictures = given_image(left, "left image"), given_image(right, "right image")
        batch = inputs.statement(*pictures, given_text(statement), self.tokenizer, self.model)
        probability = self.task.predict(batch.to(self.device))[0][0].softmax(0)[1].item()
        return Judgement(verdict=probability > 0.5, probability=probability)

    @torch.no_grad()
    def fill_mask(self, image: ImageLike, text: str, top: int = 5) -> Filled:
        """Return the `top` best tokens for each "[MASK]" of a text, all of which are guessed at once."""
        self.need("fill_mask")
        assert isinstance(self.task, MaskedSignal)
        text = given_text(text)
        ids_T, _, is_masked_T = self.tokenizer.encode_with_masks(text, self.model.max_text_tokens)
        num_masks = text.count(MASK_TEXT)
        if not num_masks:
            raise UserError(f'nothing to fill in: write {MASK_TEXT} in the text, as in "a {MASK_TEXT} circle"')
        if is_masked_T.sum() < num_masks:
            raise UserError(f"a {MASK_TEXT} lies beyond the {self.model.max_text_tokens} tokens that this run reads of a text")
        batch = inputs.masked_pair(given_image(image), ids_T, self.tokenizer, self.model, is_masked_T=is_masked_T)
        batch = batch.to(self.device)
        encoded = self.task.encode(patchify(batch.pixels(), self.model.patch_size), batch, mask=True)
        guesses = tuple(
            tuple(Guess(text=self.tokenizer.word(token), probability=value) for token, value in _best(probability_V, top))
            for probability_V in self.task.predict_tokens(encoded, batch).softmax(1)
        )
        first, *rest = text.split(MASK_TEXT)
        filled = first + "".join(best[0].text + part for best, part in zip(guesses, rest, strict=True))
        return Filled(text=filled, guesses=guesses)

    @torch.no_grad()
    def reconstruct(
        self, image: ImageLike, text: str, *, share: float | None = None, keep: Sequence[int] | None = None, seed: int = 0
    ) -> Reconstruction:
        """Hide patches of a picture and return it rebuilt from the others and the text.

        share: how much to hide, drawn with `seed`; None: task.image_mask_ratio. keep: instead, the patches to leave, counted
        from 0 row by row. Where targets were normalised per patch, each hidden patch gets its true mean and contrast.
        """
        self.need("reconstruct")
        assert isinstance(self.task, MaskedSignal)
        assert isinstance(self.run.config.task, MaskedSignalConfig)
        P, settings, rng = self.model.num_patches, self.run.config.task, generator(seed)
        share = settings.image_mask_ratio if share is None else share
        if not 0 < share < 1:
            raise UserError(f"share {share} is not in (0, 1)")
        keep_K = mask_patches(P, share, rng)[0] if keep is None else np.unique(np.array(keep, dtype=np.int64))
        if not 0 < len(keep_K) < P or keep_K[0] < 0 or keep_K[-1] >= P:
            raise UserError(f"keep {keep}: give at least one of the patches 0 to {P - 1}, and not all of them")
        ids_T, is_special_T = self.tokenizer.encode(given_text(text), self.model.max_text_tokens)
        is_masked_T = mask_tokens(is_special_T, settings.text_mask_ratio, rng) if settings.joint_masking else None
        batch = inputs.masked_pair(
            given_image(image), ids_T, self.tokenizer, self.model, is_masked_T=is_masked_T, keep_K=keep_K
        ).to(self.device)
        patches_BPX = patchify(batch.pixels(), self.model.patch_size)
        shown = patches_BPX, hide(patches_BPX, batch.hidden_BM), self.task.rebuild(patches_BPX, batch)
        original, masked, rebuilt = (to_pictures(patches, self.model.patch_size)[0] for patches in shown)
        return Reconstruction(original=original, masked=masked, rebuilt=rebuilt)

    def look(
        self,
        image: ImageLike | Sequence[ImageLike],
        text: str,
        *,
        word: str | None = None,
        answer: str | None = None,
        block: int | None = None,
    ) -> Look:
        """Return where in the picture the run finds what speaks for its answer, verdict, match or hidden word: see
        `eve_vl.look.look`."""
        self.need("look")
        return look(self.run, image, text, word=word, answer=answer, block=block)

    def image_features(self, images_BCHW: Tensor) -> Tensor:
        """Return what `encode_image` does, float32 (B, d), of uint8 pictures (B, 3, image_size, image_size)."""
        cls_BD = self._cls(self.task.encoder.image(patchify(normalize(images_BCHW), self.model.patch_size)))
        return self._head.image_features(cls_BD) if self._head else F.normalize(cls_BD, dim=1)

    def text_features(self, ids_BT: Tensor, is_padding_BT: Tensor) -> Tensor:
        """Return what `encode_text` does, float32 (B, d), of int64 token ids and whether each is padding."""
        cls_BD = self._cls(self.task.encoder.text(ids_BT, is_padding_BT))
        return self._head.text_features(cls_BD) if self._head else F.normalize(cls_BD, dim=1)

    @torch.no_grad()
    def _encode_images(self, given: Sequence[GivenImage]) -> np.ndarray:
        return self.image_features(inputs.images_alone(given, self.model).to(self.device)).cpu().numpy()

    @torch.no_grad()
    def _encode_texts(self, texts: Sequence[str]) -> np.ndarray:
        batch = inputs.texts_alone(texts, self.tokenizer, self.model).to(self.device)
        return self.text_features(batch.ids_BT, batch.is_padding_BT).cpu().numpy()

    def _cls(self, tokens: Tokens) -> Tensor:
        final_norm = self.task.settings.final_norm if isinstance(self.task, Retrieval) else True
        return self.task.encoder.encode(tokens, only=0, final_norm=final_norm).x_BND[:, 0]

    def _gather(self, features: Iterable[np.ndarray]) -> np.ndarray:
        width = self._head.image.out_features if self._head else self.model.embed_dim
        return np.concatenate([np.zeros((0, width), np.float32), *features])

    def need(self, call: str) -> None:
        """Raise UserError, which says how to get a run that does, if the run's heads do not allow a call."""
        if call in self.calls:
            return
        config = self.run.config
        init = self.run.folder if isinstance(self.task, MaskedSignal) else config.init or "PRETRAINED"
        if call in FINETUNED_FOR:
            small = "demo_" if self.model.image_size < 224 else ""
            how = f"eve finetune {small}{FINETUNED_FOR[call]} --init {init}"
        elif isinstance(self.task, MaskedSignal):
            weight = "mlm_weight" if call == "fill_mask" else "mim_weight"
            how = f"eve pretrain with task.{weight} above 0 (here it is 0)"
        else:
            how = "eve pretrain, or the run that this one started from" + (f", {config.init}" if config.init else "")
        raise UserError(
            f"{call}: {self.run.folder} is a run of task {config.task.name}, which allows {', '.join(self.calls)}; "
            f"to get one that allows {call}: {how}"
        )


def _parts(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    if size < 1:
        raise UserError(f"batch_size {size} is not positive")
    return (items[start : start + size] for start in range(0, len(items), size))


def _best(probability_C: Tensor, top: int) -> list[tuple[int, float]]:
    """Return the classes of the highest probabilities, best first."""
    if top < 1:
        raise UserError(f"top {top} is not positive")
    values, classes = probability_C.topk(min(top, len(probability_C)))
    return list(zip(classes.tolist(), values.tolist(), strict=True))

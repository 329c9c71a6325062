"""Families of published checkpoints for mutated_weights.py: tiny files, and a referee for each.

A referee reads the same files without the code under test. It raises what it does not take.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer as Backend
from torch import Tensor
from torch.nn import functional as F

from eve_vl.data.tokenizer import Tokenizer
from eve_vl.eve import Eve
from helpers import m3ae_checkpoints, vlmo_checkpoints
from helpers.published import timm_model, tiny_published, write_tokenizer_of_500
from helpers.published_clip import save_clip, save_open_clip, save_siglip2
from helpers.slow_eve import NUM_HEADS, SlowEve
from helpers.slow_m3ae import NUM_HEADS as M3AE_HEADS
from helpers.slow_m3ae import SlowM3ae
from helpers.slow_vlmo import SlowVlmo
from helpers.weight_mutations import read_weights

Features = dict[str, Tensor]
TEXTS = [
    "A cat",
    "hello, world: it's  a\ttest!",
    "many words that go far beyond the longest text of all",
]
SIZES = ((50, 40), (30, 64))
"""Of images, in pixels."""
SENTENCES = ["a cat", "it is red"]
"""Texts for tokenizers without normalizers."""


@dataclass(frozen=True)
class WeightFamily:
    """Files of a tiny checkpoint, how they are converted, and what their features should be."""

    make: Callable[[Path], object]
    """Writes the files into a new folder."""
    reference: Callable[[Path], Features]
    """Features by other code."""
    flags: tuple[str, ...] = ()
    ours: Callable[[Path], Features] | None = None
    """Features of the converted run; None: those of Eve's calls."""
    tolerance: float = 1e-4
    """Largest difference of a feature."""
    reads_folder: bool = False
    """Whether the source is the folder and not the file of weights."""

    def command(self, folder: Path, run: Path) -> list[str]:
        """Return the words of `eve convert`."""
        source = folder if self.reads_folder else folder / "model.safetensors"
        words = ["convert", str(source), str(run), *self.flags]
        if not self.reads_folder:
            words += ["--tokenizer", str(folder / "tokenizer.json")]
        return words

    def features(self, run: Path) -> Features:
        """Return the features of a converted run."""
        return (self.ours or features_of_eve)(run)


def images(sizes: Sequence[tuple[int, int]] = SIZES) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8))
    return [coarse.resize(size, Image.Resampling.BICUBIC) for size in sizes]


def squares(side: int) -> Tensor:
    """Return uint8 images of the size that a model reads."""
    torch.manual_seed(1)
    return torch.randint(256, (2, 3, side, side), dtype=torch.uint8)


def features_of_eve(run: Path) -> Features:
    eve = Eve.load(run)
    image = torch.as_tensor(np.array(eve.encode_image(images())))
    text = torch.as_tensor(np.array(eve.encode_text(TEXTS)))
    return {"image": image, "text": text}


# transformers


def make_clip(folder: Path) -> None:
    save_clip(folder)


def loaded(folder: Path) -> Any:
    """Return transformers' model; raises ValueError where it would fill in random weights."""
    model, info = transformers.AutoModel.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32
    )
    problems = [*info["missing_keys"], *info["mismatched_keys"]]
    if problems:
        raise ValueError(f"transformers makes up {problems[:3]}")
    return model.eval()


def pixels_of(folder: Path) -> Tensor:
    processor: Any = transformers.AutoImageProcessor.from_pretrained(folder, backend="torchvision")
    return processor(images=images(), return_tensors="pt")["pixel_values"]


@torch.no_grad()
def reference_of_clip(folder: Path) -> Features:
    model = loaded(folder)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    length = model.config.text_config.max_position_embeddings
    texts = tokenizer(
        TEXTS, truncation=True, max_length=length, padding="max_length", return_tensors="pt"
    )
    outputs = model(
        pixel_values=pixels_of(folder),
        input_ids=texts["input_ids"],
        attention_mask=texts["attention_mask"],
    )
    return normalized(outputs)


@torch.no_grad()
def reference_of_siglip(folder: Path) -> Features:
    """Texts end with the end token and are filled up to the longest, as in its examples."""
    model = loaded(folder)
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
    length = model.config.text_config.max_position_embeddings
    rows = []
    for text in TEXTS:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"][: length - 1]
        ids = [*ids, tokenizer.eos_token_id]
        rows.append([*ids, *[tokenizer.pad_token_id] * (length - len(ids))])
    outputs = model(pixel_values=pixels_of(folder), input_ids=torch.tensor(rows))
    return normalized(outputs)


def normalized(outputs: Any) -> Features:
    image = F.normalize(outputs.image_embeds)
    return {"image": image, "text": F.normalize(outputs.text_embeds)}


# open_clip


def make_open_clip(folder: Path) -> None:
    clip = folder.with_name("clip for open_clip")
    if not clip.exists():
        save_clip(clip)
    save_open_clip("clip", folder, clip / "tokenizer.json")


@torch.no_grad()
def reference_of_open_clip(folder: Path) -> Features:
    import open_clip  # pyright: ignore[reportMissingImports]

    config = json.loads((folder / "open_clip_config.json").read_text())
    model, _, preprocess = open_clip.create_model_and_transforms(
        f"local-dir:{folder}", precision="fp32"
    )
    model.eval()
    backend = Backend.from_file(str(folder / "tokenizer.json"))
    backend.no_truncation()
    backend.no_padding()
    length = config["model_cfg"]["text_cfg"].get("context_length", 77)
    rows = []
    for text in TEXTS:
        ids = backend.encode(text).ids
        if len(ids) > length:
            ids = [*ids[: length - 1], ids[-1]]
        rows.append([*ids, *[0] * (length - len(ids))])
    pixels = torch.stack([preprocess(image) for image in images()])
    image = model.encode_image(pixels, normalize=True)
    return {"image": image, "text": model.encode_text(torch.tensor(rows), normalize=True)}


# EVE, VLMo, BEiT, M3AE: slow forward passes, or timm


def make_slow(tensors: dict[str, Tensor], write_tokenizer: Callable[[Path], object]) -> Any:
    """Return a function that writes weights and a tokenizer.json."""

    def make(folder: Path) -> None:
        folder.mkdir()
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        write_tokenizer(folder / "tokenizer.json")

    return make


def floats(folder: Path) -> dict[str, Tensor]:
    """Return weights as the slow references compute with them. Raises ValueError for integers."""
    tensors = {}
    for name, tensor in read_weights(folder).items():
        is_buffer = name.endswith(("_ids", "_index")) or "position_ids" in name
        if not tensor.is_floating_point() and not is_buffer:
            raise ValueError(f"{name} is {tensor.dtype}")
        tensors[name] = tensor if is_buffer else tensor.float()
    return tensors


def ids_of(folder: Path) -> list[Tensor]:
    backend = Backend.from_file(str(folder / "tokenizer.json"))
    return [torch.tensor(backend.encode(text).ids) for text in SENTENCES]


def features_of_squares(run: Path) -> Features:
    eve = Eve.load(run)
    image = eve.run.task.image_features(squares(eve.run.config.input.image_size))
    return {
        "image": image.detach(),
        "text": torch.as_tensor(np.array(eve.encode_text(SENTENCES))),
    }


@torch.no_grad()
def reference_of_eve(folder: Path) -> Features:
    slow = SlowEve(floats(folder))
    pixels = squares(64) / 127.5 - 1
    image = torch.stack([slow.image_feature(pixels_CHW) for pixels_CHW in pixels])
    return {"image": image, "text": torch.stack([slow.text_feature(ids) for ids in ids_of(folder)])}


@torch.no_grad()
def reference_of_vlmo(folder: Path) -> Features:
    slow = SlowVlmo(floats(folder))
    size = vlmo_checkpoints.TINY
    pixels = squares(size.side * size.patch) / 127.5 - 1
    image = torch.stack([slow.image_feature(pixels_CHW) for pixels_CHW in pixels])
    return {"image": image, "text": torch.stack([slow.text_feature(ids) for ids in ids_of(folder)])}


@torch.no_grad()
def reference_of_beit(folder: Path) -> Features:
    model = timm_model("beit")
    model.load_state_dict(floats(folder))
    return {"image": model.forward_features(squares(32) / 127.5 - 1)}


@torch.no_grad()
def states_of_images(run: Path) -> Features:
    encoder = Eve.load(run).run.task.encoder
    return {"image": encoder.encode(encoder.image(squares(32) / 127.5 - 1), None).x_BND}


@torch.no_grad()
def reference_of_m3ae(folder: Path) -> Features:
    slow = SlowM3ae(floats(folder))
    size = m3ae_checkpoints.TINY
    pixels = squares(size.side * size.patch) / 255
    scores = []
    for ids, pixels_CHW in zip(ids_of(folder), pixels, strict=True):
        scores.append(slow.linear(slow.pooled(ids, pixels_CHW), "irtr_head"))
    return {"match": torch.stack(scores)}


@torch.no_grad()
def scores_of_pairs(run: Path) -> Features:
    eve = Eve.load(run)
    task: Any = eve.run.task
    pixels = squares(eve.run.config.input.image_size)
    scores = []
    for text, pixels_CHW in zip(SENTENCES, pixels, strict=True):
        ids = eve.run.tokenizer.encode(text, 18)[0]
        scores.append(task.match(pixels_CHW[None], torch.as_tensor(ids)[None], None)[0][0, 1:])
    return {"match": torch.stack(scores)}


def write_tokenizer(num_tokens: int) -> Callable[[Path], object]:
    """Return a function that writes a tokenizer of bytes and merges, of that many tokens."""

    def write(path: Path) -> None:
        captions = [f"word{number:03} stands beside a thing" for number in range(1000)]
        tokenizer = Tokenizer.train(captions, num_tokens)
        assert tokenizer.vocab_size == num_tokens
        path.write_text(tokenizer.to_json())

    return write


def families() -> dict[str, WeightFamily]:
    """Return all families by name."""
    vlmo_size = vlmo_checkpoints.TINY
    m3ae_size = m3ae_checkpoints.TINY
    return {
        "clip": WeightFamily(make_clip, reference_of_clip, reads_folder=True),
        "siglip": WeightFamily(save_siglip2, reference_of_siglip, reads_folder=True),
        "open_clip": WeightFamily(
            make=make_open_clip,
            reference=reference_of_open_clip,
            reads_folder=True,
            tolerance=1e-3,  # it resizes with Pillow, which rounds between its two passes
        ),
        "eve": WeightFamily(
            make=make_slow(tiny_published("retrieval"), write_tokenizer_of_500),
            reference=reference_of_eve,
            ours=features_of_squares,
            flags=(
                *("--num-heads", str(NUM_HEADS), "--routing", "dropless"),
                *("--text-tokens", "0", "--no-clean-text"),
            ),
        ),
        "vlmo": WeightFamily(
            make=make_slow(vlmo_checkpoints.tiny_checkpoint("retrieval"), write_bert(vlmo_size.V)),
            reference=reference_of_vlmo,
            ours=features_of_squares,
            flags=("--num-heads", str(vlmo_size.heads)),
        ),
        "beit": WeightFamily(
            make=make_slow(dict(timm_model("beit").state_dict()), write_tokenizer_of_500),
            reference=reference_of_beit,
            ours=states_of_images,
            flags=(
                *("--num-heads", "2", "--architecture", "source"),
                *("--num-deep-blocks", "1", "--num-experts", "4"),
            ),
        ),
        "m3ae": WeightFamily(
            make=make_slow(m3ae_checkpoints.tiny_checkpoint("irtr"), write_tokenizer(m3ae_size.V)),
            reference=reference_of_m3ae,
            ours=scores_of_pairs,
            flags=("--num-heads", str(M3AE_HEADS)),
        ),
    }


def write_bert(num_tokens: int) -> Callable[[Path], object]:
    """Return a function that writes a tokenizer of words, of that many tokens."""

    def write(path: Path) -> None:
        words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "is", "it", "a", "cat", "hello"]
        words += [f"word{number}" for number in range(num_tokens - len(words))]
        vocab = path.with_name("vocab.txt")
        vocab.write_text("\n".join(words) + "\n")
        path.write_text(Tokenizer.load(vocab).to_json())
        vocab.unlink()

    return write


def copy_files(folder: Path, copy: Path) -> None:
    """Copy a checkpoint in place of another."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(folder, copy)

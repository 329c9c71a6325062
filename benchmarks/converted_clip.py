"""Compare converted CLIP and SigLIP of every published size with transformers.

Weights are random; the vocabulary keeps its published size. With --captions, also compare the
tokenizers of a vocabulary that open_clip ships (pip install open_clip_torch ftfy) on the texts of a
.jsonl file with lists of captions; with --images, prepared images.

    PYTHONPATH=. python benchmarks/converted_clip.py [SIZE …] [--captions FILE] [--images]
"""

import argparse
import gc
import gzip
import itertools
import json
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import transformers
from PIL import Image
from torch.nn import functional as F

from eve_vl.cli.main import main
from eve_vl.data.batches import padded
from eve_vl.predict.inputs import user_image
from eve_vl.run.loading import load_run

CLIP, SIGLIP = (49_408, 77), (32_000, 64)
# width, depth, heads, feed-forward width of the image tower and of the text tower; image size,
# patch size, projection
SIZES: dict[str, tuple[Any, ...]] = {
    "clip-b32": (768, 12, 12, 3072, 512, 12, 8, 2048, 224, 32, 512),
    "clip-b16": (768, 12, 12, 3072, 512, 12, 8, 2048, 224, 16, 512),
    "clip-l14": (1024, 24, 16, 4096, 768, 12, 12, 3072, 224, 14, 768),
    "clip-l14-336": (1024, 24, 16, 4096, 768, 12, 12, 3072, 336, 14, 768),
    "clip-h14": (1280, 32, 16, 5120, 1024, 24, 16, 4096, 224, 14, 1024),
    "siglip-b16": (768, 12, 12, 3072, 768, 12, 12, 3072, 224, 16, 768),
    "siglip-l16-256": (1024, 24, 16, 4096, 1024, 24, 16, 4096, 256, 16, 1024),
    "siglip-so400m-14": (1152, 27, 16, 4304, 1152, 27, 16, 4304, 224, 14, 1152),
    "siglip2-b16": (768, 12, 12, 3072, 768, 12, 12, 3072, 224, 16, 768),
}
MEAN, STD = (
    torch.tensor((0.48145466, 0.4578275, 0.40821073)),
    torch.tensor((0.26862954, 0.26130258, 0.27577711)),
)


def model_of(name: str) -> Any:
    """Return a model of transformers with random weights."""
    *numbers, size, patch, dim = SIZES[name]
    fields = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    vision: dict[str, Any] = dict(zip(fields, numbers[:4], strict=True)) | {
        "image_size": size,
        "patch_size": patch,
    }
    text: dict[str, Any] = dict(zip(fields, numbers[4:], strict=True))
    torch.manual_seed(0)
    if name.startswith("clip"):
        text |= {"vocab_size": CLIP[0], "max_position_embeddings": CLIP[1]}
        return transformers.CLIPModel(
            transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=dim)
        ).eval()
    vocab_size = 256_000 if name.startswith("siglip2") else SIGLIP[0]
    text |= {"vocab_size": vocab_size, "max_position_embeddings": SIGLIP[1], "projection_size": dim}
    return transformers.SiglipModel(
        transformers.SiglipConfig(text_config=text, vision_config=vision)
    ).eval()


def write_tokenizer(folder: Path, *, is_clip: bool, vocab_size: int) -> None:
    """Write a tokenizer of the published size with words that nobody uses."""
    names = ["<pad>", "</s>", "<unk>", *(f"▁word{number}" for number in range(vocab_size - 3))]
    if is_clip:
        names = [
            *(f"word{number}</w>" for number in range(vocab_size - 2)),
            "<|startoftext|>",
            "<|endoftext|>",
        ]
        (folder / "vocab.json").write_text(
            json.dumps({name: number for number, name in enumerate(names)})
        )
        (folder / "merges.txt").write_text("#version: 0.2\n")
    else:
        model = {
            "type": "Unigram",
            "unk_id": 2,
            "vocab": [[name, -float(number)] for number, name in enumerate(names)],
        }
        (folder / "tokenizer.json").write_text(
            json.dumps({"version": "1.0", "added_tokens": [], "model": model})
        )


@torch.no_grad()
def compare(name: str, folder: Path) -> str:
    """Return a row: size, parameters, the largest differences of image and text features and of
    logits."""
    is_clip, (vocab_size, length) = (
        name.startswith("clip"),
        CLIP if name.startswith("clip") else SIGLIP,
    )
    model = model_of(name)
    vocab_size = model.config.text_config.vocab_size
    source, run = folder / name, folder / f"{name}_run"
    model.save_pretrained(source)
    write_tokenizer(source, is_clip=is_clip, vocab_size=vocab_size)
    generator = torch.Generator().manual_seed(1)
    size = SIZES[name][-3]
    pixels = torch.randint(256, (2, 3, size, size), dtype=torch.uint8, generator=generator)
    mean, std = (MEAN, STD) if is_clip else (torch.full((3,), 0.5),) * 2
    texts = [
        np.append(
            torch.randint(3, vocab_size - 2, (n,), generator=generator).numpy(), vocab_size - 1
        )
        for n in (5, 40)
    ]
    end = vocab_size - 1 if is_clip else 1
    texts = [np.append(text[:-1], end) for text in texts]
    given = {"pixel_values": (pixels / 255 - mean[:, None, None]) / std[:, None, None]}
    ids, is_padding = padded(texts, end, 0 if is_clip else length)
    expected = model(**given, input_ids=ids, **({"attention_mask": ~is_padding} if is_clip else {}))
    image, text, logits = (
        each.clone()
        for each in (expected.image_embeds, expected.text_embeds, expected.logits_per_image)
    )
    count = sum(parameter.numel() for parameter in model.parameters())
    del model, expected
    gc.collect()
    main(["convert", str(source), str(run)])
    gc.collect()
    loaded = load_run(run)
    own, task = loaded.tokenizer, cast(Any, loaded.task)
    ids = ids.masked_fill(is_padding, own.pad_id)
    ours = task.image_features(pixels), task.text_features(ids, is_padding)
    differences = [
        (mine - F.normalize(theirs, dim=1)).abs().max()
        for mine, theirs in zip(ours, (image, text), strict=True)
    ]
    differences.append((task.contrast.features.logits(*ours) - logits).abs().max())
    return (
        f"| {name} | {count / 1e6:.0f} | "
        + " | ".join(f"{float(each):.1e}" for each in differences)
        + " |"
    )


def compare_tokenizers(captions: Path, folder: Path, num: int = 10_000) -> None:
    """Print how many texts have other tokens than in transformers' and open_clip's own code."""
    spec = find_spec("open_clip")
    assert spec is not None and spec.origin is not None, (
        "pip install --no-deps open_clip_torch ftfy"
    )
    from open_clip.tokenizer import SimpleTokenizer, bytes_to_unicode  # pyright: ignore[reportMissingImports]

    packed = Path(spec.origin).with_name("bpe_simple_vocab_16e6.txt.gz").read_bytes()
    merges = gzip.decompress(packed).decode().split("\n")[1:48_895]
    letters = list(bytes_to_unicode().values())
    names = [
        *letters,
        *(f"{letter}</w>" for letter in letters),
        *(merge.replace(" ", "") for merge in merges),
    ]
    names += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(
        json.dumps({name: number for number, name in enumerate(names)})
    )
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges))
    from eve_vl.data.clip_tokenizers import read_published

    ours, _ = read_published(folder, is_siglip=False, cleans=False)
    theirs = transformers.CLIPTokenizer.from_pretrained(folder)
    original = SimpleTokenizer()
    rows = [json.loads(line) for line in captions.read_text().splitlines()]
    rows = list(
        itertools.islice(texts_of([caption for row in rows for caption in row["captions"]]), num)
    )
    own = [ours.encode(text, 77)[0].tolist() for text in rows]
    same = theirs(rows, truncation=True, max_length=77)["input_ids"]
    exact = [[token for token in ids.tolist() if token] for ids in original(rows)]
    print(
        f"{len(rows):,} texts: {sum(a != b for a, b in zip(own, same, strict=True))} differ from "
        "transformers, ",
        end="",
    )
    print(f"{sum(a != b for a, b in zip(own, exact, strict=True))} from open_clip")


def texts_of(captions: list[str]) -> Any:
    """Yield captions in several forms: as they are, in capitals, joined, with punctuation, cut."""
    for number, caption in enumerate(itertools.cycle(captions)):
        other = captions[(7 * number + number // len(captions)) % len(captions)]
        forms = (
            caption,
            caption.upper(),
            f"{caption}, {other}!",
            f"a photo of {caption} & it's «{other}»",
            f"{caption}  {other[::2]}",
        )
        yield forms[number % 5]


def compare_images(num: int = 200) -> None:
    """Print the largest differences of prepared images from transformers', in steps of 1/255."""
    from eve_vl.config import InputConfig

    rng = np.random.default_rng(0)
    for resize, size in (
        ("crop", {"shortest_edge": 224}),
        ("squash", {"height": 224, "width": 224}),
    ):
        kind = "CLIP" if resize == "crop" else "Siglip"
        for backend, suffix in (("torchvision", ""), ("Pillow", "Pil")):
            processor = getattr(transformers, f"{kind}ImageProcessor{suffix}")(
                size=size, do_normalize=False
            )
            worst, means = 0.0, []
            for _ in range(num):
                width, height = rng.integers(100, 900, 2).tolist()
                coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8))
                image = coarse.resize((width, height), Image.Resampling.BICUBIC)
                theirs = processor(images=image, return_tensors="pt")["pixel_values"][0]
                ours = user_image(image).pixels(InputConfig(image_size=224, resize=resize))  # pyright: ignore[reportArgumentType]
                difference = (theirs * 255 - ours).abs()
                worst, means = (
                    max(worst, float(difference.max())),
                    [*means, float(difference.mean())],
                )
            print(f"{resize}, {backend}: largest {worst:.0f}, mean {np.mean(means):.4f} of 255")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("sizes", nargs="*", default=list(SIZES))
    parser.add_argument("--captions", type=Path)
    parser.add_argument("--images", action="store_true")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as top:
        if args.captions:
            compare_tokenizers(args.captions, Path(top))
        if args.images:
            compare_images()
        for each in args.sizes if not (args.captions or args.images) else []:
            print(compare(each, Path(top)), flush=True)
            for path in (
                Path(top) / each / "model.safetensors",
                *Path(top).glob(f"{each}_run/best/model.safetensors"),
            ):
                path.unlink()

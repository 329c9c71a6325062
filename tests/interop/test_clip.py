"""Converted CLIP and SigLIP against transformers and open_clip, with random weights."""

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer as Backend
from tokenizers import models, pre_tokenizers
from torch.nn import functional as F

from eve_vl.builtin.names import refuse_to_write
from eve_vl.cli.main import main
from eve_vl.config import InputConfig
from eve_vl.data.batches import normalize, padded
from eve_vl.data.crops import eval_crop
from eve_vl.eve import Eve
from eve_vl.interop import hf
from eve_vl.predict.user_images import user_image
from eve_vl.run.loading import LoadedRun, load_run
from eve_vl.utils.errors import UserError

pytestmark = pytest.mark.usefixtures("no_report")

SIDE = 32
TEXTS = [
    "A cat",
    "hello, World: it's  a\ttest!",
    "x",
    "a text of many words that goes far beyond the longest one",
]
LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())
PIECES = ["<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz", "▁a", "at", "▁c", "▁hello"]
MEAN = torch.tensor((0.48145466, 0.4578275, 0.40821073))
STD = torch.tensor((0.26862954, 0.26130258, 0.27577711))
TOWERS = {
    "image": {
        "hidden_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "intermediate_size": 96,
    },
    "text": {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 128,
    },
}
OUR_LENGTH = 16


def randomized(model: Any) -> Any:
    """Give every bias, norm and embedding a value that matters."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim and not name.endswith("logit_scale"):
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def sections(vocab_size: int, **fields: Any) -> dict[str, Any]:
    text = (
        TOWERS["text"] | {"vocab_size": vocab_size, "max_position_embeddings": OUR_LENGTH} | fields
    )
    return {
        "text_config": text,
        "vision_config": TOWERS["image"] | {"image_size": SIDE, "patch_size": 8},
    }


def clip(folder: Path) -> Any:
    vocab = {
        letter: number
        for number, letter in enumerate(
            [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "at</w>"]
        )
    }
    vocab |= {"<|startoftext|>": len(vocab), "<|endoftext|>": len(vocab) + 1}
    ends = {"bos_token_id": len(vocab) - 2, "eos_token_id": len(vocab) - 1}
    config = transformers.CLIPConfig(**sections(len(vocab), **ends), projection_dim=24)
    model = randomized(transformers.CLIPModel(config))
    model.save_pretrained(folder)
    transformers.CLIPTokenizer(vocab=vocab, merges=cast(Any, [("a", "t</w>")])).save_pretrained(
        folder
    )
    sizes: dict[str, Any] = {
        "size": {"shortest_edge": SIDE},
        "crop_size": {"height": SIDE, "width": SIDE},
    }
    transformers.CLIPImageProcessor(**sizes).save_pretrained(folder)
    return model


def siglip(folder: Path, second: bool = False) -> Any:
    if second:
        vocab = {
            token: number
            for number, token in enumerate(
                ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *PIECES[4:]]
            )
        }
        vocab |= {f"<0x{byte:02X}>": len(vocab) + byte for byte in range(256)}
        tokenizer: Any = transformers.Siglip2Tokenizer(vocab=vocab, merges=cast(Any, [("a", "t")]))
        tokenizer.save_pretrained(folder)
        length = len(vocab)
        resample = 2
    else:
        backend = Backend(
            models.Unigram(
                [(piece, -float(len(PIECES) - n)) for n, piece in enumerate(PIECES)], 2, False
            )
        )
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=False)
        folder.mkdir()
        backend.save(str(folder / "tokenizer.json"))
        length = len(PIECES)
        resample = 3
    config = transformers.SiglipConfig(**sections(length, projection_size=48))
    model = randomized(transformers.SiglipModel(config))
    model.save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    transformers.SiglipImageProcessor(size=size, resample=resample).save_pretrained(folder)
    return model


KINDS: dict[str, Callable[[Path], Any]] = {
    "clip": clip,
    "siglip": siglip,
    "siglip2": lambda folder: siglip(folder, second=True),
}


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> dict[str, tuple[Any, Path, LoadedRun]]:
    """By kind: the model of transformers, its folder, and its run."""
    top = tmp_path_factory.mktemp("published")
    converted = {}
    for kind, make in KINDS.items():
        model = make(top / kind)
        main(["convert", str(top / kind), str(top / f"{kind}_run")])
        converted[kind] = model, top / kind, load_run(top / f"{kind}_run")
    return converted


def unit(features: Any) -> torch.Tensor:
    return F.normalize(getattr(features, "pooler_output", features), dim=1)


def pictures(num: int, smallest: int = 20) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    sizes = rng.integers(smallest, 120, (num, 2)).tolist()
    coarse = [rng.integers(0, 256, (9, 7, 3), dtype=np.uint8) for _ in sizes]
    return [
        Image.fromarray(image).resize(tuple(size), Image.Resampling.BICUBIC)
        for image, size in zip(coarse, sizes, strict=True)
    ]


def our_ids(run: LoadedRun, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    ids = [run.tokenizer.encode(text, run.config.input.max_text_tokens)[0] for text in texts]
    return padded(ids, run.tokenizer.pad_id, run.config.input.padded_text_length)


def their_ids(run: LoadedRun, kind: str, texts: list[str]) -> dict[str, torch.Tensor]:
    """Fill and mask as transformers' examples do: SigLIP reads its own padding."""
    ids, is_padding = our_ids(run, texts)
    if kind == "clip":
        return {"input_ids": ids.masked_fill(is_padding, 0), "attention_mask": ~is_padding}
    return {"input_ids": ids.masked_fill(is_padding, 1 if kind == "siglip" else 0)}


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_features_and_logits_equal_those_of_transformers(converted, kind):
    model, folder, run = converted[kind]
    images = pictures(4)
    pixels = torch.stack([user_image(image).pixels(run.config.input) for image in images])
    mean, std = (MEAN, STD) if kind == "clip" else (torch.full((3,), 0.5), torch.full((3,), 0.5))
    theirs = {"pixel_values": (pixels / 255 - mean[:, None, None]) / std[:, None, None]}
    ids, is_padding = our_ids(run, TEXTS)
    expected = model(**theirs, **their_ids(run, kind, TEXTS))
    image = run.task.image_features(pixels)
    text = run.task.text_features(ids, is_padding)
    assert image.shape == text.shape == (4, 24 if kind == "clip" else 48)
    assert (image - unit(expected.image_embeds)).abs().max() < 1e-5
    assert (text - unit(expected.text_embeds)).abs().max() < 1e-5
    assert (image - image[:1]).abs().max() > 0.01 and (text - text[:1]).abs().max() > 0.01
    if kind == "clip":  # a text alone has no padding
        single = run.task.text_features(*our_ids(run, TEXTS[:1]))
        assert (single - text[:1]).abs().max() < 1e-6
    ours, processor = hf.from_run(run.folder)
    inputs = processor(images=images, text=TEXTS)
    assert (inputs["pixel_values"] == normalize(pixels)).all() and (
        inputs["input_ids"] == ids
    ).all()
    assert (ours(**inputs).logits_per_image - expected.logits_per_image).abs().max() < 1e-4
    assert folder.is_dir()


def test_tokens_equal_those_of_transformers(converted, tmp_path):
    for kind in ("clip", "siglip2"):
        _, folder, run = converted[kind]
        tokenizer: Any = transformers.AutoTokenizer.from_pretrained(folder)
        texts = [*TEXTS, "Ünïcode 🐈 & more", "", "  spaces  "]
        token_ids = [run.tokenizer.encode(text, OUR_LENGTH)[0].tolist() for text in texts]
        options = {} if kind == "clip" else {"add_special_tokens": False}
        cut = OUR_LENGTH - bool(options)
        theirs = tokenizer(texts, truncation=True, max_length=cut, **options)["input_ids"]
        end = [1] if options else []
        assert token_ids == [ids + end for ids in theirs], kind
    # vocab.json and merges.txt
    _, folder, run = converted["clip"]
    old = tmp_path / "old"
    shutil.copytree(folder, old)
    token_ids = json.loads((old / "tokenizer.json").read_text())["model"]
    (old / "tokenizer.json").unlink()
    (old / "vocab.json").write_text(json.dumps(token_ids["vocab"]))
    (old / "merges.txt").write_text(
        "#version: 0.2\n" + "\n".join(" ".join(pair) for pair in token_ids["merges"]) + "\n"
    )
    main(["convert", str(old), str(tmp_path / "run")])
    again = load_run(tmp_path / "run").tokenizer
    assert [again.encode(text, 99)[0].tolist() for text in TEXTS] == [
        run.tokenizer.encode(text, 99)[0].tolist() for text in TEXTS
    ]


def test_texts_of_siglip_are_cleaned_and_end_as_its_tokenizer_says(converted):
    tokenizer = converted["siglip"][2].tokenizer
    pieces = [
        tokenizer.backend.id_to_token(token) for token in tokenizer.encode("Hello, -- CAT!", 16)[0]
    ]
    assert pieces == ["▁hello", "▁c", "at", "</s>"]
    ids, special = tokenizer.encode("hello hello hello", 3)
    assert ids[-1] == tokenizer.end_id == 1 and special.tolist() == [False, False, True]
    assert tokenizer.spans("hello cat", 16) == [(0, 5), (5, 7), (7, 9), (0, 0)]


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_prepared_as_by_transformers(converted, kind):
    _, folder, run = converted[kind]
    assert (run.config.input.resize, run.config.input.interpolation) == {
        "clip": ("crop", "bicubic"),
        "siglip": ("squash", "bicubic"),
        "siglip2": ("squash", "bilinear"),
    }[kind]
    mean, std = (MEAN, STD) if kind == "clip" else (torch.full((3,), 0.5), torch.full((3,), 0.5))
    for backend, most in (("torchvision", 0), ("pil", 2)):  # Pillow rounds between its two passes
        processor: Any = transformers.AutoImageProcessor.from_pretrained(folder, backend=backend)
        for image in pictures(30):
            theirs = (
                processor(images=image, return_tensors="pt")["pixel_values"][0] * std[:, None, None]
                + mean[:, None, None]
            )
            ours = user_image(image).pixels(run.config.input)
            assert ((theirs * 255).round() - ours).abs().max() <= most, (backend, image.size)


def test_a_line_of_pixels_is_not_blown_up():
    image = Image.new("RGB", (200_000, 2), "red")
    crop = eval_crop(InputConfig(image_size=64, patch_size=8, resize="crop"))
    assert crop(torch.from_numpy(np.array(image)).permute(2, 0, 1)).shape == (3, 64, 64)


def with_config(folder: Path, target: Path, file: str = "config.json", **values: Any) -> Path:
    shutil.copytree(folder, target)
    config = json.loads((target / file).read_text())
    (target / file).write_text(json.dumps(config | values))
    return target


def test_what_cannot_be_read_is_said_in_a_line(converted, tmp_path, eve):
    folder = converted["clip"][1]
    wide = with_config(folder, tmp_path / "lanczos", "preprocessor_config.json", resample=1)
    lacking = with_config(folder, tmp_path / "lacking")
    (lacking / "tokenizer.json").unlink()
    empty = with_config(folder, tmp_path / "empty")
    (empty / "model.safetensors").unlink()
    mixed = with_config(
        converted["siglip"][1],
        tmp_path / "mixed",
        text_config=TOWERS["text"] | {"hidden_act": "relu"},
    )
    for source, message in (
        (
            with_config(folder, tmp_path / "naflex", model_type="siglip2"),
            "(NaFlex) is not supported; take a fixed resolution",
        ),
        (wide, "has resample 1 and size"),
        (
            lacking,
            "holds no tokenizer (spiece.model, tokenizer.json, vocab.json); name the file with "
            "--tokenizer",
        ),
        (empty, "holds no weights"),
        (mixed, "are not supported"),
    ):
        done = eve("convert", source, tmp_path / "out")
        assert done.returncode == 2 and message in done.stderr and done.stderr.count("\n") == 1, (
            done.stderr
        )
    assert not (tmp_path / "out").exists()
    done = eve("convert", folder, tmp_path / "out", "--copy", "text")
    assert "--copy has no effect on a CLIP or SigLIP checkpoint" in done.stderr


def test_a_name_of_a_hub_is_a_run(converted, tmp_path, monkeypatch):
    folder = converted["clip"][1]
    calls = []

    def download(repository: str, allow_patterns: list[str]) -> str:
        calls.append((repository, allow_patterns))
        return str(folder)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(
        huggingface_hub,
        "list_repo_files",
        lambda _: ["model.safetensors", "pytorch_model.bin", "README.md"],
    )
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with ThreadPoolExecutor() as pool:  # the second waits for the first
        assert [run.run.config.recipe for run in pool.map(Eve.load, ["hf:some/clip"] * 2)] == [
            "clip"
        ] * 2
    assert calls == [
        ("some/clip", ["*.json", "*.txt", "*.model"]),
        ("some/clip", ["*.json", "*.txt", "*.model", "model.safetensors"]),
    ]
    assert (
        Eve.load("hf:some/clip").run.folder
        == tmp_path / "cache" / "eve-vl" / "hf" / "format-3-converter-1" / "some--clip" / "best"
        and len(calls) == 2
    )
    with pytest.raises(UserError, match="is a published model, and nothing is written there"):
        refuse_to_write(Path("hf:some/clip"))


def test_a_hub_that_cannot_be_reached_is_said_in_a_line(tmp_path, monkeypatch, eve):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    done = eve("features", "--run", "hf:some/clip", "--texts", "a cat", "--out", "features.npz")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert (
        "hf:some/clip: cannot be downloaded (" in done.stderr
        and "check the name and the internet connection" in done.stderr
    )
    with pytest.raises(UserError, match="not the name of a model"):
        Eve.load("hf:clip")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    with pytest.raises(UserError, match="is none of CLIP, SigLIP and SigLIP 2"):
        Eve.load("hf:some/bert")


@pytest.mark.parametrize(("kind", "steps"), [("clip", 6), ("siglip", 3)])
def test_a_whole_walk(converted, tmp_path, eve, kind, steps):
    run = converted[kind][2].folder.parent
    images = tmp_path / "images"
    images.mkdir()
    rows = []
    for number, image in enumerate(pictures(12)):
        image.save(images / f"{number}.png")
        rows.append({"image": f"{number}.png", "caption": f"cat {number}"})
    (images / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = images / "pairs.jsonl"
    assert eve("index", data, "--run", run, "--out", "found").returncode == 0
    assert "images/" in eve("search", "found", "a cat", "--top", "3").stdout
    towers = (
        "--train.freeze",
        "encoder.image.*",
        "--train.lr-multipliers",
        "encoder.text.*",
        "0.1",
    )
    flags = (
        "--data.train",
        data,
        "--data.val",
        data,
        "--data.num-workers",
        0,
        "--train.steps",
        steps,
        "--train.batch-size",
        4,
    )
    own_size = ("--input.image-size", SIDE, "--train.device", "cpu", "--train.val-every", steps)
    tuned = eve(
        "finetune", "retrieval", "--init", run, "--out", "tuned", *flags, *own_size, *towers
    )
    assert tuned.returncode == 0 and "new, at" not in tuned.stdout, tuned.stderr
    before = load_run(run).task.state_dict()
    after = load_run(tmp_path / "tuned").task.state_dict()
    changed = {name.split(".")[1] for name in before if not torch.equal(before[name], after[name])}
    assert "image" not in changed - {"features"} and {"text", "features"} <= changed
    assert "ir1 " in eve("evaluate", "retrieval", "tuned", "--data", data).stdout
    parts = ["--parts", "text_encoder"] if kind == "siglip" else []
    assert "largest difference" in eve("export", "tuned", "onnx", *parts).stdout
    about = json.loads((tmp_path / "onnx" / "export.json").read_text())["parts"]["text_encoder"][
        "inputs"
    ]["ids"]
    assert "[CLS] last" in about["meaning"] and (f"to {OUR_LENGTH} tokens" in about["meaning"]) == (
        kind == "siglip"
    )
    labels = Eve.load(tmp_path / "tuned").zero_shot(
        images / "0.png", {"cat": ["a cat"], "dog": ["a dog"]}
    )
    assert {label.label for label in labels} == {"cat", "dog"}


# open_clip


def of_open_clip(folder: Path, converted: Any, *, is_siglip: bool) -> Any:
    open_clip = pytest.importorskip("open_clip")
    folder.mkdir()
    published = converted["siglip" if is_siglip else "clip"][1]
    vocab_size = len(json.loads((published / "tokenizer.json").read_text())["model"]["vocab"])
    text = {
        "context_length": OUR_LENGTH,
        "vocab_size": vocab_size,
        "width": 64,
        "heads": 4,
        "layers": 2,
    }
    vision: dict[str, Any] = {"image_size": SIDE, "width": 128, "layers": 3, "patch_size": 8}
    images = {
        "mean": MEAN.tolist(),
        "std": STD.tolist(),
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    if is_siglip:
        text |= {
            "no_causal_mask": True,
            "proj_bias": True,
            "pool_type": "last",
            "norm_kwargs": {"eps": 1e-6},
        }
        text |= {
            "act_kwargs": {"approximate": "tanh"},
            "tokenizer_kwargs": {"clean": "canonicalize"},
        }
        vision = {
            "timm_model_name": "vit_base_patch32_siglip_256",
            "timm_pool": "map",
            "timm_proj": "none",
            "image_size": SIDE * 3,
        }
        images = {
            "mean": [0.5] * 3,
            "std": [0.5] * 3,
            "interpolation": "bicubic",
            "resize_mode": "squash",
        }
    model_cfg = {"embed_dim": 768 if is_siglip else 40, "vision_cfg": vision, "text_cfg": text}
    model_cfg |= (
        {"custom_text": True, "init_logit_bias": -10} if is_siglip else {"quick_gelu": True}
    )
    kind = open_clip.CustomTextCLIP if is_siglip else open_clip.CLIP
    model = randomized(
        kind(**{name: value for name, value in model_cfg.items() if name != "custom_text"})
    )
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    (folder / "open_clip_config.json").write_text(
        json.dumps({"model_cfg": model_cfg, "preprocess_cfg": images})
    )
    shutil.copy(published / "tokenizer.json", folder)
    return model


@pytest.mark.parametrize("is_siglip", [False, True])
@torch.no_grad()
def test_features_equal_those_of_open_clip(converted, tmp_path, eve, is_siglip):
    model = of_open_clip(tmp_path / "source", converted, is_siglip=is_siglip)
    source = tmp_path / "source"
    main(
        [
            "convert",
            str(source if is_siglip else source / "open_clip_pytorch_model.bin"),
            str(tmp_path / "run"),
        ]
    )
    run = load_run(tmp_path / "run")
    pixels = torch.stack([user_image(image).pixels(run.config.input) for image in pictures(3)])
    mean, std = (torch.full((3,), 0.5),) * 2 if is_siglip else (MEAN, STD)
    image = model.encode_image(
        (pixels / 255 - mean[:, None, None]) / std[:, None, None], normalize=True
    )
    ids, is_padding = our_ids(run, TEXTS)
    fill = 1 if is_siglip else 0  # the highest token is the end for CLIP
    text = model.encode_text(
        F.pad(ids.masked_fill(is_padding, fill), (0, OUR_LENGTH - ids.shape[1]), value=fill),
        normalize=True,
    )
    assert (run.task.image_features(pixels) - image).abs().max() < 1e-5
    assert (run.task.text_features(ids, is_padding) - text).abs().max() < 1e-5
    config = json.loads((source / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"]["ls_init_value"] = 0.1
    (source / "open_clip_config.json").write_text(json.dumps(config))
    done = eve("convert", source, tmp_path / "other")
    assert done.returncode == 2 and "ls_init_value of open_clip is not supported" in done.stderr

"""Converted CLIP and SigLIP against transformers and open_clip, with random weights."""

import gc
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from eve_vl.builtin.names import refuse_to_write
from eve_vl.cli.main import main
from eve_vl.config import InputConfig
from eve_vl.data.batches import normalize, padded
from eve_vl.data.crops import eval_crop
from eve_vl.eve import Eve
from eve_vl.interop import convert, hf
from eve_vl.interop.onnx import export_run, inputs_of
from eve_vl.predict.user_images import user_image
from eve_vl.run.loading import LoadedRun, load_run
from eve_vl.utils.errors import UserError
from helpers.complaints import complaint
from helpers.published_clip import (
    CLIP_MEAN,
    CLIP_STD,
    KINDS,
    SIDE,
    TEXT_LENGTH,
    TEXT_TOWER,
    save_open_clip,
)

pytestmark = pytest.mark.usefixtures("no_report")

TEXTS = [
    "A cat",
    "hello, World: it's  a\ttest!",
    "x",
    "a text of many words that goes far beyond the longest one",
]


@dataclass
class Converted:
    """A model of transformers, the folder that it was saved in, and its run."""

    model: Any
    folder: Path
    run: LoadedRun


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> dict[str, Converted]:
    """By kind."""
    top = tmp_path_factory.mktemp("published")
    converted = {}
    for kind, save in KINDS.items():
        model = save(top / kind)
        main(["convert", str(top / kind), str(top / f"{kind}_run")])
        converted[kind] = Converted(model, top / kind, load_run(top / f"{kind}_run"))
    return converted


def parameters_in_memory() -> int:
    """Return the number of weights of all models in this process."""
    gc.collect()
    parameters = [thing for thing in gc.get_objects() if type(thing) is torch.nn.Parameter]
    return sum(parameter.numel() for parameter in parameters if not parameter.is_meta)


def test_the_trial_call_of_a_run_does_not_hold_its_weights_twice(converted, tmp_path, monkeypatch):
    before = parameters_in_memory()
    at_call = []
    monkeypatch.setattr(
        convert, "check_run", lambda *_, **__: at_call.append(parameters_in_memory())
    )
    assert not main(["convert", str(converted["clip"].folder), str(tmp_path / "run")])
    assert at_call == [before]


def random_images(num: int) -> list[Image.Image]:
    """Return smooth images of sizes from 20 to 119."""
    rng = np.random.default_rng(0)
    images = []
    for _ in range(num):
        width, height = rng.integers(20, 120, 2).tolist()
        coarse = Image.fromarray(rng.integers(0, 256, (9, 7, 3), dtype=np.uint8))
        images.append(coarse.resize((width, height), Image.Resampling.BICUBIC))
    return images


def pixels_of(run: LoadedRun, images: list[Image.Image]) -> Tensor:
    """Return what a run reads of images, from 0 to 255."""
    return torch.stack([user_image(image).pixels(run.config.input) for image in images])


def mean_and_std(kind: str) -> tuple[Tensor, Tensor]:
    """Return the published normalisation of pixels from 0 to 1, (3, 1, 1)."""
    half = torch.full((3, 1, 1), 0.5)
    if kind != "clip":
        return half, half
    return torch.tensor(CLIP_MEAN)[:, None, None], torch.tensor(CLIP_STD)[:, None, None]


def ids_of(run: LoadedRun, texts: list[str]) -> tuple[Tensor, Tensor]:
    ids = [run.tokenizer.encode(text, run.config.input.max_text_tokens)[0] for text in texts]
    return padded(ids, run.tokenizer.pad_id, run.config.input.padded_text_length)


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_features_and_logits_equal_those_of_transformers(converted, kind):
    model = converted[kind].model
    run = converted[kind].run
    images = random_images(4)
    pixels = pixels_of(run, images)
    mean, std = mean_and_std(kind)
    ids, is_padding = ids_of(run, TEXTS)
    inputs = {"pixel_values": (pixels / 255 - mean) / std}
    if kind == "clip":
        inputs["input_ids"] = ids.masked_fill(is_padding, 0)
        inputs["attention_mask"] = ~is_padding
    else:  # as in transformers' examples, SigLIP reads its own padding
        inputs["input_ids"] = ids.masked_fill(is_padding, 1 if kind == "siglip" else 0)
    expected = model(**inputs)

    image = run.task.image_features(pixels)
    text = run.task.text_features(ids, is_padding)
    assert image.shape == text.shape == (4, 24 if kind == "clip" else 48)
    assert (image - F.normalize(expected.image_embeds)).abs().max() < 1e-5
    assert (text - F.normalize(expected.text_embeds)).abs().max() < 1e-5
    assert (image - image[:1]).abs().max() > 0.01
    assert (text - text[:1]).abs().max() > 0.01
    if kind == "clip":  # a text alone has no padding
        single = run.task.text_features(*ids_of(run, TEXTS[:1]))
        assert (single - text[:1]).abs().max() < 1e-6

    hf_model, processor = hf.from_run(run.folder)
    inputs = processor(images=images, text=TEXTS)
    assert torch.equal(inputs["pixel_values"], normalize(pixels))
    assert torch.equal(inputs["input_ids"], ids)
    logits = hf_model(**inputs).logits_per_image
    assert (logits - expected.logits_per_image).abs().max() < 1e-4


@pytest.mark.parametrize("kind", ["clip", "siglip2"])
def test_tokens_equal_those_of_transformers(converted, kind):
    run = converted[kind].run
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(converted[kind].folder)
    texts = [*TEXTS, "Ünïcode 🐈 & more", "", "  spaces  "]
    token_ids = [run.tokenizer.encode(text, TEXT_LENGTH)[0].tolist() for text in texts]
    if kind == "clip":
        expected = tokenizer(texts, truncation=True, max_length=TEXT_LENGTH)["input_ids"]
    else:
        cut = {"truncation": True, "max_length": TEXT_LENGTH - 1}
        without_end = tokenizer(texts, add_special_tokens=False, **cut)["input_ids"]
        expected = [[*ids, 1] for ids in without_end]
    assert token_ids == expected


def test_tokenizer_in_two_files_gives_the_same_tokens(converted, tmp_path):
    """CLIP's first checkpoints have vocab.json and merges.txt."""
    old = tmp_path / "old"
    shutil.copytree(converted["clip"].folder, old)
    model = json.loads((old / "tokenizer.json").read_text())["model"]
    (old / "tokenizer.json").unlink()
    (old / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = [" ".join(pair) for pair in model["merges"]]
    (old / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    main(["convert", str(old), str(tmp_path / "run")])
    tokenizer = converted["clip"].run.tokenizer
    again = load_run(tmp_path / "run").tokenizer
    for text in TEXTS:
        assert again.encode(text, 99)[0].tolist() == tokenizer.encode(text, 99)[0].tolist()


def test_texts_of_siglip_are_cleaned_and_end_as_its_tokenizer_says(converted):
    tokenizer = converted["siglip"].run.tokenizer
    ids, _ = tokenizer.encode("Hello, -- CAT!", 16)
    pieces = [tokenizer.backend.id_to_token(token) for token in ids]
    assert pieces == ["▁hello", "▁c", "at", "</s>"]
    ids, is_special = tokenizer.encode("hello hello hello", 3)
    assert ids[-1] == tokenizer.end_id == 1
    assert is_special.tolist() == [False, False, True]
    assert tokenizer.spans("hello cat", 16) == [
        (0, 5),
        (5, 7),
        (7, 9),
        (0, 0),
    ]


@pytest.mark.parametrize(
    ("kind", "resize", "interpolation"),
    [
        ("clip", "crop", "bicubic"),
        ("siglip", "squash", "bicubic"),
        ("siglip2", "squash", "bilinear"),
    ],
)
def test_images_are_prepared_as_by_transformers(converted, kind, resize, interpolation):
    run = converted[kind].run
    assert run.config.input.resize == resize
    assert run.config.input.interpolation == interpolation
    mean, std = mean_and_std(kind)
    # Pillow rounds between its two passes
    for backend, tolerance in (("torchvision", 0), ("pil", 2)):
        processor: Any = transformers.AutoImageProcessor.from_pretrained(
            converted[kind].folder, backend=backend
        )
        for image in random_images(30):
            normalized = processor(images=image, return_tensors="pt")["pixel_values"][0]
            expected = ((normalized * std + mean) * 255).round()
            pixels = user_image(image).pixels(run.config.input)
            assert (expected - pixels).abs().max() <= tolerance, (backend, image.size)


def test_a_line_of_pixels_is_not_blown_up():
    crop = eval_crop(
        InputConfig(
            image_size=64,
            patch_size=8,
            resize="crop",
        )
    )
    assert crop(torch.zeros(3, 2, 200_000, dtype=torch.uint8)).shape == (3, 64, 64)


def changed_copy(source: Path, target: Path, file: str, **values: Any) -> None:
    """Copy a folder and change values of one of its JSON files."""
    shutil.copytree(source, target)
    content = json.loads((target / file).read_text())
    (target / file).write_text(json.dumps(content | values))


def test_unsupported_checkpoints_are_refused_in_one_line(converted, tmp_path, eve):
    clip = converted["clip"].folder
    changed_copy(clip, tmp_path / "naflex", "config.json", model_type="siglip2")
    changed_copy(clip, tmp_path / "lanczos", "preprocessor_config.json", resample=1)
    relu = TEXT_TOWER | {"hidden_act": "relu"}
    changed_copy(converted["siglip"].folder, tmp_path / "relu", "config.json", text_config=relu)
    shutil.copytree(clip, tmp_path / "no tokenizer")
    (tmp_path / "no tokenizer" / "tokenizer.json").unlink()
    shutil.copytree(clip, tmp_path / "no weights")
    (tmp_path / "no weights" / "model.safetensors").unlink()
    files = "(spiece.model, tokenizer.json, vocab.json)"
    for source, message in (
        ("naflex", "(NaFlex) is not supported; take a fixed resolution"),
        ("lanczos", "has resample 1 and size"),
        ("relu", "are not supported"),
        ("no tokenizer", f"holds no tokenizer {files}; name the file with --tokenizer"),
        ("no weights", "holds no weights"),
    ):
        assert message in complaint(eve("convert", source, "run"))
    message = "--copy has no effect on a CLIP or SigLIP checkpoint"
    assert message in complaint(eve("convert", clip, "run", "--copy", "text"))
    assert not (tmp_path / "run").exists()


def test_a_name_of_a_hub_is_a_run_that_is_downloaded_once(converted, tmp_path, monkeypatch):
    calls = []

    def download(repository: str, allow_patterns: list[str]) -> str:
        calls.append((repository, allow_patterns))
        return str(converted["clip"].folder)

    files = ["model.safetensors", "pytorch_model.bin", "README.md"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda _: files)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with ThreadPoolExecutor() as pool:  # the second waits for the first
        runs = list(pool.map(Eve.load, ["hf:some/clip"] * 2))
    assert [run.run.config.recipe for run in runs] == ["clip", "clip"]
    texts = ["*.json", "*.txt", "*.model"]
    expected_calls = [("some/clip", texts), ("some/clip", [*texts, "model.safetensors"])]
    assert calls == expected_calls
    folder = tmp_path / "cache" / "eve-vl" / "hf" / "format-3-converter-2" / "some--clip" / "best"
    assert Eve.load("hf:some/clip").run.folder == folder
    assert calls == expected_calls
    with pytest.raises(UserError, match="is a published model, and nothing is written there"):
        refuse_to_write(Path("hf:some/clip"))


def test_models_of_a_hub_that_cannot_be_had_are_refused(tmp_path, monkeypatch, eve):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    flags = ("--texts", "a cat", "--out", "features.npz")
    line = complaint(eve("features", "hf:some/clip", *flags))
    assert "hf:some/clip: cannot be downloaded (" in line
    assert "check the name and the internet connection" in line
    with pytest.raises(UserError, match="not the name of a model"):
        Eve.load("hf:clip")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    with pytest.raises(UserError, match="is none of CLIP, SigLIP and SigLIP 2"):
        Eve.load("hf:some/bert")


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_a_converted_model_is_indexed_searched_tuned_evaluated_and_asked(
    converted, tmp_path, eve, kind
):
    run = converted[kind].run.folder.parent
    images = tmp_path / "images"
    images.mkdir()
    data = images / "pairs.jsonl"
    lines = []
    for number, image in enumerate(random_images(12)):
        image.save(images / f"{number}.png")
        lines.append(json.dumps({"image": f"{number}.png", "caption": f"cat {number}"}))
    data.write_text("\n".join(lines))
    assert eve("index", data, "--run", run, "--out", "index").returncode == 0
    assert "images/" in eve("search", "index", "a cat", "--top", "3").stdout

    sources = ("--data.train", data, "--data.val", data, "--data.num-workers", 0)
    sizes = ("--train.steps", 2, "--train.batch-size", 4, "--input.image-size", SIDE)
    every = ("--train.val-every", 2, "--train.device", "cpu")
    rates = ("--train.freeze", "encoder.image.*", "--train.lr-multipliers", "encoder.text.*", "0.1")
    flags = (*sources, *sizes, *every, *rates)
    done = eve("finetune", "retrieval", "--init", run, "--out", "tuned", *flags)
    assert done.returncode == 0, done.stderr
    assert "new, at" not in done.stdout  # all weights are the converted ones
    before = load_run(run).task.state_dict()
    after = load_run(tmp_path / "tuned").task.state_dict()
    changed = set()
    for name, tensor in before.items():
        if not torch.equal(tensor, after[name]):
            changed.add(name.split(".")[1])
    assert changed >= {"text", "features"}
    assert "image" not in changed
    assert "ir1 " in eve("evaluate", "retrieval", "tuned", "--data", data).stdout
    classes = {"cat": ["a cat"], "dog": ["a dog"]}
    labels = Eve.load(tmp_path / "tuned").zero_shot(images / "0.png", classes)
    assert {label.label for label in labels} == {"cat", "dog"}


def test_text_encoder_of_clip_is_exported_and_its_ids_are_described(converted, tmp_path):
    clip = converted["clip"].run
    (file,) = export_run(clip.folder.parent, tmp_path / "onnx", ("text_encoder",))
    assert file.largest_difference < 1e-4
    for kind, is_padded in (("clip", False), ("siglip", True)):
        meaning = inputs_of(converted[kind].run)["ids"]["meaning"]
        assert "[CLS] last" in meaning
        assert (f"to {TEXT_LENGTH} tokens" in meaning) == is_padded


# open_clip


@pytest.mark.parametrize("kind", ["clip", "siglip"])
@torch.no_grad()
def test_features_equal_those_of_open_clip(converted, tmp_path, eve, kind):
    folder = tmp_path / "published"
    model = save_open_clip(kind, folder, converted[kind].folder / "tokenizer.json")
    source = folder / "open_clip_pytorch_model.bin" if kind == "clip" else folder
    main(["convert", str(source), str(tmp_path / "run")])
    run = load_run(tmp_path / "run")

    pixels = pixels_of(run, random_images(3))
    mean, std = mean_and_std(kind)
    image = model.encode_image((pixels / 255 - mean) / std, normalize=True)
    assert (run.task.image_features(pixels) - image).abs().max() < 1e-5
    ids, is_padding = ids_of(run, TEXTS)
    fill = 0 if kind == "clip" else 1  # the highest token is the end for CLIP
    filled = ids.masked_fill(is_padding, fill)
    filled = F.pad(filled, (0, TEXT_LENGTH - ids.shape[1]), value=fill)
    text = model.encode_text(filled, normalize=True)
    assert (run.task.text_features(ids, is_padding) - text).abs().max() < 1e-5

    config = json.loads((folder / "open_clip_config.json").read_text())
    config["model_cfg"]["vision_cfg"]["ls_init_value"] = 0.1
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    line = complaint(eve("convert", folder, tmp_path / "new"))
    assert "ls_init_value of open_clip is not supported" in line

"""Settings and weights of a CLIP are followed, or refused in one line without a folder."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from eve_vl.eve import Eve
from helpers.complaints import complaint
from helpers.published_clip import save_clip, save_siglip2

pytestmark = pytest.mark.usefixtures("no_report")

CONFIG = "config.json"
IMAGES = "preprocessor_config.json"
QUERY = "vision_model.encoder.layers.0.self_attn.q_proj.weight"


@pytest.fixture(scope="module")
def clip(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("published") / "clip"
    save_clip(folder)
    return folder


def change_fields(path: Path, values: dict[str, Any]) -> None:
    """Set fields of a JSON file; "a.b" is field b of section a."""
    content = json.loads(path.read_text())
    for name, value in values.items():
        section, _, field = name.rpartition(".")
        target = content[section] if section else content
        target[field] = value
    path.write_text(json.dumps(content))


def change_tensors(folder: Path, change: Callable[[dict[str, Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        (CONFIG, {"text_config.num_hidden_layers": 3}, "num_hidden_layers is 3, but the weights"),
        (CONFIG, {"vision_config.patch_size": 16}, "patch_size is 16, but the weights have vision"),
        (CONFIG, {"projection_dim": 23}, "projection_dim is 23, but the weights have features 24"),
        (
            CONFIG,
            {"vision_config.num_attention_heads": "three"},
            "num_attention_heads is 'three' (",
        ),
        (CONFIG, {"vision_config": None}, "size 224, cropped if it is"),
        (CONFIG, {"vision_config": [1]}, "vision_config is [1], expected an object"),
        (CONFIG, {"text_config.eos_token_id": 7}, "reads texts at token 7, but those of"),
        (CONFIG, {"text_config.num_attention_heads": 0}, "num_attention_heads is 0, expected 1"),
        (IMAGES, {"do_normalize": None}, "do_normalize is null, expected true or false"),
        (IMAGES, {"do_resize": False}, "do_resize False"),
        (IMAGES, {"do_center_crop": False}, "do_center_crop False"),
        (IMAGES, {"crop_size": {"height": 24, "width": 24}}, "crop_size {'height': 24"),
        (IMAGES, {"do_pad": True}, "do_pad is not supported"),
        (IMAGES, {"image_std": [0.2, 0, 0.2]}, "image_std [0.2, 0, 0.2] are not usable"),
        (IMAGES, {"image_mean": [0.5]}, "image_mean is [0.5], expected three finite numbers"),
        (IMAGES, {"image_mean": [0.5, 0.5, float("nan")]}, "expected three finite numbers"),
        (IMAGES, {"image_processor_type": "BitImageProcessor"}, "BitImageProcessor is not suppo"),
    ],
)
def test_a_setting_that_cannot_be_followed_is_refused(
    eve,
    clip,
    tmp_path,
    file,
    values,
    message,
):
    shutil.copytree(clip, tmp_path / "clip")
    change_fields(tmp_path / "clip" / file, values)
    assert message in complaint(eve("convert", "clip", "run"))
    assert [path.name for path in tmp_path.iterdir()] == ["clip"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda tensors: [
                tensors.pop(name) for name in list(tensors) if "t_model.encoder.layers.1." in name
            ],
            "text_config.num_hidden_layers is 2, but the weights have text layers 1",
        ),
        (
            lambda tensors: tensors.pop("visual_projection.weight"),
            "1 missing: image.projection.weight",
        ),
        (lambda tensors: tensors.pop("text_projection.weight"), "'text.projection.weight' is mis"),
        (lambda tensors: tensors.update({QUERY: tensors[QUERY].long()}), "of whole numbers"),
        (
            lambda tensors: tensors.update({"text_model.head.weight": torch.ones(24, 32)}),
            "are the same tensor of the model",
        ),
        (
            lambda tensors: tensors.update({"logit_scale": torch.tensor(-1e30)}),
            "holds NaN or infinity",
        ),
        (
            lambda tensors: tensors["vision_model.pre_layrnorm.weight"].mul_(1e38),
            "image_features, image_embeds, logits_per_image, logits_per_text of an image and a",
        ),
    ],
)
def test_weights_that_do_not_give_a_model_are_refused(eve, clip, tmp_path, change, message):
    shutil.copytree(clip, tmp_path / "clip")
    change_tensors(tmp_path / "clip", change)
    assert message in complaint(eve("convert", "clip", "run"))
    assert [path.name for path in tmp_path.iterdir()] == ["clip"]


def test_a_tokenizer_with_fewer_tokens_is_refused(eve, clip, tmp_path):
    shutil.copytree(clip, tmp_path / "clip")
    path = tmp_path / "clip" / "tokenizer.json"
    content = json.loads(path.read_text())
    for token in list(content["model"]["vocab"])[:10]:
        del content["model"]["vocab"][token]
    path.write_text(json.dumps(content))
    complaint(eve("convert", "clip", "run"))
    assert [path.name for path in tmp_path.iterdir()] == ["clip"]


def test_siglip_2_without_a_padding_token_is_refused(eve, tmp_path):
    save_siglip2(tmp_path / "siglip")
    path = tmp_path / "siglip" / "tokenizer_config.json"
    content = json.loads(path.read_text())
    del content["pad_token"]
    path.write_text(json.dumps(content))
    assert "names no pad_token" in complaint(eve("convert", "siglip", "run"))
    assert [path.name for path in tmp_path.iterdir()] == ["siglip"]


@pytest.mark.parametrize("token", ["", None, {"content": "<|endoftext|>"}])
def test_other_tokens_around_texts_are_refused(eve, clip, tmp_path, token):
    shutil.copytree(clip, tmp_path / "clip")
    change_fields(tmp_path / "clip" / "tokenizer_config.json", {"bos_token": token})
    line = complaint(eve("convert", "clip", "run"))
    assert "tokenizer_config.json: bos_token" in line
    assert line.endswith("is not supported; only '<|startoftext|>' is")
    assert [path.name for path in tmp_path.iterdir()] == ["clip"]


@pytest.mark.parametrize(
    "values",
    [
        {"do_normalize": False},
        {"do_rescale": False},
        {"rescale_factor": 1 / 127.5},
        {"image_std": [0.2, 0.3, -0.4]},
        {"size": {"height": 32, "width": 32}},
    ],
)
@torch.no_grad()
def test_settings_of_pixels_are_followed(eve, clip, tmp_path, values):
    folder = tmp_path / "clip"
    shutil.copytree(clip, folder)
    change_fields(folder / IMAGES, values)
    assert eve("convert", "clip", "run").returncode == 0
    image = Image.radial_gradient("L").resize((50, 40)).convert("RGB")
    processor: Any = transformers.AutoImageProcessor.from_pretrained(folder)
    model: Any = transformers.CLIPModel.from_pretrained(folder)
    expected = model.get_image_features(**processor(images=image, return_tensors="pt"))
    expected = torch.nn.functional.normalize(expected.pooler_output)
    actual = Eve.load(tmp_path / "run").encode_image(image)
    assert (torch.as_tensor(actual) - expected).abs().max() < 1e-4

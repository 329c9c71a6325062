"""Expert maps against the router written out and against the counts of training.

Letters: N tokens, E experts.
"""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from eve_vl.eve import Eve
from eve_vl.model.router import chosen_ME
from eve_vl.predict.expert_map import expert_colors
from eve_vl.utils.errors import UserError
from helpers.tiny_runs import BASELINE, TEXT, ids_of, image_tokens, noise, tiny_run, write_run

NUM_PATCHES = 16


def watched_inputs(encoder: Any, num_tokens: int) -> dict[int, Tensor]:
    """Return a table that a pass fills with the tokens that enter the experts of each block."""
    x_of_block: dict[int, Tensor] = {}

    def watch(number: int, _module: nn.Module, arguments: tuple[Tensor, Any]) -> None:
        x_of_block[number] = arguments[0][:num_tokens]

    for number in (1, 2):  # the blocks with experts
        encoder.blocks[number].ffn.register_forward_pre_hook(partial(watch, number))
    return x_of_block


@pytest.mark.parametrize(
    ("inputs", "routing"),
    [
        ("image", "dropless"),
        ("text", "dropless"),
        ("both", "dropless"),
        ("both", "reference-dropless"),
    ],
)
def test_tokens_go_where_the_router_sends_them(inputs, routing):
    eve: Any = Eve(tiny_run("masked", model={"routing": routing}))
    encoder = eve.task.encoder
    image = text_part = image_part = None
    text = ""
    is_text = []
    if inputs != "text":
        image = noise(0)
        image_part = image_tokens(eve.task, image)
        is_text += [0] * (1 + NUM_PATCHES)
    num_image = len(is_text)
    if inputs != "image":
        text = TEXT
        ids = ids_of(eve, TEXT)
        text_part = encoder.text(ids, None)
        is_text += [1] * ids.shape[1]
    expert_map = eve.experts(image, text)
    assert expert_map.grid == ((4, 4) if image is not None else (0, 0))
    assert expert_map.words == (("[CLS]", *TEXT.split()) if text else ())

    x_of_block = watched_inputs(encoder, len(is_text))
    with torch.no_grad():
        encoded = encoder.encode(image_part, text_part)
    assert [block.number for block in expert_map.blocks] == [1, 2]
    for block, stats in zip(expert_map.blocks, encoded.routers[0], strict=True):
        router = encoder.blocks[block.number].ffn.router
        x_ND = x_of_block[block.number] + router.modality_embed[is_text]
        gates_NE = (x_ND @ router.weight.T).softmax(1).detach()
        gates_N2, experts_N2 = gates_NE.topk(2)
        assert block.num_experts == 4
        assert block.experts.tolist() == experts_N2.tolist()
        expected_N2 = gates_N2 / gates_N2.sum(1, keepdim=True)
        np.testing.assert_allclose(block.gates, expected_N2, rtol=1e-4)
        counts_of_training_ME = chosen_ME(stats).numpy()
        parts = (block.experts[:num_image], block.experts[num_image:])
        for part, counts_E in zip(parts, counts_of_training_ME, strict=True):
            assert np.bincount(part.flatten(), minlength=4).tolist() == counts_E.tolist()
    colors = [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in expert_colors(4)]
    assert len(set(colors)) == 4
    for block in json.loads(json.dumps(expert_map.values()))["blocks"]:
        assert block["colors"] == colors


def test_the_text_changes_the_gates_of_patches_and_no_call_the_next_one():
    eve: Any = Eve(tiny_run("vqa"))
    pair = eve.experts(noise(0), TEXT)
    alone = eve.experts(noise(0))
    again = eve.experts(noise(0), TEXT)
    assert (pair.blocks[0].gates[: 1 + NUM_PATCHES] != alone.blocks[0].gates).any()
    for block, same_block in zip(pair.blocks, again.blocks, strict=True):
        assert (block.gates == same_block.gates).all()


def test_only_runs_with_experts_offer_expert_maps():
    with_experts: Any = Eve(tiny_run("vqa"))
    without: Any = Eve(tiny_run("vqa", model={"deep_ffn": "modality"}))
    assert "experts" in with_experts.calls
    assert Eve(tiny_run("masked", task=BASELINE)).calls[-1] == "experts"
    assert "experts" not in without.calls
    assert not hasattr(without, "experts")
    message = r"^experts: tiny is a run without experts; .*--model.deep-ffn moe$"
    with pytest.raises(UserError, match=message):
        without.experts(noise(0))
    with pytest.raises(UserError, match="give an image, a text or both"):
        with_experts.experts()


def test_the_command_draws_an_image_for_each_block(eve, tmp_path: Path):
    run = tiny_run("nlvr2")
    write_run(run, tmp_path / "run")
    Image.fromarray(noise(0)).save(tmp_path / "0.png")
    done = eve("experts", "run", "0.png", TEXT, "--out", "route.png", "--json", "route.json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("route.png: block 1: patches: ")
    assert "\nblock 2: patches: " in done.stdout
    assert "red" not in done.stdout
    expert_map = Eve(run).experts(noise(0), TEXT)
    assert json.loads((tmp_path / "route.json").read_text()) == expert_map.values()

    drawing = np.asarray(Image.open(tmp_path / "route.png"))
    side = 336
    gap = 8
    top = 25
    assert drawing.shape[1] == 2 * side + gap
    colors = np.array(expert_colors(4))
    for number, block in enumerate(expert_map.blocks):
        for patch, expert in enumerate(block.experts[1 : 1 + NUM_PATCHES, 0]):
            row, column = divmod(patch, 4)
            y = top + row * 84 + 2  # a corner, where no number is written
            x = number * (side + gap) + column * 84 + 2
            expected = 0.45 * noise(0)[row * 4, column * 4] + 0.55 * colors[expert]
            assert np.abs(drawing[y, x] - expected).max() <= 1.5
    assert eve("experts", "run", "--json", "x.json").stderr.count("\n") == 1

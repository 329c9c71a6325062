"""Expert maps against the router written out and against the counts of training.

Letters: N tokens, S rows, E experts, K chosen experts, M = 2 modalities.
"""

import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from eve_vl.eve import Eve
from eve_vl.model.router import chosen_ME
from eve_vl.predict.expert_map import expert_colors
from eve_vl.utils.errors import UserError
from helpers.tiny_runs import BASELINE, TEXT, ids_of, image_tokens, noise, tiny_run, write_run

P = 16


@pytest.mark.parametrize(
    "model", [{}, {"routing": "reference-dropless"}], ids=["dropless", "reference-dropless"]
)
@pytest.mark.parametrize("given", ["image", "text", "both"])
def test_tokens_go_where_the_router_sends_them(given, model):
    eve = Eve(tiny_run("masked", model=model))
    image, text = (noise(0) if given != "text" else None), (TEXT if given != "image" else "")
    found = eve.experts(image, text)

    encoder: Any = eve.task.encoder
    seen: dict[int, Any] = {}
    for number in (
        1,
        2,
    ):  # what the feed-forward part of the blocks with experts sees, padding left out
        encoder.blocks[number].ffn.register_forward_pre_hook(
            lambda _, args, number=number: seen.update({number: args})
        )
    images = image_tokens(eve.task, image) if image is not None else None
    texts = encoder.text(ids_of(eve, TEXT), None) if text else None
    with torch.no_grad():
        encoded = encoder.encode(images, texts)
    num_image_tokens, num_text = (
        (1 + P) * bool(given != "text"),
        ids_of(eve, TEXT).shape[1] * bool(text),
    )
    is_text = torch.tensor([0] * num_image_tokens + [1] * num_text)
    assert [block.number for block in found.blocks] == [1, 2]
    for block, stats in zip(found.blocks, encoded.routers[0], strict=True):
        router = encoder.blocks[block.number].ffn.router
        x_ND = seen[block.number][0][: len(is_text)]
        gates_NE = ((x_ND + router.modality_embed[is_text]) @ router.weight.T).softmax(1).detach()
        for row, gates_E in enumerate(gates_NE):
            best = gates_E.argsort(descending=True)[:2]
            assert block.experts[row].tolist() == best.tolist()
            np.testing.assert_allclose(
                block.gates[row], gates_E[best] / gates_E[best].sum(), rtol=1e-4
            )
        parts = block.experts[:num_image_tokens], block.experts[num_image_tokens:]
        counted_ME = np.array([np.bincount(part.flatten(), minlength=4) for part in parts])
        assert (counted_ME == chosen_ME(stats).numpy()).all(), "what training and the report count"
        assert block.num_experts == 4
    assert found.grid == ((4, 4) if num_image_tokens else (0, 0))
    assert found.words == (("[CLS]", *TEXT.split()) if text else ())
    for block in json.loads(json.dumps(found.values()))["blocks"]:
        assert block["colors"] == [
            f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in expert_colors(4)
        ]


def test_neighbours_and_the_other_modality_matter_as_in_the_pass():
    """The image's own pass is another one than the pair's; nothing of a call stays for the next."""
    eve = Eve(tiny_run("vqa"))
    pair, alone = eve.experts(noise(0), TEXT), eve.experts(noise(0))
    assert (pair.blocks[0].gates[: 1 + P] != alone.blocks[0].gates).any()
    assert all(
        (first.gates == again.gates).all()
        for first, again in zip(pair.blocks, eve.experts(noise(0), TEXT).blocks, strict=True)
    )


def test_only_runs_with_experts_offer_it():
    with_experts, without = (
        Eve(tiny_run("vqa")),
        Eve(tiny_run("vqa", model={"deep_ffn": "modality"})),
    )
    assert (
        "experts" in with_experts.calls
        and "experts" not in without.calls
        and not hasattr(without, "experts")
    )
    assert Eve(tiny_run("masked", task=BASELINE)).calls[-1] == "experts"
    with pytest.raises(
        UserError, match=r"^experts: tiny is a run without experts; .*--model.deep-ffn moe$"
    ):
        without.experts(noise(0))
    with pytest.raises(UserError, match="give an image, a text or both"):
        with_experts.experts()


def test_on_the_command_line(eve, tmp_path):
    run = tiny_run("nlvr2")
    write_run(run, tmp_path / "run")
    Image.fromarray(noise(0)).save(tmp_path / "0.png")
    done = eve("experts", "run", "0.png", TEXT, "--out", "route.png", "--json", "route.json")
    assert done.returncode == 0, done.stderr
    found = Eve(run).experts(noise(0), TEXT)
    assert done.stdout.startswith("route.png: block 1: patches: ")
    assert "\nblock 2: patches: " in done.stdout and "red" not in done.stdout
    written = json.loads((tmp_path / "route.json").read_text())
    assert written == found.values()
    image = np.asarray(Image.open(tmp_path / "route.png"))
    side, gap, top = 336, 8, 25
    assert image.shape[1] == 2 * side + gap, "an image of each block"
    colors = expert_colors(4)
    assert len(set(colors)) == 4
    for number, block in enumerate(found.blocks):
        for patch, expert in enumerate(block.experts[1 : 1 + P, 0]):
            row, column = divmod(patch, 4)
            y, x = (
                top + row * 84 + 2,
                number * (side + gap) + column * 84 + 2,
            )  # a corner, where no number is written
            shown = 0.45 * noise(0)[row * 4, column * 4] + 0.55 * np.array(colors[expert])
            assert np.abs(image[y, x] - shown).max() <= 1.5
    assert eve("experts", "run", "--json", "x.json").stderr.count("\n") == 1

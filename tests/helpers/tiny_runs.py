"""Tiny runs of every task, in memory or as folders."""

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from eve_vl.config import ModelConfig, TaskConfig, config_to_json
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.eve import Eve
from eve_vl.model.tokens import Tokens
from eve_vl.run.loading import LoadedRun, build_task
from eve_vl.tasks.contrast_match.config import ContrastMatchConfig
from eve_vl.tasks.masked_signal.task import MaskedSignal
from eve_vl.tasks.nlvr2.config import NLVR2Config
from eve_vl.tasks.retrieval.config import RetrievalConfig
from eve_vl.tasks.task import Task
from eve_vl.tasks.vqa.config import VQAConfig
from helpers.random_weights import randomize
from helpers.tiny_config import tiny_config
from helpers.tiny_rows import CAPTIONS

ANSWERS = ("yes", "no", "red", "blue")
TASKS: dict[str, TaskConfig | None] = {
    "masked": None,
    "retrieval": RetrievalConfig(projection_dim=8),
    "vqa": VQAConfig(),
    "nlvr2": NLVR2Config(),
    "nlvr2_paired": NLVR2Config(head="paired"),
    "nlvr2_compare": NLVR2Config(head="compare"),
}
BASELINE = ContrastMatchConfig(
    mim_weight=1.0, projection_dim=8, decoder_depth=1, decoder_dim=16, decoder_num_heads=2
)
TEXT = "two small blue squares on gray"
TEXTS = (TEXT, "a red circle", "purple triangle, orange heart")
NUM_IMAGE = 17  # tokens of an image, its [CLS] included


def tiny_run(
    name: str,
    folder: Path = Path("tiny"),
    *,
    task: dict | TaskConfig | None = None,
    model: dict | ModelConfig | None = None,
) -> LoadedRun:
    """Return a run whose every weight matters, with a tokenizer of whole words.

    16 patches of 4×4, at most 12 tokens, 3 blocks of which the last 2 have experts. task: fields of
    the pre-training section, for "masked". model: fields of the model section.
    """
    config = tiny_config(task=task or TASKS[name], model=model)
    tokenizer = Tokenizer.train(CAPTIONS * 3, 500)
    built = build_task(config, tokenizer, ANSWERS)
    randomize(built, seed=1, std=0.35)
    return LoadedRun(
        config=config,
        tokenizer=tokenizer,
        task=built.eval(),
        step=1,
        folder=folder,
    )


def write_run(run: LoadedRun, folder: Path) -> Path:
    """Write the files that `load_run` reads."""
    folder.mkdir(parents=True)
    weights = {name: tensor.contiguous() for name, tensor in run.task.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    (folder / "config.json").write_text(config_to_json(run.config))
    (folder / "tokenizer.json").write_text(run.tokenizer.to_json())
    (folder / "answers.json").write_text(json.dumps(ANSWERS))
    (folder / "state.json").write_text(json.dumps({"step": run.step}))
    return folder


def noise(seed: int, height: int = 16, width: int = 16) -> np.ndarray:
    """Return an image: uint8 (height, width, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def pixels(*images: np.ndarray) -> Tensor:
    """Return images of the right size as the encoder gets them: float (B, 3, 16, 16) in [-1, 1]."""
    batch_BHWC = torch.from_numpy(np.stack(images)).double()
    return (batch_BHWC.permute(0, 3, 1, 2).contiguous() / 255 * 2 - 1).float()


def assert_close(
    values: np.ndarray,
    expected: Tensor | np.ndarray | list[float],
    rtol: float = 1e-4,
    atol: float = 1e-5,
) -> None:
    if isinstance(expected, Tensor):
        expected = expected.detach().numpy()
    np.testing.assert_allclose(values, expected, rtol=rtol, atol=atol)


def ids_of(eve: Eve, text: str) -> Tensor:
    """Return token ids of one text, (1, T)."""
    return torch.tensor([eve.tokenizer.backend.encode(text).ids])


def image_tokens(task: Task, *images: np.ndarray) -> Tokens:
    return task.encoder.image(pixels(*images))


def text_cls(eve: Eve, image: np.ndarray, text: str) -> Tensor:
    """Return the state of the text [CLS] of one pair without padding, (1, D)."""
    encoder = eve.task.encoder
    text_tokens = encoder.text(ids_of(eve, text), None)
    states = encoder.encode(image_tokens(eve.task, image), text_tokens).x_BND
    return states[:, NUM_IMAGE]


def token_probabilities(
    eve: Eve,
    image: np.ndarray,
    ids: list[int],
    places: list[int],
) -> Tensor:
    """Return what the token head says at some places of a text, (M, V)."""
    task = eve.task
    assert isinstance(task, MaskedSignal)
    text_tokens = task.encoder.text(torch.tensor([ids]), None)
    states = task.encoder.encode(image_tokens(task, image), text_tokens).x_BND[0, NUM_IMAGE:]
    return task.token_head(states[places]).softmax(1)

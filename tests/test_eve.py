"""`Eve` against batches built by hand and the parts of the tasks.

Letters: B batch, P patches, T text tokens, D width, V vocabulary, A answers.
"""

import copy
import inspect
import itertools
import pydoc
import random
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import eve_vl
from eve_vl.config import DualEncoderConfig
from eve_vl.eve import Eve
from eve_vl.model.tokens import Tokens
from eve_vl.run.loading import LoadedRun
from eve_vl.tasks.contrast_match.task import ContrastMatch
from eve_vl.tasks.headless.config import HeadlessConfig
from eve_vl.tasks.masked_signal.config import MaskedSignalConfig
from eve_vl.tasks.masked_signal.predictor import FilledText
from eve_vl.tasks.masked_signal.task import MaskedSignal
from eve_vl.tasks.nlvr2.task import NLVR2
from eve_vl.tasks.retrieval.config import RetrievalConfig
from eve_vl.tasks.retrieval.task import Retrieval
from eve_vl.tasks.vqa.task import VQA
from eve_vl.train.devices import pick_device, pick_dtype
from eve_vl.utils.errors import UserError
from helpers.tiny_runs import (
    ANSWERS,
    BASELINE,
    TASKS,
    TEXT,
    TEXTS,
    assert_close,
    ids_of,
    image_tokens,
    noise,
    pixels,
    text_cls,
    tiny_run,
    token_probabilities,
    write_run,
)

MASKED = MaskedSignalConfig(decoder_depth=1, decoder_dim=16, decoder_num_heads=2)

# Features


def projected_cls(run: LoadedRun, tokens: Tokens, name: str) -> torch.Tensor:
    """Return the normalised states of [CLS], behind the projection of a run with contrast."""
    is_image = name == "image"
    inputs = (tokens, None) if is_image else (None, tokens)
    state_BD = run.task.encoder.encode(*inputs).x_BND[:, 0]
    if isinstance(run.task, Retrieval | ContrastMatch):
        features = run.task.contrast.features
        state_BD = state_BD @ getattr(features, name).weight.T
    return state_BD / state_BD.norm(dim=1, keepdim=True)


@pytest.mark.parametrize("name", ["retrieval", "baseline", "masked", "vqa", "nlvr2", "encoder"])
def test_features_are_projections_or_else_the_cls_state(name):
    run = run_of(name)
    eve = Eve(run)
    images = [noise(seed) for seed in range(3)]
    features = eve.encode_image(images)
    assert features.dtype == np.float32
    assert features.shape == (3, run.task.feature_dim)
    assert_close(features, projected_cls(run, image_tokens(run.task, *images), "image"))
    features = eve.encode_text(TEXTS)
    for row, text in enumerate(TEXTS):
        tokens = run.task.encoder.text(ids_of(eve, text), None)
        assert_close(features[[row]], projected_cls(run, tokens, "text"))


def test_order_is_kept_and_neighbours_do_not_matter():
    eve = Eve(tiny_run("retrieval"))
    images = [noise(seed, 20 + seed, 30) for seed in range(7)]
    texts = [*TEXTS, "a", TEXT]
    alone = np.concatenate([eve.encode_image(image) for image in images])
    np.testing.assert_allclose(np.linalg.norm(alone, axis=1), 1, rtol=1e-6)
    texts_alone = np.concatenate([eve.encode_text(text) for text in texts])
    for size in (1, 3, 64):
        assert_close(eve.encode_image(images, batch_size=size), alone)
        assert_close(eve.encode_text(texts, batch_size=size), texts_alone)
    assert np.abs(alone[0] - alone[1]).max() > 1e-3
    assert eve.encode_image([]).shape == eve.encode_text([]).shape == (0, 8)


def test_long_texts_are_cut_as_in_training():
    eve = Eve(tiny_run("retrieval"))
    long = " ".join(["red"] * 30)
    cut = torch.from_numpy(eve.tokenizer.encode(long, 12)[0])[None]
    assert isinstance(eve.task, Retrieval)
    assert_close(eve.encode_text(long), eve.task.text_features(cut, None))


# Calls


@pytest.mark.parametrize("name", ["retrieval", "baseline"])
def test_match(name):
    run = run_of(name)
    eve = Eve(run)
    assert isinstance(run.task, Retrieval | ContrastMatch)
    head = run.task.contrast.match_head
    assert head is not None
    images = [noise(seed) for seed in range(3)]
    expected = []
    for image, text in zip(images, TEXTS, strict=True):
        expected.append(head(text_cls(eve, image, text)).softmax(1)[0, 1].item())
    match_IT = eve.match(images, TEXTS)
    assert (match_IT.dtype, match_IT.shape) == (np.float32, (3, 3))
    assert_close(match_IT.diagonal(), expected)
    probability = eve.match(images[1], TEXTS[1])
    assert isinstance(probability, float)
    assert probability == pytest.approx(expected[1], rel=1e-4)


def test_answer():
    eve = Eve(tiny_run("vqa"))
    assert isinstance(eve.task, VQA)
    expected_A = eve.task.answer_head(text_cls(eve, noise(0), TEXT)).sigmoid()[0].tolist()
    answers = eve.answer(noise(0), TEXT)
    probabilities = {answer.answer: answer.probability for answer in answers}
    assert probabilities == pytest.approx(dict(zip(ANSWERS, expected_A, strict=True)), rel=1e-4)
    assert [*probabilities.values()] == sorted(probabilities.values(), reverse=True)
    assert eve.answer(noise(0), TEXT, top=2) == answers[:2]
    with pytest.raises(UserError, match="top 0 is not positive"):
        eve.answer(noise(0), TEXT, top=0)
    with pytest.raises(UserError, match="text is empty"):
        eve.answer(noise(0), " ")


def test_verify():
    eve = Eve(tiny_run("nlvr2"))
    assert isinstance(eve.task, NLVR2)
    states = torch.cat(
        [
            text_cls(eve, noise(0), TEXT),
            text_cls(eve, noise(1), TEXT),
        ],
        dim=1,
    )
    expected = eve.task.concat_head(states).softmax(1)[0, 1].item()
    judgement = eve.verify(noise(0), noise(1), TEXT)
    assert judgement.probability == pytest.approx(expected, rel=1e-4)
    assert judgement.is_true == (expected > 0.5)
    assert eve.verify(noise(1), noise(0), TEXT).probability != pytest.approx(expected, rel=1e-3)
    with pytest.raises(UserError, match=r"right image: no such file"):
        eve.verify(noise(0), "nowhere.png", TEXT)


def test_fill_mask():
    eve = Eve(tiny_run("masked"))
    word = eve.tokenizer.word
    ids = ids_of(eve, "a red circle, orange heart")[0].tolist()
    words = [word(token) for token in ids]
    places = [words.index("red"), words.index("orange")]
    for place in places:
        ids[place] = eve.tokenizer.mask_id
    best_MK = token_probabilities(eve, noise(0), ids, places).topk(3)
    filled = eve.fill_mask(noise(0), "a [MASK] circle, [MASK] heart", top=3)
    assert isinstance(filled, FilledText)
    for row, guesses in enumerate(filled.guesses):
        best_words = [word(token) for token in best_MK.indices[row].tolist()]
        assert [guess.text for guess in guesses] == best_words
        probabilities = [guess.probability for guess in guesses]
        assert probabilities == pytest.approx(best_MK.values[row].tolist(), rel=1e-4)
    first, second = (guesses[0].text for guesses in filled.guesses)
    assert filled.text == f"a {first} circle, {second} heart"

    with pytest.raises(UserError, match="nothing to fill in"):
        eve.fill_mask(noise(0), "a red circle")
    with pytest.raises(UserError, match="beyond the 12 tokens"):
        eve.fill_mask(noise(0), "red " * 20 + "[MASK]")


def test_a_mask_is_plain_text_elsewhere():
    eve = Eve(tiny_run("masked"))
    difference = eve.encode_text("a [MASK] circle") - eve.encode_text("a [ mask ] circle")
    assert np.abs(difference).max() > 1e-3
    assert eve.tokenizer.mask_id not in eve.tokenizer.encode("a [MASK] circle", 12)[0]


@pytest.mark.parametrize("normalize", [True, False])
def test_reconstruct(normalize):
    eve = Eve(tiny_run("masked", task={"normalize_targets": normalize}))
    assert isinstance(eve.task, MaskedSignal)
    keep = [0, 5, 10, 15]
    hidden = [patch for patch in range(16) if patch not in keep]
    result = eve.reconstruct(noise(0), TEXT, keep=keep[::-1])
    np.testing.assert_array_equal(result.original, noise(0))

    image = eve.task.encoder.image(pixels(noise(0)), torch.tensor([keep]))
    encoded = eve.task.encoder.encode(image, eve.task.encoder.text(ids_of(eve, TEXT), None))
    tokens = Tokens(x_BND=encoded.x_BND, num_image=5)
    predicted = eve.task.pixel_decoder(tokens, torch.tensor([keep]), torch.tensor([hidden]))[0]
    for patch, new in itertools.zip_longest([*hidden, *keep], predicted):
        first_row = 4 * (patch // 4)
        first_column = 4 * (patch % 4)
        box = slice(first_row, first_row + 4), slice(first_column, first_column + 4)
        truth = noise(0)[box]
        if new is None:
            np.testing.assert_array_equal(result.masked[box], truth)
            np.testing.assert_array_equal(result.reconstructed[box], truth)
            continue
        assert set(result.masked[box].flatten().tolist()) == {128}
        values = new.reshape(3, 4, 4).permute(1, 2, 0).detach().numpy()
        if normalize:
            scaled = truth / 127.5 - 1
            values = values * np.sqrt(scaled.var(ddof=1) + 1e-6) + scaled.mean()
        expected = ((values + 1) * 127.5).clip(0, 255)
        assert np.abs(result.reconstructed[box] - expected).max() < 1


def test_reconstruct_draws_what_to_hide():
    eve = Eve(tiny_run("masked"))
    first = eve.reconstruct(noise(0), TEXT)
    again = eve.reconstruct(noise(0), TEXT, seed=0)
    with_seed_1 = eve.reconstruct(noise(0), TEXT, seed=1)
    np.testing.assert_array_equal(first.reconstructed, again.reconstructed)
    assert (first.masked != with_seed_1.masked).any()
    for share, num_hidden in (
        (None, 12),
        (0.5, 8),
        (0.01, 1),
        (0.99, 15),
    ):
        masked = eve.reconstruct(noise(0), TEXT, share=share).masked
        assert (masked == 128).all(2).sum() == pytest.approx(16 * num_hidden, abs=2)
    for share in (0, 1, -1):
        with pytest.raises(UserError, match="not in"):
            eve.reconstruct(noise(0), TEXT, share=share)
    message = r"give at least one of the patches 0 to 15, and not all"
    for keep in ([], [16], [-1], range(16)):
        with pytest.raises(UserError, match=message):
            eve.reconstruct(noise(0), TEXT, keep=keep)


# What a run can do

RUNS = {
    "masked": (None, "fill_mask explain reconstruct"),
    "pixels": (replace(MASKED, mlm_weight=0.0), "reconstruct"),
    "tokens": (replace(MASKED, mim_weight=0.0), "fill_mask explain"),
    "baseline": (BASELINE, "match zero_shot explain fill_mask reconstruct"),
    "baseline_without_pixels": (
        replace(BASELINE, mim_weight=0.0),
        "match zero_shot explain fill_mask",
    ),
    "baseline_without_matching": (
        replace(BASELINE, itm_weight=0.0),
        "zero_shot fill_mask explain reconstruct",
    ),
    "contrast": (replace(BASELINE, mim_weight=0.0, mlm_weight=0.0, itm_weight=0.0), "zero_shot"),
    "encoder": (HeadlessConfig(), ""),
    "retrieval": (None, "match zero_shot explain"),
    "contrast_alone": (RetrievalConfig(itm_weight=0.0, rerank=0), "zero_shot"),
    "vqa": (None, "answer explain"),
    "nlvr2": (None, "verify explain"),
}
ARGUMENTS = {
    "match": (noise(0), TEXT),
    "answer": (noise(0), TEXT),
    "verify": (noise(0), noise(1), TEXT),
    "fill_mask": (noise(0), "[MASK]"),
    "reconstruct": (noise(0), TEXT),
    "explain": (noise(0), TEXT),
    "experts": (noise(0), TEXT),
    "zero_shot": (noise(0), {"circle": ["a circle"], "square": ["a square"]}),
}
RECIPES = {
    "match": "scenes_retrieval",
    "zero_shot": "demo_retrieval",
    "answer": "demo_vqa",
    "verify": "demo_nlvr2",
    "explain": "scenes_retrieval",
}
SWITCHED_ON = "eve pretrain with --task.{}-weight 1 (here it is 0) and another --out"
# calls whose head is switched off → its loss
SWITCHED_OFF = {
    ("pixels", "fill_mask"): "mlm",
    ("pixels", "explain"): "mlm",
    ("contrast", "fill_mask"): "mlm",
    ("contrast", "explain"): "mlm",
    ("tokens", "reconstruct"): "mim",
    ("baseline_without_pixels", "reconstruct"): "mim",
    ("contrast", "reconstruct"): "mim",
}
PRETRAIN = "eve pretrain, or the run that this one started from"


def run_of(name: str) -> LoadedRun:
    task, _ = RUNS[name]
    return tiny_run(name if name in TASKS else "masked", task=task)


def how_to_get(name: str, call: str) -> str:
    """The advice by hand: train this task with the head that is off, else fine-tune from here or
    from where this came from."""
    if (name, call) in SWITCHED_OFF:
        return SWITCHED_ON.format(SWITCHED_OFF[name, call])
    if call in ("fill_mask", "reconstruct"):
        return PRETRAIN
    start = "PRETRAINED" if name in ("retrieval", "contrast_alone", "vqa", "nlvr2") else "tiny"
    return f"eve finetune {RECIPES[call]} --init {start}"


@pytest.mark.parametrize("name", RUNS)
def test_calls(name):
    """Those that the heads allow are there, in `calls`, in dir() and with a help text; the others
    say how to get them."""
    eve = Eve(run_of(name))
    assert eve.calls == ("encode_image", "encode_text", *RUNS[name][1].split(), "experts")
    assert set(eve.calls) <= set(dir(eve))
    assert not (ARGUMENTS.keys() - set(eve.calls)) & set(dir(eve))
    assert (
        eve.encode_image(noise(0)).shape == eve.encode_text(TEXT).shape == (1, eve.task.feature_dim)
    )
    for call in ARGUMENTS:
        assert hasattr(eve, call) == (call in eve.calls)
        if call in eve.calls:
            assert inspect.getdoc(getattr(eve, call))
            continue
        with pytest.raises(UserError) as error:
            getattr(eve, call)(*ARGUMENTS[call])
        assert str(error.value) == (
            f"{call}: tiny is a run of task {eve.run.config.task.name}, which allows "
            f"{', '.join(eve.calls)}; "
            f"to get one that allows {call}: {how_to_get(name, call)}"
        )


def test_a_fine_tuned_run_sends_people_to_the_run_that_it_started_from(tmp_path: Path):
    """Or, if that is gone, to itself."""
    run = tiny_run("vqa")
    start = tmp_path / "start"
    eve = Eve(replace(run, config=replace(run.config, init=start)))
    for init, named in (("tiny", ""), (start, f", {start}")):
        with pytest.raises(
            UserError,
            match=rf"to get one that allows verify: eve finetune demo_nlvr2 --init {init}$",
        ):
            _ = eve.verify
        with pytest.raises(
            UserError, match=rf"eve pretrain, or the run that this one started from{named}$"
        ):
            _ = eve.fill_mask
        start.mkdir(exist_ok=True)


def test_towers_that_never_meet_need_another_model_to_match():
    run = run_of("contrast_alone")
    eve = Eve(replace(run, config=replace(run.config, model=DualEncoderConfig())))
    message = r"match: eve pretrain of another model, because itm_weight 1\.0 needs states of p"
    with pytest.raises(UserError, match=message):
        _ = eve.match


def test_a_call_has_a_help_text_and_another_name_is_an_attribute_error():
    eve = Eve(tiny_run("vqa"))
    text = pydoc.plain(pydoc.render_doc(eve.answer))
    for part in ("answer(image: ", "top: int = 5, batch_size: int = 64", "top: Number of answers"):
        assert part in text
    with pytest.raises(AttributeError, match="'Eve' object has no attribute 'anwser'"):
        _ = eve.anwser
    assert getattr(eve, "verify", None) is None
    assert copy.copy(eve).answer(noise(0), TEXT) == eve.answer(noise(0), TEXT)


def test_threads_share_runs():
    """Eight threads, each with 70 calls in an order of its own on two runs: all get what one thread
    gets, and no call leaves anything behind."""
    small = {"depth": 2, "num_deep_blocks": 1}
    vqa = Eve(tiny_run("vqa", model=small))
    masked = Eve(tiny_run("masked", model=small))
    long = " ".join(TEXTS)
    calls: list[Callable[[], Any]] = [
        lambda: vqa.encode_image(noise(0)).tolist(),
        lambda: masked.encode_image(noise(1)).tolist(),
        lambda: vqa.encode_text([TEXT, long]).tolist(),
        lambda: masked.encode_text(TEXT).tolist(),
        lambda: vqa.answer(noise(0), TEXT),
        lambda: vqa.answer(noise(1), long),
        lambda: masked.fill_mask(noise(0), "a [MASK] circle"),
        lambda: masked.reconstruct(noise(0), TEXT).reconstructed.tolist(),
        lambda: vqa.explain(noise(0), TEXT, word="blue").values(),
        lambda: vqa.explain(noise(0), TEXT, block=0).values(),
        lambda: masked.explain(noise(0), TEXT, word="blue").values(),
    ]
    frequencies = [16, 16, 16, 16, 6, 6, 6, 2, 1, 1, 1]  # those that take long are rarer
    expected = [call() for call in calls]

    def wrong_calls(thread: int) -> list[int]:
        numbers = random.Random(thread).choices(range(len(calls)), frequencies, k=70)
        return [number for number in numbers if calls[number]() != expected[number]]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(wrong_calls, range(8))) == [[]] * 8
    for task in (vqa.task, masked.task):
        for module in task.modules():
            assert not module.training
            assert not module._forward_hooks
            assert not module._forward_pre_hooks
        assert all(parameter.grad is None for parameter in task.parameters())


def test_load_from_a_folder(tmp_path: Path):
    folder = write_run(tiny_run("vqa"), tmp_path / "run")
    eve = Eve.load(folder, device="cpu")
    assert eve.answer(noise(0), TEXT) == Eve(tiny_run("vqa")).answer(noise(0), TEXT)
    assert not eve.task.training
    with pytest.raises(UserError, match="no such run folder"):
        Eve.load(tmp_path / "nowhere")
    assert (
        repr(eve)
        == f"Eve({folder}: vqa, step 1; calls encode_image, encode_text, answer, explain, experts)"
    )


def test_devices_are_those_of_torch_and_auto_is_bfloat16_where_the_hardware_has_it(monkeypatch):
    for has_bfloat16, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        supported = partial(bool, has_bfloat16)
        monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", supported)
        assert pick_dtype("auto", torch.device("cpu")) == dtype
    for name in ("cpu", "cpu:0", torch.device("cpu")):
        assert pick_device(name).type == "cpu"
    if not torch.cuda.is_available():
        assert pick_device("auto") == torch.device("cpu")
    for name in ("gpu", "cuda:99", "cuda:", "meta", "", None, torch.device("xpu:3")):
        message = rf"^device '{name}': torch has no such device here; give auto or cpu"
        with pytest.raises(UserError, match=message):
            pick_device(name)  # pyright: ignore[reportArgumentType]


def test_the_package_offers_eve_without_importing_torch():
    assert eve_vl.Eve is Eve
    with pytest.raises(AttributeError, match="no attribute 'Evil'"):
        _ = eve_vl.Evil
    code = "import sys, eve_vl; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)

"""Processors for transformers: pixels and ids are those of our own data path.

Letters: B batch, T text tokens, A answers.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoProcessor

from eve_vl.data.batches import Sample, TextBatch
from eve_vl.data.image_refs import ImageBytes, ImageFile
from eve_vl.data.kinds.questions import ImageQuestion, QuestionRows
from eve_vl.data.tokenizer import Tokenizer
from eve_vl.eve import Eve
from eve_vl.interop import hf
from eve_vl.interop.hf_processing import EveTokenizerFast
from eve_vl.utils.errors import UserError
from helpers.encoded_images import encode
from helpers.hf_runs import noise_image, write
from helpers.tiny_config import tiny_config
from helpers.tiny_rows import CAPTIONS, ListSource
from helpers.tiny_tasks import ANSWER_LIST, TOKENIZER, config_of, rows_of
from helpers.tokenizer_files import TRICKY_TEXTS, bert_tokenizer, word_level_tokenizer


def encoded_images() -> list[bytes]:
    """Images of several forms, modes and sizes."""
    smooth = Image.fromarray(noise_image(1, 12, 9)).resize((150, 90), Image.Resampling.BICUBIC)
    return [
        encode(smooth, "JPEG"),
        encode(smooth.convert("L"), "JPEG"),
        encode(smooth.convert("RGBA"), "PNG"),
        encode(smooth.resize((16, 16)), "PNG"),
    ]


def evaluation_pixels(files: list[bytes]) -> torch.Tensor:
    """The pixels that our evaluation of VQA reads."""
    texts: dict[str, Any] = {
        "question": "a",
        "answers": (),
        "answer_type": "",
        "where": "x",
    }
    rows = []
    for number, content in enumerate(files):
        rows.append(
            ImageQuestion(
                image=ImageBytes(data=content),
                question_id=number,
                **texts,
            )
        )
    dataset = QuestionRows([ListSource(rows)], config_of("vqa"), TOKENIZER, training=False)
    return rows_of(dataset, len(rows)).pixels()


def test_pixels_are_those_of_our_evaluation(tmp_path):
    files = encoded_images()
    expected = evaluation_pixels(files)
    assert expected.min() < -0.5
    assert expected.max() > 0.5
    processor = hf.EveProcessor.from_eve(TOKENIZER, config_of("vqa").input)
    paths = []
    for number, content in enumerate(files):
        path = tmp_path / f"{number}.img"
        path.write_bytes(content)
        paths.append(path)
    names = [str(path) for path in paths]
    references = [ImageFile(path=path) for path in paths]
    for images in (files, paths, names, references):
        pixels = processor(images=images)["pixel_values"]
        assert pixels.dtype == torch.float32
        assert torch.equal(pixels, expected)
    opened = [Image.open(path) for path in paths[2:]]  # Pillow decodes JPEG otherwise
    assert torch.equal(processor(images=opened)["pixel_values"], expected[2:])
    inputs = processor(
        images=files[0],
        images_right=files[1],
        text="a red circle",
    )
    names = {"pixel_values", "pixel_values_right", "input_ids", "attention_mask"}
    assert set(inputs) == names
    assert torch.equal(inputs["pixel_values_right"], expected[1:2])


@pytest.mark.parametrize(
    "make",
    [lambda _: TOKENIZER, bert_tokenizer, word_level_tokenizer],
    ids=["bpe", "bert", "words"],
)
def test_ids_are_those_of_our_tokenizer(tmp_path, make: Callable[[Path], Tokenizer]):
    tokenizer = make(tmp_path)
    before = tokenizer.to_json()
    EveTokenizerFast.from_eve(tokenizer, tiny_config().input).save_pretrained(tmp_path / "hub")
    assert tokenizer.to_json() == before
    fast = EveTokenizerFast.from_pretrained(tmp_path / "hub")
    assert fast.pad_token_id == tokenizer.pad_id
    assert fast.cls_token_id == tokenizer.cls_id
    assert fast.mask_token_id == tokenizer.mask_id
    assert len(fast) <= tokenizer.vocab_size

    texts = [*CAPTIONS, *TRICKY_TEXTS, "red " * 30, "a [MASK] circle, <mask>", " red", ""]
    whole = [tokenizer.encode(text, 999)[0].tolist() for text in texts]
    assert fast(texts)["input_ids"] == whole
    assert fast(texts[0], return_tensors="pt")["input_ids"].tolist() == whole[:1]
    cut = [tokenizer.encode(text, 12)[0].tolist() for text in texts]
    assert fast(texts, truncation=True)["input_ids"] == cut
    samples = [Sample(ids_T=np.array(ids), where="") for ids in cut]
    for padding, length in ((True, 0), ("max_length", 12)):
        inputs = fast(
            texts,
            truncation=True,
            padding=padding,
            return_tensors="pt",
        )
        batch = TextBatch.collate(samples, tokenizer.pad_id, length)
        assert torch.equal(inputs["input_ids"], batch.ids_BT)
        assert torch.equal(inputs["attention_mask"] == 0, batch.is_padding_BT)


def test_masks_are_those_of_our_tokenizer():
    tokenizer = EveTokenizerFast.from_eve(TOKENIZER, tiny_config().input)
    texts = ["a [MASK] circle", "[MASK] triangle, [MASK] heart", "a [MASK], two"]
    for text in (*texts, "red " * 20 + "[MASK]", "no mask"):
        inputs = tokenizer(text, truncation=True, split_special_tokens=False)
        assert inputs["input_ids"] == TOKENIZER.encode_with_masks(text, 12)[0].tolist()
        assert inputs["attention_mask"] == [1] * len(inputs["input_ids"])
    ids = tokenizer(["a", "a [MASK]"], split_special_tokens=False)["input_ids"]
    assert TOKENIZER.mask_id in ids[1]


def test_the_model_guesses_the_masked_word_as_fill_mask_does(tmp_path):
    write("masked", tmp_path / "run")
    model, processor = hf.from_run(tmp_path / "run")
    image = noise_image(0)
    text = "a [MASK] circle"
    inputs = processor(images=image, text=text, split_special_tokens=False)
    place = (inputs["input_ids"][0] == TOKENIZER.mask_id).nonzero().item()
    assert isinstance(model, hf.EveForMaskedModeling)
    probability = model(**inputs).logits[0, int(place)].softmax(0).max()
    guess = Eve.load(tmp_path / "run", device="cpu").fill_mask(image, text).guesses[0][0]
    assert probability.item() == pytest.approx(guess.probability, rel=1e-4)


def test_texts_are_padded_to_the_length_of_a_run(tmp_path):
    model = {"routing": "reference-dropless"}
    write("vqa", tmp_path / "run", input={"padded_text_length": 10}, model=model)
    model, processor = hf.from_run(tmp_path / "run")
    processor.save_pretrained(tmp_path / "hub")
    processor = AutoProcessor.from_pretrained(tmp_path / "hub")
    for text in ("a red circle", "red " * 30):
        assert processor(text=text)["input_ids"].shape == (1, 10)
    image = noise_image(0)
    logits_A = model(**processor(images=image, text="a red circle")).logits[0]
    probabilities = dict(zip(ANSWER_LIST, logits_A.sigmoid().tolist(), strict=True))
    answers = Eve.load(tmp_path / "run", device="cpu").answer(image, "a red circle", top=8)
    expected = {answer.answer: answer.probability for answer in answers}
    assert probabilities == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "text",
    [
        [],
        [None],
        ["a", None],
        3,
        [["a"]],
        b"a",
        {"a": 1},
    ],
)
def test_values_that_are_no_text_are_refused(text):
    processor = hf.EveProcessor.from_eve(TOKENIZER, tiny_config().input)
    with pytest.raises(UserError, match=r"^text is .*, expected a text or a list of texts"):
        processor(text=text)


def test_missing_inputs_and_sizes_that_are_no_square_are_refused():
    processor = hf.EveProcessor.from_eve(TOKENIZER, tiny_config().input)
    with pytest.raises(UserError, match="images is an empty list"):
        processor(images=[])
    with pytest.raises(UserError, match="give images, text or both"):
        processor()
    with pytest.raises(UserError, match="expected a square"):
        hf.EveImageProcessor(size={"height": 16, "width": 20})

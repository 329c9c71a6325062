"""Rows whose image or text was replaced."""

import pytest
import torch

from eve_vl.data.kinds.questions import QuestionRows
from eve_vl.systems.medical.phantoms.rows import PhantomQuestions
from eve_vl.tasks.ablated_rows import AblatedRows
from eve_vl.tasks.vqa.config import VQAConfig
from helpers.tiny_config import tiny_config
from helpers.tiny_rows import questions, tiny_tokenizer

TOKENIZER = tiny_tokenizer()


@pytest.fixture
def rows() -> QuestionRows:
    return QuestionRows([questions(6)], tiny_config(task=VQAConfig()), TOKENIZER, training=False)


def test_noise_has_the_pixels_of_the_image_in_another_order(rows):
    noise = AblatedRows(rows, "noise")
    for row in range(6):
        pixels = rows[0, 0, row].image.flatten(1).T.tolist()
        noise_image = noise[0, 0, row].image
        noise_pixels = noise_image.flatten(1).T.tolist()
        assert sorted(noise_pixels) == sorted(pixels)
        assert noise_pixels != pixels
        assert torch.equal(AblatedRows(rows, "noise")[0, 0, row].image, noise_image)
    assert noise[0, 0, 1].ids_T.tolist() == rows[0, 0, 1].ids_T.tolist()


def test_without_its_text_a_row_has_an_empty_one(rows):
    sample = AblatedRows(rows, "image_only")[0, 0, 0]
    assert sample.ids_T.tolist() == TOKENIZER.encode("", 9)[0].tolist()
    assert torch.equal(sample.image, rows[0, 0, 0].image)


def test_a_wrong_image_differs_and_is_of_the_same_patient_if_possible():
    """Rows 2n and 2n + 1 are of one patient; some ask two things about one image."""
    source = PhantomQuestions(split="test", image_size=64, num_rows=12)
    config = tiny_config(task=VQAConfig(), input={"image_size": 64, "patch_size": 16})
    rows = QuestionRows([source], config, TOKENIZER, training=False)
    ablated = AblatedRows(rows, "wrong_image")
    images = [rows[0, 0, row].image for row in range(12)]
    num_of_patient = 0
    for row, image in enumerate(images):
        wrong = ablated[0, 0, row].image
        of_patient = images[row ^ 1]
        assert not torch.equal(wrong, image)
        assert any(torch.equal(wrong, candidate) for candidate in images)
        if not torch.equal(image, of_patient):
            assert torch.equal(wrong, of_patient)
            num_of_patient += 1
    assert num_of_patient > 0

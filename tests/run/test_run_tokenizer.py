"""The tokenizer of a run whose rows have no text."""

from pathlib import Path

import pytest

from eve_vl.data.kinds.labels import LabeledExample
from eve_vl.run.run_tokenizer import obtain_tokenizer
from eve_vl.tasks.classification.config import ClassificationConfig
from eve_vl.utils.errors import UserError
from helpers.tiny_config import tiny_config
from helpers.tiny_rows import ListSource, noise


def test_runs_that_read_images_only_need_no_texts(tmp_path: Path):
    row = LabeledExample(image=noise(1), text=None, labels=("cat",), where="list:0")
    source = ListSource([row])
    of_images = tiny_config(task=ClassificationConfig(inputs="image"))
    tokenizer = obtain_tokenizer(of_images, [source])
    ids_T, is_special_T = tokenizer.encode("zebra", 12)
    assert tokenizer.decode(ids_T[~is_special_T]).strip() == "zebra"

    of_both = tiny_config(task=ClassificationConfig(inputs="both"))
    with pytest.raises(UserError, match=r"--data\.text-column"):
        obtain_tokenizer(of_both, [source])

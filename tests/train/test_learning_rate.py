"""The schedule against numbers worked out by hand, and multiples of the learning rate by name."""

from dataclasses import replace

import pytest

from eve_vl.config import TrainConfig
from eve_vl.recipes.settings import layer_decay
from eve_vl.tasks.masked_signal.task import MaskedSignal
from eve_vl.tasks.task import Sizes
from eve_vl.train.learning_rate import learning_rate, lr_scales
from eve_vl.utils.errors import UserError
from helpers.tiny_config import tiny_config

CONFIG = TrainConfig(steps=10, lr=1.0, warmup=0.2)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # two steps of warm-up, then eight of decay, the first of which is at the peak
        ("linear", [0.0, 0.5, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
        ("cosine", [0.0, 0.5, 1.0, 0.96194, 0.853553, 0.691342, 0.5, 0.308658, 0.146447, 0.03806]),
    ],
)
def test_schedule_equals_numbers_worked_out_by_hand(schedule, expected):
    config = replace(CONFIG, schedule=schedule, lr=3e-4)
    rates = [learning_rate(step, config) for step in range(10)]
    assert rates == pytest.approx([3e-4 * rate for rate in expected], abs=3e-9)
    assert learning_rate(0, replace(config, warmup=0.0)) == 3e-4


def test_schedule_of_the_paper_warms_up_and_ends_near_zero():
    config = TrainConfig()
    peak_step = round(0.02 * 480_000)
    steps = (0, peak_step // 2, peak_step, 480_000 - 1)
    rates = [learning_rate(step, config) for step in steps]
    assert rates == pytest.approx([0.0, 2.5e-4, 5e-4, 0.0], abs=1e-9)


def test_scales_are_rounded_only_where_factors_multiply():
    """Equal products share a group; without factors every bit stays."""
    third = 1 / 3
    config = replace(CONFIG, head_lr_multiplier=third)
    assert lr_scales(["a", "b"], config, {"a"}) == {"a": third, "b": 1.0}
    config = replace(
        CONFIG,
        head_lr_multiplier=0.1,
        lr_multipliers=(
            ("a*", 3.0),
            ("b", 0.3),
        ),
    )
    assert lr_scales(["a1", "b"], config, {"a1"}) == {"a1": 0.3, "b": 0.3}


def parameter_names() -> list[str]:
    task = MaskedSignal(tiny_config(), Sizes(vocab_size=30, mask_id=2))
    return [name for name, _ in task.named_parameters()]


def test_factors_of_all_matching_patterns_multiply():
    patterns = (
        ("encoder.*", 0.5),
        ("encoder.text.*", 0.1),
        ("*.bias", 2.0),
    )
    config = replace(CONFIG, lr_multipliers=patterns, head_lr_multiplier=10.0)
    scales = lr_scales(parameter_names(), config, new=("token_head.fc1.bias",))
    assert scales["encoder.image.cls"] == 0.5
    assert scales["encoder.image.proj.bias"] == 1.0
    assert scales["encoder.text.words.weight"] == 0.05
    assert scales["encoder.text.norm.bias"] == 0.1
    assert scales["token_head.fc1.weight"] == 1.0
    assert scales["token_head.fc1.bias"] == 20.0


def test_pattern_without_a_match_is_reported_with_the_nearest_name():
    config = replace(CONFIG, lr_multipliers=(("encoder.words.weight", 0.5),))
    message = r"train.lr_multipliers: 'encoder.words.weight' matches .*'encoder.text.words.weight'"
    with pytest.raises(UserError, match=message):
        lr_scales(parameter_names(), config, new=())


def test_layer_decay_is_that_of_beit():
    """Layer 0 is what comes before the blocks, these are 1 to L, the rest is L + 1; rate^(L + 1 -
    layer)."""
    num_blocks = 3  # of tiny_config
    config = replace(CONFIG, lr_multipliers=layer_decay(num_blocks, 0.7))
    scales = lr_scales(parameter_names(), config, new=())
    assert len(set(scales.values())) == num_blocks + 2
    for name, scale in scales.items():
        layer = num_blocks + 1
        if name.startswith("encoder.blocks."):
            layer = int(name.split(".")[2]) + 1
        elif name.startswith(("encoder.image.", "encoder.text.", "encoder.norm_pre.")):
            layer = 0
        assert scale == pytest.approx(0.7 ** (num_blocks + 1 - layer), rel=1e-9), name
    assert scales["encoder.norm.weight"] == scales["token_head.fc1.weight"] == 1.0

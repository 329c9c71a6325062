"""Every recorded output of the published code, as released and without drops."""

from pathlib import Path

import golden_check

FOLDER = Path(__file__).parents[1] / "golden" / "tiny"


def test_all_that_was_recorded_of_the_published_code(capsys):
    status = golden_check.main(FOLDER)
    assert status == 0, capsys.readouterr().out


def test_a_wrong_weight_is_noticed():
    fixture = golden_check.Fixture(FOLDER)
    fixture.backbone["backbone.encoder.layers.3.mlp_moe.moe.text_embed"][0] += 1e-2
    check = golden_check.Comparison(fixture.outputs["dropless"])
    golden_check.check_encoder(fixture, "dropless", check)
    assert check.failed

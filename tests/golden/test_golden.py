"""Every recorded output of the published code, as released and without drops."""

from pathlib import Path

import golden_check

GOLDEN = Path(__file__).parents[1] / "golden"


def test_all_that_was_recorded_of_the_published_code(capsys):
    status = golden_check.main(GOLDEN / "tiny")
    assert status == 0, capsys.readouterr().out


def test_a_wrong_weight_is_noticed(tmp_path, monkeypatch, capsys):
    fixture = golden_check.Fixture(GOLDEN / "tiny")
    fixture.backbone["backbone.encoder.layers.3.mlp_moe.moe.text_embed"][0] += 1e-2
    monkeypatch.setattr(golden_check, "Fixture", lambda folder: fixture)
    assert golden_check.main(GOLDEN / "tiny") == 1
    assert "FAILED" in capsys.readouterr().out

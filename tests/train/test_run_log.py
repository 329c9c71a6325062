"""The log of a run."""

from pathlib import Path

from eve_vl.metrics.intervals import MeasuredValue, share
from eve_vl.train.run_log import RunLog, read_log


def test_a_note_is_logged_once_and_numbers_keep_their_intervals(tmp_path: Path, capfd):
    for _ in range(2):
        log = RunLog(tmp_path, first_step=1, num_steps=1, enabled=True)
        log.note(1, "better than chance")
        log.row("val", 1, {"acc": share(3, 4)})
        log.close()
    note, *validations = read_log(tmp_path)
    assert note["kind"] == "note"
    assert [row["kind"] for row in validations] == ["val", "val"]
    assert all(isinstance(row["acc"], MeasuredValue) for row in validations)
    assert "acc 0.75±0.33" in capfd.readouterr().out

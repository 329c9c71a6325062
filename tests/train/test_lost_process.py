"""What the processes of torchrun say when one of them has ended."""

from pathlib import Path

import pytest

from eve_vl.train.lost_process import LostProcessError, explain_lost_process

# as gloo and NCCL (torch 2.10) word it
GLOO = "[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:11669."
GLOO_RESET = "[gloo/transport/tcp/pair.cc:537] Read error [127.0.0.1]:1: Connection reset by peer."
NCCL = (
    "NCCL error in: ProcessGroupNCCL.cpp:77, remote process exited or there was a network error\n"
    "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting"
)


@pytest.fixture
def torchrun(monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "4")


@pytest.mark.usefixtures("torchrun")
@pytest.mark.parametrize("message", [GLOO, GLOO_RESET, NCCL])
def test_one_process_reports_the_loss_and_keeps_its_traceback(tmp_path: Path, message: str):
    with pytest.raises(LostProcessError) as report, explain_lost_process(tmp_path):
        raise RuntimeError(message)
    assert report.value.code == 1
    assert "run the same command again to resume" in str(report.value)
    written = (tmp_path / "lost_process.txt").read_text()
    assert written.startswith("Traceback")
    assert message in written

    with pytest.raises(SystemExit) as silent, explain_lost_process(tmp_path):
        raise RuntimeError(message)
    assert silent.value.code == 1


@pytest.mark.usefixtures("torchrun")
def test_loss_before_there_is_a_folder_is_reported(tmp_path: Path):
    with pytest.raises(LostProcessError), explain_lost_process(tmp_path / "no_run"):
        raise RuntimeError(GLOO)
    assert not (tmp_path / "no_run").exists()


@pytest.mark.usefixtures("torchrun")
def test_bugs_keep_their_traceback(tmp_path: Path):
    with pytest.raises(RuntimeError, match="mat1 and mat2"), explain_lost_process(tmp_path):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
    assert not list(tmp_path.iterdir())


def test_without_torchrun_there_is_no_other_process(tmp_path: Path):
    with pytest.raises(RuntimeError, match="closed by peer"), explain_lost_process(tmp_path):
        raise RuntimeError(GLOO)


@pytest.mark.usefixtures("torchrun")
def test_a_server_that_ends_a_connection_is_no_lost_process(tmp_path: Path):
    with pytest.raises(RuntimeError, match="reset by peer"), explain_lost_process(tmp_path):
        raise RuntimeError("reading s3://bucket/0.tar: [Errno 104] Connection reset by peer")


def test_the_file_of_an_earlier_call_silences_no_process(tmp_path: Path, monkeypatch):
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    for _ in range(2):
        with pytest.raises(LostProcessError), explain_lost_process(tmp_path):
            raise RuntimeError(GLOO)

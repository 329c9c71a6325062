"""Checkpoints of several processes: shares, background, another number of processes, torch's own
format, a full disk."""

import resource
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from eve_vl.train import checkpoint_writer, processes
from eve_vl.train.checkpoint_files import ADVICE, verify
from eve_vl.train.checkpoint_folders import checkpoint_folders
from eve_vl.train.checkpoint_writer import CheckpointWriter
from eve_vl.train.shard import gathered, local_shard
from eve_vl.train.tensor_shares import read_shares
from eve_vl.utils.errors import SharedError, UserError
from eve_vl.utils.file_io import delete_temporary
from helpers import shares
from helpers.gloo_processes import run_in_processes
from helpers.number_task import step_folder

SHAPES = {
    "experts": (8, 4, 6),
    "uneven": (7, 3),
    "bias": (5,),
    "few": (2, 9),
    "step": (),
    "none": (0, 3),
}
LAYOUTS = ("whole", "first axis", "last axis", "machines")
UNFINISHED: list[CheckpointWriter] = []
"""A writer that is collected before its process ends deletes its folder."""


def whole_tensors(seed: int) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    tensors = {name: torch.randn(shape, generator=rng) for name, shape in SHAPES.items()}
    tensors["count"] = torch.tensor([2**40 + seed, 3])
    tensors["half"] = torch.randn(9, generator=rng).bfloat16()
    return tensors


def non_empty(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if tensor.numel()}


def in_layout(layout: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return copies as DDP has them, as FSDP2 on the first axis or the last, or as HSDP."""
    copies = {name: tensor.clone() for name, tensor in tensors.items()}
    if layout == "whole":
        return copies
    world = processes.world_size()
    mesh = init_device_mesh("cpu", (2, world // 2) if layout == "machines" else (world,))
    for name, tensor in copies.items():
        if tensor.ndim:
            axis = tensor.ndim - 1 if layout == "last axis" else 0
            placements = [Replicate()] * (mesh.ndim - 1) + [Shard(axis)]
            copies[name] = distribute_tensor(tensor, mesh, placements)
    return copies


def are_equal(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    if tensors.keys() != expected.keys():
        return False
    for name, tensor in tensors.items():
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if not torch.equal(whole, expected[name]):
            return False
    return True


def writer_of(folder: Path) -> CheckpointWriter:
    return CheckpointWriter(folder, keep=2, in_background=processes.world_size() > 1)


def finish_if_written(writer: CheckpointWriter) -> None:
    """Put a checkpoint in place as the training loop does after each step."""
    if not any(processes.any_process_of_each([writer.is_writing])):
        writer.finish()


def waiting_write_files(allowed: threading.Event) -> Callable[..., dict[str, str]]:
    """Return a `write_files` that waits."""
    write_files = checkpoint_writer.write_files

    def wait_and_write(*files):
        assert allowed.wait(60)
        return write_files(*files)

    return wait_and_write


def save_while_tensors_change(folder: Path, layout: str) -> None:
    """Save a checkpoint, and overwrite the tensors before the first is written."""
    tensors = in_layout(layout, whole_tensors(0))
    model = gathered(tensors)
    assert bool(model) == (processes.rank() == 0)
    writer = writer_of(folder / layout)
    allowed = threading.Event()
    with mock.patch.object(checkpoint_writer, "write_files", waiting_write_files(allowed)):
        unshared = {"model": writer.copied(model)} if model else {}
        shared = {"optimizer": tensors, "live": {"a": tensors["bias"]}}
        writer.start(unshared, shared, {"a.txt": "a"}, {"step": 4})
        for tensor in (*tensors.values(), *model.values()):
            local_shard(tensor).zero_()
        finish_if_written(writer)
        checkpoint = step_folder(folder / layout, 4)
        assert not checkpoint.exists()
        allowed.set()
        while not checkpoint.exists():
            finish_if_written(writer)  # in as many rounds as others
            time.sleep(0.01)
    writer.finish()  # nothing is left to do


def save_on_a_full_disk(folder: Path) -> str:
    """Return the error of a checkpoint that the third process cannot write."""
    writer = writer_of(folder / "whole")
    if processes.rank() == 2:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
    try:
        writer.start({}, {"optimizer": whole_tensors(1)}, {}, {"step": 5})
        writer.finish()
    except SharedError as error:
        return str(error)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return "no error"


def save_all(folder: Path) -> str:
    """Save every layout, also by torch; fail to write; die while writing."""
    for layout in LAYOUTS:
        save_while_tensors_change(folder, layout)
    with_axes = {name: tensor for name, tensor in whole_tensors(0).items() if tensor.ndim}
    torch_writer = HuggingFaceStorageWriter(str(folder / "torch"), save_distributed=True)
    save(in_layout("first axis", with_axes), storage_writer=torch_writer)
    error = save_on_a_full_disk(folder)
    unfinished = writer_of(folder / "killed")
    UNFINISHED.append(unfinished)
    unfinished.start({}, {"optimizer": whole_tensors(1)}, {}, {"step": 6})
    return error


def load_all(folder: Path) -> str:
    """Read all that was saved into all layouts; return those that differ."""
    saved_folders = {layout: step_folder(folder / layout, 4) for layout in LAYOUTS}
    saved_folders |= {name: folder / name for name in ("older version", "torch")}
    layouts = LAYOUTS if processes.world_size() > 1 else ("whole",)
    different = []
    for name, saved_folder in saved_folders.items():
        expected = whole_tensors(0)
        if name == "torch":
            expected = {key: value for key, value in non_empty(expected).items() if value.ndim}
        sevens = {key: torch.full_like(value, 7) for key, value in expected.items()}
        for layout in layouts:
            tensors = in_layout(layout, sevens)
            read_shares(tensors, saved_folder, "optimizer")
            if not are_equal(tensors, expected):
                different.append((name, layout))
    return str(different)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """What four processes saved, and the error that each of them met."""
    folder = tmp_path_factory.mktemp("four")
    errors = run_in_processes(4, save_all, folder)
    (folder / "errors.txt").write_text("\n".join(errors))
    (folder / "older version").mkdir()
    save_file(whole_tensors(0), folder / "older version/optimizer.safetensors")
    for number, path in enumerate(sorted((folder / "torch").iterdir())):
        path.rename(folder / f"torch/optimizer_{number}.safetensors")
    return folder


def test_shares_of_four_processes_load_in_two_and_in_one_with_the_same_bits(folder: Path):
    """From shards of any axis into shards of any other, and from files of an earlier version or of
    torch."""
    assert run_in_processes(2, load_all, folder) == ["[]", "[]"]
    assert load_all(folder) == "[]"


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_checkpoint_holds_each_value_of_its_step_once(folder: Path, layout, tmp_path: Path):
    """A plain loop and torch's own reader join the shares."""
    checkpoint = step_folder(folder / layout, 4)
    assert are_equal(load_file(checkpoint / "model.safetensors"), whole_tensors(0))
    expected = non_empty(whole_tensors(0))
    joined = shares.whole_tensors(checkpoint)
    assert are_equal({name: joined[f"optimizer.{name}"] for name in expected}, expected)
    names = {path.name for path in checkpoint.iterdir()}
    assert verify(checkpoint)["sha256"].keys() == names - {"state.json"}

    sizes = []
    for rank in range(4):
        path = checkpoint / f"optimizer_{rank}.safetensors"
        sizes.append(sum(tensor.nbytes for tensor in load_file(path).values()))
        (tmp_path / path.name).symlink_to(path)
    assert sum(sizes) == sum(tensor.nbytes for tensor in expected.values())
    if layout != "last axis":  # of 6, which gives 2, 2, 2 and nothing
        assert max(sizes) < 1.7 * min(sizes)

    tensors = {name: torch.full_like(tensor, 7) for name, tensor in expected.items()}
    load(tensors, storage_reader=HuggingFaceStorageReader(str(tmp_path)))
    assert are_equal(tensors, expected)


def test_full_disk_of_one_process_is_one_line_in_all_and_keeps_the_last_checkpoint(folder: Path):
    errors = (folder / "errors.txt").read_text().splitlines()
    assert errors == [errors[0]] * 4
    path = step_folder(folder / "whole", 5)
    assert errors[0].startswith(f"{path}: cannot be written (")
    assert "File too large" in errors[0]
    assert errors[0].endswith(ADVICE)
    assert [folder.name for folder in path.parent.iterdir()] == ["step_00000004"]


def test_killed_writer_leaves_nothing_that_counts(folder: Path):
    (temporary,) = (folder / "killed/checkpoints").iterdir()
    assert not checkpoint_folders(folder / "killed")
    assert not list(temporary.rglob("state.json"))
    delete_temporary(temporary.parent)
    assert not list(temporary.parent.iterdir())


def test_lost_share_is_named(folder: Path, tmp_path: Path):
    for rank in (0, 1, 3):
        name = f"optimizer_{rank}.safetensors"
        (tmp_path / name).symlink_to(step_folder(folder / "whole", 4) / name)
    with pytest.raises(UserError, match=r"^optimizer.safetensors: does not hold all of experts$"):
        read_shares(whole_tensors(1), tmp_path, "optimizer")


@pytest.mark.parametrize("offsets", ["{", '{"bias": 3}', '{"bias": {"saved_offsets": [null]}}'])
def test_damaged_offsets_of_a_share_are_named(tmp_path: Path, offsets):
    path = tmp_path / "optimizer_0.safetensors"
    save_file({"bias": torch.ones(5)}, path, {"DCP_SHARDING_INFO": offsets})
    with pytest.raises(UserError, match=r"optimizer_0.safetensors: cannot be read \("):
        read_shares({"bias": torch.ones(5)}, tmp_path, "optimizer")

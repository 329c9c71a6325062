"""Reading, checking and writing files of tensors. No pickle is read."""

from collections.abc import Mapping
from pathlib import Path

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from eve_vl.utils import file_io
from eve_vl.utils.errors import UserError

SafetensorError = safetensors.SafetensorError
USUAL_DTYPES = {
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.int64,
    torch.int32,
    torch.uint8,
    torch.bool,
}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file by name, unchecked. Raises UserError."""
    with file_io.reading(path, SafetensorError):
        file_io.open_ordinary(path).close()  # a pipe would wait
        return load_file(path)


def read_metadata(path: Path) -> dict[str, str]:
    """Return the texts in the header of a safetensors file. Raises UserError."""
    with file_io.reading(path, SafetensorError), safetensors.safe_open(path, "pt") as file:
        return file.metadata() or {}


def check_tensors(tensors: Mapping[str, Tensor], where: object) -> None:
    """Raise UserError for a tensor that is no dense array of finite, usual numbers."""
    for name, tensor in tensors.items():
        is_dense = tensor.layout == torch.strided
        if not is_dense or tensor.dtype not in USUAL_DTYPES or tensor.is_meta:
            kind = str(tensor.dtype if is_dense else tensor.layout).removeprefix("torch.")
            raise UserError(f"{where}: {name} is {kind}, expected dense numbers such as float32")
        if tensor.untyped_storage().nbytes() < tensor.nbytes:
            raise UserError(
                f"{where}: {name} says that it is {tuple(tensor.shape)}, but the file holds less"
            )
        if tensor.is_floating_point() and tensor.numel():
            lowest_and_highest = torch.stack(tensor.aminmax())
            if not lowest_and_highest.isfinite().all():
                raise UserError(f"{where}: {name} holds NaN or infinity")


def describe_shape(tensor: Tensor) -> str:
    """Return a tensor's shape, and " of whole numbers" for integers.

    Tensors with equal results are interchangeable.
    """
    shape = str(tuple(tensor.shape))
    return shape if tensor.is_floating_point() else f"{shape} of whole numbers"


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file with usual permissions.

    Tensors that share memory are written separately.
    """
    separate = {}
    written_storages = set()
    for name, tensor in tensors.items():
        dense = tensor.detach().cpu().contiguous()
        storage = dense.untyped_storage().data_ptr()
        separate[name] = dense.clone() if storage in written_storages else dense
        written_storages.add(storage)
    path.touch()
    mode = path.stat().st_mode
    save_file(separate, path, metadata)
    path.chmod(mode)


def save_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a .safetensors file, or else a torch file, atomically. Raises UserError."""
    errors = (RuntimeError, SafetensorError)
    with file_io.reporting_write_errors(path, *errors), file_io.atomic_file(path) as temporary:
        if path.suffix == ".safetensors":
            write_tensors(temporary, tensors)
            return
        copies = {}
        for name, tensor in tensors.items():  # torch would write a view's whole storage
            copies[name] = tensor.detach().cpu().contiguous().clone()
        torch.save(copies, temporary)

"""Weights of a Hugging Face directory as stored: the list of tensors, and each tensor on demand.

    model.safetensors                     or model.safetensors.index.json with the files that it names
    pytorch_model.bin                     or its index; read with torch.load(weights_only=True), which runs no code

They are tried in this order, as in transformers.
"""

import zipfile
from pathlib import Path

import torch
from torch import Tensor

from pretrain.convert.files.hf_directory import inside, read_json
from pretrain.errors import DataError
from pretrain.storage.safetensors import CHUNK, DTYPES, NAMES, Entry, read_header, read_tensor

FORMATS = ("model.safetensors", "pytorch_model.bin")
StoredTensor = Entry | Tensor


def stored_tensors(directory: Path) -> dict[str, StoredTensor]:
    """All tensors by name. Raises DataError if files are missing or corrupt, or if there are no weights."""
    for single in FORMATS:
        read = read_header if single.endswith(".safetensors") else _read_pickle
        if (directory / single).exists():
            return dict(read(inside(directory, single)))
        index = f"{single}.index.json"
        if (directory / index).exists():
            found: dict[str, StoredTensor] = {}
            for file, names in _files_of(directory, index).items():
                held = read(inside(directory, file))
                absent = [name for name in names if name not in held]
                if absent:
                    raise DataError(
                        f"{directory / file} lacks {len(absent)} of the tensors that {index} lists: {absent[0]}"
                    )
                found |= held
            return found
    raise DataError(
        f"{directory} has no weights: no {', no '.join(FORMATS)}, no index of one",
        hint="write them with transformers: model.save_pretrained(DIR)",
    )


def shape_of(stored: StoredTensor) -> tuple[int, ...]:
    """Shape of a stored tensor."""
    return tuple(stored.shape)


def type_of(stored: StoredTensor) -> str:
    """Name of the type in safetensors, else in torch."""
    return stored.dtype if isinstance(stored, Entry) else NAMES.get(stored.dtype, str(stored.dtype))


def load_tensor(stored: StoredTensor, name: str) -> Tensor:
    """The tensor in fp32, exact for all types that are read. Raises DataError if an element is not finite."""
    assert type_of(stored) in DTYPES
    tensor = read_tensor(stored) if isinstance(stored, Entry) else stored.detach().to(torch.float32, copy=True)
    bad = sum(part.numel() - int(torch.isfinite(part).sum()) for part in tensor.contiguous().view(-1).split(CHUNK))
    if bad:
        raise DataError(f"{name}: {bad} of {tensor.numel()} elements are not finite")
    return tensor


def _files_of(directory: Path, index: str) -> dict[str, list[str]]:
    mapping = read_json(directory, index).get("weight_map")
    if not isinstance(mapping, dict) or not all(isinstance(file, str) for file in mapping.values()):
        raise DataError(f"{directory / index} has no weight_map of tensor names to file names")
    files: dict[str, list[str]] = {}
    for name, file in mapping.items():
        files.setdefault(file, []).append(name)
    return files


def _read_pickle(path: Path) -> dict[str, Tensor]:
    try:
        # Files from before torch 1.6 are not zip archives and cannot be memory-mapped.
        found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:
        # The unpickler raises errors of many types on an arbitrary file.
        raise DataError(
            f"{path} is corrupt or holds more than weights ({type(error).__name__}: {' '.join(str(error).split())[:120]})",
            hint="none of its code was run; use a safetensors file of the same model",
        ) from error
    if not isinstance(found, dict) or not all(_is_plain(*item) for item in found.items()):
        raise DataError(f"{path} is not a mapping of names to tensors")
    return found


def _is_plain(name: object, tensor: object) -> bool:
    dense = isinstance(tensor, Tensor) and tensor.layout == torch.strided and tensor.device.type == "cpu"
    return isinstance(name, str) and dense

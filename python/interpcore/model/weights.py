"""The identity of a model's weights, and their hash, computed once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from interpcore.runs import tensors_hash

_ROW = 1024  # words that a row of the checksum adds


class Weights:
    """Stands for one set of tensors, whatever plans run over them.

    Their hash is computed once. Asking again only looks whether they are still the same: by torch's count of
    writes, and by sums of their bytes, which also show writes that torch does not count (through
    `tensor.data`, or numpy). That takes one reading at memory speed, where the tensors are.
    """

    def __init__(self) -> None:
        self._hashed: tuple[object, str] | None = None

    def hash(self, tensors: Mapping[str, Tensor]) -> str:
        """`tensors_hash` of the named tensors as they are now."""
        state = None if any(t.is_meta for t in tensors.values()) else _state(tensors)
        if self._hashed is None or self._hashed[0] != state:
            self._hashed = state, tensors_hash(tensors)
        return self._hashed[1]


def _state(tensors: Mapping[str, Tensor]) -> object:
    """What differs when any of the tensors does."""
    storages, views = {}, []
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage()
        data = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage)
        storages[storage.data_ptr()] = data
        writes = None if tensor.is_inference() else tensor._version
        view = (storage.data_ptr(), tensor.storage_offset(), tensor.shape, tensor.stride())
        views.append((name, tensor.dtype, *view, writes))
    return views, [_checksum(data) for data in storages.values()]


def _checksum(data: Tensor) -> str:
    """Of bytes [n] uint8. Their 64-bit words are added along rows, which shows a changed value, and along
    columns, which shows values that changed places within a row."""
    whole = len(data) // (8 * _ROW) * (8 * _ROW)
    words = data[:whole].view(torch.int64).view(-1, _ROW)
    found = hashlib.sha256()
    for part in (words.sum(1), words.sum(0), data[whole:]):
        found.update(part.cpu().numpy().data)
    return found.hexdigest()

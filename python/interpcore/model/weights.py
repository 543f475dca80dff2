"""The identity of a model's weights, and their hash, computed once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interpcore._kept import cache_folder, keep, read_kept
from interpcore.model.recurrence import names_state
from interpcore.runs import tensors_hash

# Of transformers' configs, what changes no logit.
_UNTOLD = frozenset(
    "transformers_version dtype torch_dtype architectures auto_map use_cache return_dict output_attentions "
    "output_hidden_states id2label label2id problem_type name_or_path bos_token_id eos_token_id pad_token_id "
    "initializer_range attn_implementation".split()
)
_KEPT = 1  # of the hash's definition: another one finds nothing that was kept
_ROW = 1024  # words that a row of the checksum adds


class Weights:
    """Stands for one set of tensors, whatever plans run over them.

    Their hash is computed once. Asking again only looks whether they are still the same: by torch's count of
    writes, and by sums of their bytes, which also show writes that torch does not count (through
    `tensor.data`, or numpy). That takes one reading at memory speed, where the tensors are.

    Where they were read from files, the hash is kept in the user's cache folder for later processes, under
    those sums and what the system says of the files: path, size, times of change, inode. A file that was
    touched or replaced, or tensors that differ from what was hashed, are hashed anew.

    Args:
        files: that the tensors were read from.
    """

    def __init__(self, files: Sequence[Path] = ()) -> None:
        self.files = tuple(files)
        self._hashed: tuple[object, str] | None = None

    def hash(self, tensors: Mapping[str, Tensor]) -> str:
        """`tensors_hash` of the named tensors as they are now."""
        state = None if any(t.is_meta for t in tensors.values()) else State.of(tensors)
        if self._hashed is None or self._hashed[0] != state:
            self._hashed = state, self._found(tensors, state)
        return self._hashed[1]

    def _found(self, tensors: Mapping[str, Tensor], state: State | None) -> str:
        """The hash that was kept, or a new one."""
        folder, stamps = cache_folder(), _stamps(self.files)
        if state is None or folder is None or not stamps:
            return tensors_hash(tensors)
        told = json.dumps([_KEPT, stamps, state.told]).encode()
        path = folder / f"weights-{hashlib.sha256(told).hexdigest()[:32]}.json"
        kept: object = read_kept(path)
        if isinstance(kept, str):
            return kept
        made = tensors_hash(tensors)
        keep(path, made)
        return made


def weights_hash(model: Any) -> str:
    """Hash of every weight of a model as it is now; computed once for all plans over the same weights."""
    found: str = model.weights.hash(dict(named_tensors(model)))
    return found


def model_hash(model: Any) -> str:
    """`weights_hash`, and behind a dash a hash of what is computed with the weights: what keys hold."""
    said = json.dumps(dict(sorted(_settings(model))))
    return f"{weights_hash(model)}-{hashlib.sha256(said.encode()).hexdigest()[:16]}"


def _settings(model: Any) -> Iterator[tuple[str, Any]]:
    """Everything by name that is no tensor and changes what a model computes: epsilons, factors, activations,
    windows, sites of dictionaries; through the adapter transformers' config."""
    if hasattr(model, "hf"):
        yield "config", _told(model.hf.config.to_dict())
        return
    for name, module in model.modules.items():
        if not names_state(name):  # which stands in the plan
            yield from _plain(name, module)
    for name in ("final_norm", "unembedding"):
        yield from _plain(name, getattr(model, name))
    for name in ("n_heads", "n_kv_heads", "embed_scale", "logit_softcap"):
        yield from _plain(name, getattr(model.spec, name))


def _told(config: Any) -> Any:
    """A config without what changes no logit."""
    if isinstance(config, dict):
        kept = {k: v for k, v in config.items() if not k.startswith("_") and k not in _UNTOLD}
        return {k: _told(v) for k, v in sorted(kept.items()) if v is not None}
    if isinstance(config, list | tuple):
        return [_told(each) for each in config]
    return (
        _rounded(config) if isinstance(config, float) else config if isinstance(config, int) else str(config)
    )


def _plain(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if is_dataclass(value):
        for field in fields(value):
            yield from _plain(f"{name}.{field.name}", getattr(value, field.name))
    elif isinstance(value, float):
        yield name, _rounded(value)
    elif value is not None and not isinstance(value, Tensor):
        yield name, value if isinstance(value, int | str) else repr(value)


def _rounded(value: float) -> str:
    """A number as files in float32 and in text both give it."""
    return f"{value:.6g}"


def named_tensors(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Every weight of a model with a name, through the adapter those of transformers' own."""
    if hasattr(model, "hf"):
        yield from model.hf.state_dict(keep_vars=True).items()
        return
    for name, module in model.modules.items():
        if not names_state(name):  # which stands in the plan
            yield from _tensors(name, module)
    for name in ("embedding", "positions", "final_norm", "unembedding"):
        yield from _tensors(name, getattr(model, name))


def _tensors(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, Tensor):
        yield name, value
    elif is_dataclass(value):
        for field in fields(value):
            yield from _tensors(f"{name}.{field.name}", getattr(value, field.name))


@dataclass(frozen=True)
class State:
    """What differs when any of some tensors does.

    Args:
        told: in words that hold in another process: names, dtypes, shapes and places in a storage, and sums
            of the storages' bytes.
        writes: where the storages are, and torch's count of writes of each tensor.
    """

    told: list[Any]
    writes: list[Any]

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> State:
        """The tensors' state now, in one reading."""
        storages: dict[int, Tensor] = {}
        views, writes = [], []
        for name, tensor in tensors.items():
            storage = tensor.untyped_storage()
            at = storage.data_ptr()
            storages[at] = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(storage)
            place = list(storages).index(at), tensor.storage_offset(), list(tensor.shape), tensor.stride()
            views.append([name, str(tensor.dtype), *place])
            writes.append((at, None if tensor.is_inference() else tensor._version))
        return cls([views, [_checksum(data) for data in storages.values()]], writes)


def _stamps(files: Sequence[Path]) -> list[list[Any]]:
    """What the system says of files, none where one is gone."""
    try:
        found = [(file.resolve(), file.stat()) for file in files]
    except OSError:
        return []
    return [
        [str(path), said.st_size, said.st_mtime_ns, said.st_ctime_ns, said.st_ino, said.st_dev]
        for path, said in found
    ]


def _checksum(data: Tensor) -> str:
    """Of bytes [n] uint8. Their 64-bit words are added along rows, which shows a changed value, and along
    columns, which shows values that changed places within a row."""
    whole = len(data) // (8 * _ROW) * (8 * _ROW)
    words = data[:whole].view(torch.int64).view(-1, _ROW)
    found = hashlib.sha256()
    for part in (words.sum(1), words.sum(0), data[whole:]):
        found.update(part.cpu().numpy().data)
    return found.hexdigest()

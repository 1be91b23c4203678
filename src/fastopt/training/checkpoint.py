"""One safetensors file with everything that a run needs to continue: tensors by name, and JSON in the header."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.numpy import save

from fastopt import methods
from fastopt.files import replacing
from fastopt.hyperparameters import plain
from fastopt.training.errors import TrainingError

HEADER_KEY = "fastopt"  # one key for all: the header keeps no order of its keys, the file would not be reproducible
CHECKSUM_KEY = "sha256"


IN_USE = "in_use."
"""Before the name of a parameter where it is used, if it is trained in another place."""


class Checkpoint(NamedTuple):
    """What a checkpoint file holds.

    Attributes
    ----------
    tensors : dict of str to ndarray
        ``param.NAME`` for each parameter, ``state.NAME.KEY`` for each array of its optimizer state, and what the data
        needs.
    metadata : dict
        Values that JSON can hold.
    """

    tensors: Mapping[str, NDArray[Any]]
    metadata: dict[str, Any]

    @property
    def checksum(self) -> str:
        """SHA-256 of everything in it."""
        digest = hashlib.sha256(json.dumps(self.metadata, sort_keys=True).encode())
        for name in sorted(self.tensors):
            values = self.tensors[name]
            digest.update(f"{name} {values.dtype} {values.shape}".encode())
            digest.update(np.ascontiguousarray(values).data)
        return digest.hexdigest()

    def save(self, path: Path) -> None:
        """Write the file as a whole or not at all, durably.

        Raises
        ------
        OSError
            If it cannot be written.
        """
        header = {HEADER_KEY: json.dumps({**self.metadata, CHECKSUM_KEY: self.checksum})}
        content = save(dict(self.tensors), metadata=header)
        with replacing(path) as temporary:
            temporary.write_bytes(content)  # not by the library, whose files only their owner can read

    @classmethod
    def load(cls, path: Path, required: Mapping[str, type] | None = None) -> "Checkpoint":
        """Read a file.

        Parameters
        ----------
        path : Path
            The file. One without a checksum, as older versions wrote them, is taken as it is.
        required : mapping of str to type, optional
            What the metadata must have.

        Raises
        ------
        TrainingError
            If it does not exist, is damaged, is not from here, or lacks something.
        """
        if not path.is_file():
            raise TrainingError(f"there is no checkpoint {path}: nothing to resume")
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = dict(json.loads((file.metadata() or {})[HEADER_KEY]))
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except Exception as error:  # a damaged header leads the libraries into errors of any type
            raise TrainingError(f"{path} is not a checkpoint of fastopt train, or is damaged ({error!r})") from error
        checksum = metadata.pop(CHECKSUM_KEY, None)
        checkpoint = cls(tensors, metadata)
        if checksum not in (None, checkpoint.checksum):
            raise TrainingError(f"{path} is damaged: its content does not have the checksum that it was written with")
        for name, kind in (required or {}).items():
            if type(metadata.get(name)) is not kind:
                raise TrainingError(
                    f"{path} is not a checkpoint of fastopt train, or is damaged "
                    f"(metadata: expected {kind.__name__} {name!r}, got {metadata.get(name)!r})"
                )
        return checkpoint

    def difference(self, other: "Checkpoint") -> str | None:
        """Return in what this differs from a checkpoint of the same run after other steps, None if in nothing.

        What may differ is what the steps between the two change: the values, and the number of steps.
        """
        found, expected = (
            {
                **{f"tensor {name}": f"{values.dtype} {values.shape}" for name, values in checkpoint.tensors.items()},
                **_facts(checkpoint.metadata),
            }
            for checkpoint in (self, other)
        )
        for name in {**expected, **found}:
            if found.get(name) != expected.get(name):
                return f"{name}: expected {expected.get(name, 'none')}, got {found.get(name, 'none')}"
        return None


def pack(parameters: Mapping[str, NDArray[Any]], optimizer: Any) -> Checkpoint:
    """Return the parameters and the optimizer's state; the arrays are not copied."""
    saved = optimizer.state_dict()
    tensors = {f"param.{name}": values for name, values in parameters.items()}
    scalars: dict[str, dict[str, Any]] = {}
    for index, name in enumerate(parameters):
        for key, value in saved["state"].get(index, {}).items():
            if np.ndim(value) > 0:
                tensors[f"state.{name}.{key}"] = value
            else:
                scalars.setdefault(name, {})[key] = plain(value)
    groups = [
        {key: _readable(value) for key, value in group.items() if key != "accumulate"}  # of the last step, not the run
        for group in saved["param_groups"]
    ]
    return Checkpoint(tensors, {"step": saved["step_count"], "state": scalars, "param_groups": groups})


def unpack(checkpoint: Checkpoint, parameters: Mapping[str, NDArray[Any]], optimizer: Any) -> None:
    """Overwrite parameters and state with those of a checkpoint; the hyper-parameters of the optimizer stay."""
    for name, values in parameters.items():
        np.copyto(values, checkpoint.tensors[f"param.{name}"])
    state = {}
    for index, name in enumerate(parameters):
        prefix = f"state.{name}."
        arrays = {
            key.removeprefix(prefix): array for key, array in checkpoint.tensors.items() if key.startswith(prefix)
        }
        state[index] = {**arrays, **checkpoint.metadata["state"].get(name, {})}
    groups = optimizer.state_dict()["param_groups"]
    written = {key for method in methods.registry().values() for key in method.advances}  # by steps, in the groups
    for group, saved in zip(groups, checkpoint.metadata["param_groups"], strict=True):
        group.update((key, saved[key]) for key in written & group.keys() & saved.keys())
    optimizer.load_state_dict({"state": state, "param_groups": groups, "step_count": checkpoint.metadata["step"]})


def _facts(metadata: Mapping[str, Any]) -> dict[str, str]:
    """Return what the metadata of all checkpoints of a run has in common."""
    facts = {f"metadata {key}": type(value).__name__ for key, value in metadata.items()}
    for part in ("config", "data", "versions"):
        facts |= {f"{part}, {key}": json.dumps(value) for key, value in metadata.get(part, {}).items()}
    for parameter, numbers in metadata["state"].items():
        for key, value in (numbers if isinstance(numbers, dict) else {"numbers": numbers}).items():
            kind = _step_text(value, metadata["step"]) if key == "step" else type(value).__name__
            facts[f"state of {parameter}, {key}"] = kind
    return facts


def _step_text(value: Any, step: int) -> str:
    return "the number of steps" if value == step else repr(value)


def _readable(value: Any) -> Any:
    return repr(value) if callable(value) else value  # a schedule: its repr makes it again

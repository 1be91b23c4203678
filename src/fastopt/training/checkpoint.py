"""One safetensors file with everything that a run needs to continue: tensors by name, and JSON in the header."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fastopt.files import replacing
from fastopt.training.errors import TrainingError

HEADER_KEY = "fastopt"  # one key for all: the header keeps no order of its keys, the file would not be reproducible


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

    def save(self, path: Path) -> None:
        """Write the file as a whole or not at all, durably."""
        with replacing(path) as temporary:
            save_file(dict(self.tensors), temporary, metadata={HEADER_KEY: json.dumps(self.metadata)})

    @classmethod
    def load(cls, path: Path) -> "Checkpoint":
        """Read a file.

        Raises
        ------
        TrainingError
            If it does not exist, is damaged, or is not from here.
        """
        if not path.is_file():
            raise TrainingError(f"there is no checkpoint {path}: nothing to resume")
        try:
            with safe_open(path, framework="numpy") as file:
                metadata = json.loads((file.metadata() or {})[HEADER_KEY])
                return cls({name: file.get_tensor(name) for name in file.keys()}, metadata)  # noqa: SIM118
        except (SafetensorError, KeyError, ValueError) as error:
            raise TrainingError(f"{path} is not a checkpoint of fastopt train, or is damaged ({error!r})") from error


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
                scalars.setdefault(name, {})[key] = value
    groups = [{key: _readable(value) for key, value in group.items()} for group in saved["param_groups"]]
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
    optimizer.load_state_dict({"state": state, "param_groups": groups, "step_count": checkpoint.metadata["step"]})


def _readable(value: Any) -> Any:
    return repr(value) if callable(value) else value  # a schedule: its repr makes it again

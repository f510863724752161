"""Weights of a net of tf_keras.applications, from a file that Keras has written. No TensorFlow in here.

All of Keras' HDF5 files: of weights (`x.weights.h5`, and the older `x.h5`, as which applications are published) and of
whole models (`x.h5`), by Keras 2 and 3, with the application's own classifier, another or none, by itself or inside of
another model. Nothing but numbers is read of them.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from kdrun.errors import InputError, text
from kdrun.models.weights import check_numbers
from kdrun.storage import files

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Stored = Mapping[str, Sequence[Any]]  # of each layer its weights, h5py datasets


def check(path: Path) -> None:
    """Raises InputError where a file is not there, or none that Keras writes."""
    with _opened(path):
        pass


def load(layers: Sequence, path: Path) -> None:
    """Give layers, in the order of their network, the weights in a file. Raises InputError where they are not theirs.

    All are looked at before the first one is assigned.
    """
    layers = [layer for layer in layers if layer.weights]
    with _opened(path) as (stored, name):
        names = [name(layer) for layer in layers]
        if not set(names) <= stored.keys():  # Keras 2 and 3 do not call all of them alike
            names = [*stored][: len(layers)]
        found = []
        for layer, its_name in zip(layers, names, strict=False):
            wanted, shapes = [tuple(w.shape) for w in layer.weights], [w.shape for w in stored[its_name]]
            if shapes != wanted:
                raise InputError(
                    f"model.weights={path} is of another network: its layer {its_name} has weights of "
                    f"{_shown(shapes)}, and {layer.name} here has {_shown(wanted)}. Give a file of this architecture."
                )
            found.append([np.asarray(each) for each in stored[its_name]])
            if not all(np.isfinite(each).all() for each in found[-1]):
                raise InputError(
                    f"model.weights={path} is damaged: its layer {its_name} has weights that are no number."
                )
        if len(found) < len(layers):
            raise InputError(
                f"model.weights={path} is of another network: it has {len(stored)} layers with weights, and there are "
                f"{len(layers)} here. Give a file of this architecture."
            )
    for layer, values in zip(layers, found, strict=True):
        layer.set_weights(_normalisation(values) if type(layer).__name__ == "Normalization" else values)


def _normalisation(values: list[np.ndarray]) -> list[np.ndarray]:
    """Mean, variance and count as a network needs them that is without the scaling which Keras puts behind the
    normalisation of ImageNet's EfficientNets: the variances that they are published with are standard deviations."""
    mean, variance, number = values
    if np.allclose(mean, _IMAGENET_MEAN, atol=1e-3):
        variance = variance * np.asarray(_IMAGENET_STD, variance.dtype)
    return [mean, variance, number]


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Stored, Callable[[Any], str]]]:
    """What a file holds, and a function that says under which name a layer would be there.

    Layers of one network, in their order, must be asked for one after the other.
    """
    import h5py

    try:
        check_numbers(path)
        opened = files.open_regular(path)
    except Exception as error:  # whatever HDF5 and h5py raise for what is not theirs
        raise _not_keras(path, error) from error
    with opened, h5py.File(opened, "r") as file:
        try:
            older = file.get("model_weights", file)
            is_older = any(key.startswith("layer_names") for key in older.attrs)
            stored = _older(older) if is_older else _newer(file)
            if not stored:
                raise ValueError("it has no layers with weights")
        except Exception as error:
            raise _not_keras(path, error) from error
        yield stored, _scope if is_older else _numbered()


def _not_keras(path: Path, error: Exception) -> InputError:
    said = "there is no such file" if isinstance(error, FileNotFoundError) else text(error)
    return InputError(
        f"model.weights={path}: {said}. It must be a .h5 or .weights.h5 file that Keras has written, of weights or of "
        "a whole model."
    )


def _older(group) -> dict[str, list]:
    """Of each layer its weights, in order; of a model inside of the model, those of its layers."""
    found: dict[str, list] = {}
    for layer in _texts(group, "layer_names"):
        names = _texts(group[layer], "weight_names")
        scopes = {name.rpartition("/")[0] for name in names}
        for name in names:
            key = layer if len(scopes) == 1 else name.rpartition("/")[0]
            found.setdefault(key, []).append(group[layer][name])
    return found


def _texts(group, key: str) -> list[str]:
    """A list of names; a long one is in pieces."""
    pieces = [key] if key in group.attrs else []
    for number in count():
        if pieces == [key] or f"{key}{number}" not in group.attrs:
            break
        pieces.append(f"{key}{number}")
    texts = [text for piece in pieces for text in group.attrs[piece]]
    return [text.decode() if isinstance(text, bytes) else str(text) for text in texts]


def _scope(layer) -> str:
    """The name that a layer was made with."""
    return layer.weights[0].name.rpartition("/")[0]


def _newer(file) -> dict[str, list]:
    """Of each layer its weights, in order; if there is a model inside of the model, those of its layers."""
    group = file["layers"]
    while inside := [each for each in group.values() if "layers" in each]:
        group = inside[0]["layers"]
    named = {name: layer["vars"] for name, layer in group.items() if "vars" in layer}
    return {name: [kept[str(n)] for n in range(len(kept))] for name, kept in named.items() if len(kept)}


def _numbered() -> Callable[[Any], str]:
    """Layers are called after their class there, and numbered."""
    seen: dict[str, int] = defaultdict(int)

    def name(layer) -> str:
        words = re.sub(r"(.)([A-Z][a-z0-9]+)", r"\1_\2", type(layer).__name__)
        words = re.sub(r"([a-z])([A-Z])", r"\1_\2", words).lower()
        seen[words] += 1
        return words if seen[words] == 1 else f"{words}_{seen[words] - 1}"

    return name


def _shown(shapes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join("x".join(map(str, shape)) or "1" for shape in shapes) or "none"

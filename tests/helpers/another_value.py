"""Another value for a key of a config, whatever key it is: for tests that change one after the other."""

import copy
from collections.abc import Mapping
from typing import Any

# of keys that are null, by their last part
_VALUES = {
    "patience": 3,
    "temperature_end": 1.0,
    "alpha_end": 0.5,
    "weight_end": 0.5,
    "max_norm": 1.0,
    "weights": [2.0],
    "train_size": 100,
    "test_size": 50,
    "validation_size": 50,
    "num_classes": 5,
    "include_classes": [0, 1],
    "resume": "auto",
    "sweep": "mine",
    "logits": "logits.npz",
    "seeds": 3,
    "teachers": 3,
    "views": 4,
    "transfer": "more.npz",
    "step_epochs": [2],
    "clip_norm": 1.0,
    "ema": 0.9,
    "initial_weights": __file__,
    "freeze": 1,
    "new_learning_rate": 0.01,
    "quantize": "int8",
    "file": "teacher.keras",
    "size": 8,
    "channels": "rgb",
    "layout": "NHWC",
    "scale": 1.0,
    "classes": [1, 0],
    "most_loss": 1.0,
    "cluster": "node1:29500,node2:29500",
    "task": 1,
}
# two words, of which one is another
_WORDS = {
    "annealing": ("linear", "cosine"),
    "schedule": ("constant", "cosine"),
    "decay": ("all", "weights"),
    "precision": ("mixed_bfloat16", "float32"),
    "combine": ("probabilities", "logits"),
    "shuffle": ("none", "all"),
    "normalise": ("none", "dataset"),
    "classifier": ("own", "teacher"),
    "cache": ("off", "on"),
    "weak": ("refuse", "allow"),
    "data.name": ("npz", "mnist"),
    "split": ("first", "stratified"),
    "on_device": ("on", "off"),
    "optimizer.name": ("adam", "sgd"),
    "teacher.optimizer.name": ("adam", "sgd"),
    "student.optimizer.name": ("adam", "sgd"),
    "teacher.model.name": ("mlp", "convnet"),
    "student.model.name": ("mlp", "convnet"),
    "stage": ("student", "teacher"),
}


def changed(config: Mapping, key: str) -> dict:
    """The config with another value for a dotted key."""
    found = copy.deepcopy(dict(config))
    *path, last = key.split(".")
    branch = found
    for part in path:
        branch = branch[part]
    branch[last] = _another(key, branch[last])
    return found


def _another(key: str, value: Any) -> Any:
    last = key.split(".")[-1]
    if words := _WORDS.get(key, _WORDS.get(last)):
        return words[value == words[0]]
    if value is None:
        return _VALUES[last]
    if isinstance(value, Mapping):  # an empty one
        return {"another": 1}
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    if isinstance(value, float):
        return value / 2 or 0.5
    if isinstance(value, list):
        return [*value, "embedding" if value and isinstance(value[0], str) else 3]
    return f"another {value}"

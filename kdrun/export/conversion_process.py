"""The process in which a run's network is made a file of another format.

A process of its own, since converters print much, keep memory, and name what they make by counters and by the order of
sets: in a new process, whose hashes are the same each time, the same network gives the same bytes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kdrun import plugins
from kdrun.data import preparation
from kdrun.runs import record as runs
from kdrun.runtime import child, tensorflow

_whole: list[Any] = []


def main() -> None:
    """Answer the parent, until it is gone."""
    child.serve(_answer)


def _answer(told: Mapping[str, Any], payload: bytes) -> tuple[dict, bytes]:
    if "run" in told:
        return _load(told), b""
    (whole,) = _whole
    calibration = np.frombuffer(payload, np.uint8).reshape(told["calibration"])
    if told["format"] == "saved_model":
        from kdrun.export import saved_model

        saved_model.write(whole, Path(told["path"]))
        return {}, b""
    if told["format"] == "onnx":
        from kdrun.export import onnx_file

        return {}, onnx_file.made(whole, told["quantize"], calibration)
    from kdrun.export import litert

    content, is_quantised = litert.made(whole, told["quantize"], calibration)
    return {"has_floats": not is_quantised}, content


def _load(told: Mapping[str, Any]) -> dict:
    plugins.load(told["plugins"])
    tensorflow.load_tensorflow()
    from kdrun.export.whole import Whole
    from kdrun.teachers import checkpoint

    run_dir = Path(told["run"])
    model, shown = checkpoint.load(run_dir, "float32"), preparation.of_run(runs.read(run_dir))
    _whole[:] = [Whole(model, shown, told["output"], tuple(told["shape"]))]
    return {}

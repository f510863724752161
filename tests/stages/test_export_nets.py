"""stage=export of nets of every kind, in every format and quantisation: held to the run's predictions by the export
itself, and again here by what its files are asked. A few training steps each: what they are is random, hard to keep."""

import io
import json
from contextlib import redirect_stdout
from pathlib import Path

import numpy as np
import plugin_files
import pytest

from kdrun.cli.main import main
from kdrun.data import datasets, npz
from kdrun.export import asking
from kdrun.runtime import tensorflow as startup

startup.load_tensorflow()
pytestmark = pytest.mark.slow

NETS = {
    "densenet_12": ["model@student.model=densenet_12", "student.model.blocks=[2,3,3,2]", "data.image_size=32"],
    "resnet8": ["model@student.model=resnet", "student.model.depth=8"],
    "mobilenet_v2": ["model@student.model=mobilenet_v2"],
    "mlp": ["model@student.model=mlp", "student.model.hidden_units=[32]"],
    "application": [
        "model@student.model=application",
        "student.model.architecture=MobileNetV3Small",
        "data.image_size=32",
    ],
    "plug-in": ["model@student.model=my_net"],
}
MOST = {"none": 1e-4, "float16": 1e-2, "dynamic": 0.3, "int8": 0.6}  # of probabilities


def answer(*words: str) -> Path:
    """The run directory of a command that goes well."""
    out = io.StringIO()
    with redirect_stdout(out):
        assert main([*words, "print=json"]) == 0
    return Path(json.loads(out.getvalue())["paths"]["run"])


@pytest.mark.parametrize("net", NETS)
def test_a_net_is_exported_in_every_way(net, tmp_path):
    with np.load(npz._MNIST) as held:
        arrays = {name: held[name][: 300 if "train" in name else 40] for name in held}
    for name in ("x_train", "x_test"):
        arrays[name] = np.repeat(arrays[name][..., None], 3, axis=3)
    np.savez(tmp_path / "digits.npz", **arrays)
    (tmp_path / "net.py").write_text(plugin_files.NET)
    plugin = [f"plugins=[{tmp_path / 'net.py'}]"] if net == "plug-in" else []
    given = ["data=npz", f"data.path={tmp_path / 'digits.npz'}", "data.image_size=28", "data.validation_size=100"]
    given += ["batch_size=32", "epochs=2", "optimizer=adam", "measure_latency=false", "tensorboard.histograms=false"]
    run = answer("stage=student", *given, *plugin, *NETS[net], f"outputs={tmp_path}")
    ways = ["export.format=[saved_model,litert,onnx]", "export.quantize=[none,float16,dynamic,int8]"]
    export = answer("stage=export", f"run={run}", *ways, *plugin, f"outputs={tmp_path}")
    with np.load(run / "predictions/test.npz") as held:
        logits = held["logits"].astype(float)
    expected = np.exp(logits - logits.max(axis=1, keepdims=True))
    expected /= expected.sum(axis=1, keepdims=True)
    exported = json.loads((export / "run.json").read_text())["results"]["exports"]
    assert len(exported) == 9
    images = datasets.load(json.loads((run / "run.json").read_text())["config"]["data"]).test.images
    for each in exported:
        with asking.asked(export / each["file"], each["quantize"]) as runtime:
            found = runtime.outputs(np.asarray(images))
        assert np.abs(found - expected).max() <= MOST[each["quantize"]], each["file"]

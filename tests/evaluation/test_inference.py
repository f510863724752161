"""A network asked for its logits: small images all at once, big ones resized before a batch of them is filled up."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from kdrun.models import build as models
from kdrun.runtime import tensorflow as startup

startup.load_tensorflow()

import tensorflow as tf  # noqa: E402

from kdrun.data.augmentation import Augmentation  # noqa: E402
from kdrun.data.preparation import Preparation  # noqa: E402
from kdrun.evaluation.inference import compiled_inference  # noqa: E402
from kdrun.models.preprocessing import seen  # noqa: E402

MLP = {"name": "mlp", "hidden_units": [16], "input_dropout": 0.0, "hidden_dropout": 0.0, "max_norm": None}
TINY = ["model@teacher.model=mlp", "model@student.model=mlp", "student.model.hidden_units=[8]", "optimizer=adam"]
TINY += ["data=npz", "data.image_size=8", "data.validation_size=4", "epochs=1", "batch_size=12"]


@pytest.mark.parametrize(("side", "count"), [(30, 21), (1500, 19)], ids=["small", "big"])
@pytest.mark.parametrize("view", [0, 13])
@pytest.mark.parametrize("how", [Augmentation(1, True), Augmentation(1, True, 0.5, 0.4, cutout=0.3, views=20)])
def test_logits_are_those_of_the_network_on_full_batches_bit_for_bit(side, count, view, how):
    """Of images of 1500 pixels a side 14 fit at once: a batch of 16 is prepared in two parts."""
    coarse = np.random.default_rng(0).integers(0, 256, (count, side // 10, side // 10, 1), np.uint8)
    images = coarse.repeat(10, axis=1).repeat(10, axis=2)
    model = models.build(MLP, (8, 8, 1), 5, 0, "float32")
    infer = compiled_inference(model, images.shape[1:], 16, Preparation(8), how)
    found = np.concatenate(list(infer(images, view)))
    each = (tf.constant(images[i : i + 1]) for i in range(count))
    shown = [
        seen(image, tf.constant([i]), tf.constant([view]), how, [Preparation(8)])[0] for i, image in enumerate(each)
    ]
    network = tf.function(lambda batch: model(batch, training=False))
    batches = [tf.concat(shown[:16], 0), tf.concat([*shown[16:], *shown[16:17] * (32 - count)], 0)]
    assert found.tobytes() == np.concatenate([network(batch).numpy() for batch in batches])[:count].tobytes()


def test_big_after_resizing_are_fewer_a_call_and_an_images_logits_do_not_depend_on_how_many_come():
    images = np.random.default_rng(0).integers(0, 256, (7, 3000, 3000, 1), np.uint8)
    sizes = []

    def model(batch, training):
        sizes.append(batch.shape[0])
        return tf.reshape(tf.reduce_mean(batch, [1, 2]), [-1, 1])

    infer = compiled_inference(model, images.shape[1:], 500, Preparation(3000))
    blocks = list(infer(images))
    assert [len(block) for block in blocks] == [3, 3, 1] and set(sizes) == {3}
    assert np.concatenate(blocks)[6].tobytes() == np.concatenate(list(infer(images[6:])))[0].tobytes()
    np.testing.assert_allclose(np.concatenate(blocks)[:, 0], images.mean((1, 2, 3), np.float64) / 255, rtol=1e-4)


RUN = """
import json, sys
from kdrun.cli.main import main
code = main(sys.argv[1:])
with open("/proc/self/status") as status:  # resource's figure may be that of the process which started this one
    print(json.dumps([code, next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))]))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read as Linux has it")
@pytest.mark.slow
def test_sixteen_images_of_3000_pixels_a_side_need_less_than_two_gigabytes(tmp_path):
    labels, arrays = np.arange(16) % 2, {}
    for place, split in enumerate(("train", "test")):  # no two of them are alike, and none is of one value
        lines = (200 * labels[:, np.newaxis] + (np.arange(16)[:, np.newaxis] + np.arange(3000)) % (30 + place)).astype(
            np.uint8
        )
        arrays |= {f"x_{split}": np.broadcast_to(lines[:, np.newaxis], (16, 3000, 3000)), f"y_{split}": labels}
    np.savez_compressed(tmp_path / "big.npz", **arrays)

    def run(*arguments) -> int:
        command = [sys.executable, "-c", RUN, *arguments, "outputs=out"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        code, peak = json.loads(done.stdout.splitlines()[-1])
        assert code == 0, done.stderr
        return peak

    latency = "measure_latency=false"  # which would take a minute, and no more memory
    assert run("stage=student", *TINY, "data.path=big.npz", latency) < 2e9
    (run_json,) = tmp_path.glob("out/student/*/run.json")
    assert run("stage=evaluate", f"run={run_json.parent.relative_to(tmp_path)}") < 2e9

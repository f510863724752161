"""One job on several devices: parts of a CPU, against the same command on one.

Each group of commands is done by one process, whose TensorFlow has several devices; one of them alone is then like any
CPU with one thread.
"""

import itertools
import json
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import reference
from held import bits
from made import lines
from processes import Kdrun

from kdrun.cli.main import main
from kdrun.runtime import tensorflow as startup

SMALL = ["data.train_size=384", "data.validation_size=96", "data.test_size=96", "data.image_size=28", "batch_size=96"]
SMALL += ["epochs=5", "threads=1", "workers=1", "measure_latency=false", "tensorboard.histograms=false"]
SGD = ["optimizer=sgd", "optimizer.momentum=0.9"]
SMALL += ["tracker=[jsonl]", *SGD]
CONVNET = ["model@student.model=convnet", "student.model.filters=[4,8]", "optimizer.learning_rate=1e-2"]
TEACHER = ["model@teacher.model=convnet", "teacher.model.filters=[8]"]
SYNCHRONISED = [
    "sync_batch_norm=true",
    "optimizer.learning_rate=3e-4",
]  # at a higher one rounding grows beyond the limit
DENSENET = ["model@student.model=densenet", "student.model.growth_rate=4", "student.model.blocks=[1,2]"]
IN_ONE = (
    "import json, sys\nfrom kdrun.runtime import tensorflow\ntensorflow.load_tensorflow(1, int(sys.argv[1]))\n"
    "from kdrun.cli.main import main\nfor each in json.load(sys.stdin):\n    assert main(each) == 0, each\n"
)
GRAPHS = """
import json, sys
from kdrun.runtime import tensorflow
tensorflow.load_tensorflow(1, 2)
from kdrun.cli.main import main
from tensorflow.python.eager.context import context
context().enable_run_metadata()
assert main(sys.argv[1:]) == 0
of_functions = context().export_run_metadata().function_graphs
graphs = [{node.op for node in part.node} for each in of_functions for part in each.partition_graphs]
print(json.dumps([sorted(graph) for graph in graphs if "NextIteration" in graph]))
"""
LIVE = ["teacher.cache=off", "optimizer.learning_rate=1e-3"]
CASES = {
    "plain": ["stage=student", *CONVNET],
    "clipped, averaged": ["stage=student", *CONVNET, "optimizer.clip_norm=0.1", "optimizer.ema=0.9"],
    "mixed images": ["stage=student", *CONVNET, "student.mixup=0.5", "student.cutmix=1", "data.augment.jitter=2"],
    "adabelief": ["stage=student", *CONVNET, "optimizer=adabelief", "optimizer.learning_rate=1e-3"],
    "images on disk": ["stage=student", *CONVNET, "data.on_device=off"],
    "kept answers": ["stage=distill", *CONVNET, *TEACHER],
    "live, whole batch": ["stage=distill", *CONVNET, *TEACHER, "objective=[kd,similarity,dist]", *LIVE],
    "features": ["stage=distill", *CONVNET, *TEACHER, "objective=[fitnet,attention]", "optimizer.learning_rate=1e-4"],
    "peers": ["stage=mutual", *CONVNET],
    "densenet": ["stage=student", *DENSENET, *SYNCHRONISED],
    "resnet": ["stage=student", "model@student.model=resnet", "student.model.depth=8", *SYNCHRONISED],
}


LOOSER = {"half precision": 0.02, "resnet": 2e-4}  # whose moments one device takes from another kernel
CASES["half precision"] = [*CASES["plain"], "precision=mixed_bfloat16"]
QUICK = ["plain"]  # of others, .ci/run knows
BY_CASE = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in CASES]


def in_one_process(commands: list[list], devices: int = 2) -> str:
    """What is said by commands of so many devices or one, all done by one process."""
    given = json.dumps([[str(word) for word in each] for each in commands])
    ended = subprocess.run(
        [sys.executable, "-c", IN_ONE, str(devices)], input=given, capture_output=True, text=True, timeout=600
    )
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    return ended.stdout


@pytest.fixture(scope="module")
def teacher(tmp_path_factory) -> Path:
    outputs = tmp_path_factory.mktemp("teacher")
    in_one_process([["stage=teacher", *SMALL, *TEACHER, "optimizer.learning_rate=0.05", f"outputs={outputs}"]])
    return only(outputs)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, teacher):
    """The run directories of a case, by number of devices; of two devices twice."""
    found: dict[str, dict] = {}

    def of(name: str) -> dict:
        if name not in found:
            folders = {
                each: tmp_path_factory.mktemp("case") for each in ("1", "2", "2 again", *"3" * (name == "plain"))
            }
            is_sgd = not any(word.startswith("optimizer=") for word in CASES[name])
            command = [word for word in SMALL if is_sgd or word not in SGD] + CASES[name]
            command += [f"teacher.run={teacher}"] if "stage=distill" in CASES[name] else []
            commands = {each: [*command, f"devices={each[0]}", f"outputs={folders[each]}"] for each in folders}
            in_one_process([commands[each] for each in folders if each != "3"])
            if "3" in folders:
                in_one_process([commands["3"]], devices=3)
            found[name] = {each: only(folder) for each, folder in folders.items()}
        return found[name]

    return of


def only(outputs: Path) -> Path:
    (run_json,) = outputs.glob("*/*/run.json")
    return run_json.parent


def weights(run_dir: Path) -> dict[str, np.ndarray]:
    """Last weights by name, float64."""
    found = {}
    with h5py.File(run_dir / "checkpoints/last.weights.h5") as file:
        file.visititems(
            lambda name, each: found.update({name: each[()].astype(float)} if hasattr(each, "dtype") else {})
        )
    assert found
    return found


@pytest.mark.parametrize("name", BY_CASE)
def test_several_devices_train_as_one_does(trained, name):
    """Twenty steps: each variable within 1e-5 of its length."""
    runs = trained(name)
    expected = weights(runs["1"])
    for devices in runs.keys() - {"1"}:
        found = weights(runs[devices])
        assert found.keys() == expected.keys()
        distances = {each: np.linalg.norm(found[each] - expected[each]) for each in found}
        lengths = {each: max(np.linalg.norm(expected[each]), 1.0) for each in found}
        worst = max(found, key=lambda each: distances[each] / lengths[each])
        assert distances[worst] <= LOOSER.get(name, 1e-5) * lengths[worst], (devices, worst)
    losses = [[line["loss"] for line in lines(run)] for run in (runs["1"], runs["2"])]
    assert losses[1] == pytest.approx(losses[0], rel=LOOSER.get(name, 1e-4))
    assert losses[0][-1] != losses[0][0]


@pytest.mark.parametrize("name", BY_CASE)
def test_the_same_command_twice_gives_the_same_bits(trained, name):
    runs = trained(name)
    assert bits(runs["2"]) == bits(runs["2 again"])
    assert reference.record(runs["2"])["devices"] == 2


@pytest.mark.slow
def test_the_graph_of_a_loop_holds_no_max_pooling_of_several_devices(tmp_path):
    """There its gradient has one kernel in most processes, another one in some: the test above fails by chance."""
    command = [*SMALL, *CASES["plain"], "epochs=1", "devices=2", f"outputs={tmp_path}"]
    ended = subprocess.run([sys.executable, "-c", GRAPHS, *command], capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
    loops = json.loads(ended.stdout.splitlines()[-1])
    assert loops
    assert not [op for graph in loops for op in graph if "MaxPool" in op]


@pytest.mark.slow
def test_each_device_by_itself_normalises_otherwise(trained, tmp_path):
    """Without sync_batch_norm: another result. One device, two, and two that normalise together: three identities."""
    alone = trained("densenet")["1"]
    command = [*SMALL, *CASES["densenet"], "sync_batch_norm=false", "devices=2", f"outputs={tmp_path}"]
    in_one_process([command])
    run = only(tmp_path)
    differs = {name: np.abs(each - weights(alone)[name]).max() for name, each in weights(run).items()}
    assert max(differs.values()) > 1e-4
    of = [reference.record(each)["identity"] for each in (alone, run, trained("densenet")["2"])]
    assert all(one != other for one, other in itertools.combinations(of, 2))
    assert of[1]["devices"] == of[2]["devices"] == 2


def test_each_device_drops_other_units():
    """Two devices that drop the same ones halve what dropout does; all else is as on the first one."""
    startup.load_tensorflow()
    from kdrun.models import build
    from kdrun.training.network import Network

    model = {"name": "mlp", "hidden_units": [64], "input_dropout": 0.0, "hidden_dropout": 0.5}
    sgd = {"name": "sgd", "learning_rate": 0.1, "momentum": 0.9, "nesterov": False, "weight_decay": 0.0}
    first, second, third = (
        Network(lambda seed: build.build(model, (2, 2, 1), 3, seed, "float32"), 7, sgd, False) for _ in "123"
    )
    for number, each in enumerate((second, third), start=1):
        each.reset(8)
        each.follow(first, number)
    shown = np.ones((4, 2, 2, 1), np.float32)
    drawn = [each.model(shown, training=True).numpy() for each in (first, second, third)]
    assert all(np.abs(one - other).max() > 1e-3 for one, other in itertools.combinations(drawn, 2))
    plain = [each.model(shown, training=False).numpy() for each in (first, second, third)]
    assert plain[0].tobytes() == plain[1].tobytes() == plain[2].tobytes()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["devices=2", "batch_size=33"], "Give a multiple of 2, like student.batch_size=32"),
        (["devices=0"], "devices must be"),
        (["devices=two"], "devices must be"),
        (["devices=2", "student.quantize=int8", "student.initial_weights=RUN"], "Give devices=1"),
    ],
)
def test_what_cannot_be_spread_is_refused(words, says, tmp_path, capfd, teacher):
    words = [word.replace("RUN", str(teacher)) for word in words]
    assert main(["stage=student", *SMALL, *CONVNET, *words, f"outputs={tmp_path}"]) == 2
    assert says in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


NESTED = """
from kdrun.registry import register


@register("model", "nested")
def nested(inputs, num_classes):
    import tf_keras

    image = tf_keras.Input(inputs.shape[1:])
    inner = tf_keras.Model(image, tf_keras.layers.Flatten()(image), name="inner")
    return tf_keras.layers.Dense(num_classes)(inner(inputs))
"""


def test_a_net_inside_a_net_is_refused(tmp_path):
    (tmp_path / "nested.py").write_text(NESTED)
    command = ["stage=student", *SMALL, f"plugins=[{tmp_path / 'nested.py'}]", "model@student.model=nested"]
    refused = Kdrun([*command, "devices=2", f"outputs={tmp_path}"], tmp_path)
    assert refused.wait() == 2
    assert "nested has a network inside, inner" in refused.said() and "Give devices=1." in refused.said()


@pytest.mark.slow
def test_a_sweep_over_devices_has_a_process_for_each_number(tmp_path):
    command = [*SMALL, *CASES["plain"], "student.epochs=1", "devices=1,2", f"outputs={tmp_path}"]
    sweep = Kdrun(["-m", *command], tmp_path)
    assert sweep.wait() == 0, sweep.said()
    found = [reference.record(each.parent)["devices"] for each in tmp_path.glob("sweeps/*/*/run.json")]
    assert sorted(found) == [1, 2]


@pytest.mark.slow
def test_an_interrupted_run_of_two_devices_goes_on_with_the_same_bits(tmp_path):
    """Killed after some steps; the same command with resume=auto then is as if nothing had been. The process of the
    undisturbed run has trained another net before."""
    command = [*SMALL, "stage=student", *CONVNET, "devices=2", "student.epochs=60", "checkpoint.every_minutes=0.001"]
    other = [*SMALL, "stage=student", "model@student.model=mlp", "student.model.hidden_units=[8]", "devices=2"]
    other += ["student.epochs=1", f"outputs={tmp_path / 'other'}"]
    in_one_process([other, [*command, f"outputs={tmp_path / 'whole'}"]])
    begun = Kdrun([*command, f"outputs={tmp_path / 'broken'}"], tmp_path)
    assert begun.wait_until(lambda: len(list(tmp_path.glob("broken/*/*/checkpoints/state-*"))) > 1)
    begun.signal(signal.SIGKILL)
    begun.wait()
    in_one_process([[*command, "resume=auto", f"outputs={tmp_path / 'broken'}"]])
    whole, broken = (only(tmp_path / each) for each in ("whole", "broken"))
    assert "going on after step" in (broken / "kdrun.log").read_text()
    assert bits(broken) == bits(whole)

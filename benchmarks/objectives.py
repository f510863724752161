"""Each objective's training step against kd's: in one process, in turns, and peak memory in processes of their own.

    python benchmarks/objectives.py --net mlp
    python benchmarks/objectives.py --net densenet --steps 4 --rounds 5

Prints a Markdown table of medians: milliseconds a step, their ratio to kd's in the same round, and memory. Objectives
on features run the teacher live, as they do by default; kd reads its logits from the cache.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

from kdrun.cli.main import main as kdrun
from kdrun.errors import KdrunError

ROOT = Path(__file__).resolve().parents[1]
NETS = {
    "mlp": [
        *["data.image_size=28", "model@teacher.model=mlp", "model@student.model=mlp"],
        *["teacher.model.hidden_units=[1200,1200]", "student.model.hidden_units=[800,800]"],
    ],
    "densenet": ["data.image_size=32"],
}
ON_MAPS = ("attention", "review")  # which an MLP has none of
COMMON = ["data.validation_size=128", "data.test_size=128", "evaluation_batch_size=128", "epochs=1"]
COMMON += ["tensorboard.histograms=false", "measure_latency=false", "data.train_size=5120"]


class Ready(KdrunError):
    """A network is compiled, and is not to be trained by its command."""


def compiled(name: str, given: list[str]):
    """The compiled network of a distil command under that objective, with its settings and the training labels."""
    made = []

    def take(program, dataset, settings, *_):
        made.extend([program, settings, dataset.train.labels])
        raise Ready("taken")

    with mock.patch("kdrun.training.loop.train", take):
        kdrun(["stage=distill", *given, f"objective={name}"])
    return made


def milliseconds(made, first: int, count: int) -> float:
    """Of a step: the median of `count`, each in a call of its own."""
    from kdrun.training.execute import take_steps

    program, settings, labels = made
    found = []
    for step in range(first, first + count):
        started = time.perf_counter()
        list(take_steps(program, settings, step, step + 1, labels))
        found.append(1000 * (time.perf_counter() - started))
    return statistics.median(found)


def peak_memory(name: str, given: list[str]) -> float:
    """GB that a process takes which distils with that objective."""
    command = [sys.executable, "-m", "kdrun", "stage=distill", *given, f"objective={name}", "data.train_size=1280"]
    with open(os.devnull, "w") as nowhere:
        actions = [(os.POSIX_SPAWN_DUP2, nowhere.fileno(), 1)]
        process = os.posix_spawn(sys.executable, command, os.environ, file_actions=actions)
    _, status, usage = os.wait4(process, 0)
    if status:
        raise SystemExit(f"failed: {' '.join(command)}")
    return usage.ru_maxrss / 1e6


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--net", choices=NETS, required=True)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--memory", action="store_true", help="measure that, too: a process for each objective")
    asked = parser.parse_args()
    names = sorted(path.stem for path in (ROOT / "conf" / "objective").glob("*.yaml"))
    left_out = ("kd", "own", "kd_unscaled", *(ON_MAPS if asked.net == "mlp" else ()))
    names = ["kd", *(name for name in names if name not in left_out)]
    with tempfile.TemporaryDirectory() as folder:
        given = [*NETS[asked.net], *COMMON, f"outputs={folder}"]
        if kdrun(["stage=teacher", *given]):
            raise SystemExit("no teacher")
        (teacher,) = Path(folder).glob("teacher/*")
        given.append(f"teacher.run={teacher}")
        made = {name: compiled(name, given) for name in names}
        for each in made.values():
            milliseconds(each, 0, 2)
        taken = {name: [] for name in names}
        for number in range(asked.rounds):
            for name in names:
                taken[name].append(milliseconds(made[name], number * asked.steps, asked.steps))
        memory = {name: peak_memory(name, given) for name in names} if asked.memory else {}
    Path(__file__).with_name(f"objectives-{asked.net}.json").write_text(json.dumps([taken, memory], indent=1) + "\n")
    print("| objective | ms a step | to kd | peak memory, GB |\n|---|---|---|---|")
    for name, rounds in taken.items():
        ratio = statistics.median(mine / kds for mine, kds in zip(rounds, taken["kd"], strict=True))
        said = f"{memory[name]:.2f}" if memory else ""
        print(f"| {name} | {statistics.median(rounds):.1f} | {ratio:.2f} | {said} |")


if __name__ == "__main__":
    main()

"""One job on one device and on two parts of a CPU: images/s and seconds to the first step, on an idle machine.

    python benchmarks/devices.py [--rounds 3] [--nets densenet_32 mlp ...]

Each is a process of its own, as a user starts it; what is compared is measured in turn, round by round, and ratios are
of medians. `default` is devices=1 as kdrun runs it alone, `two` is devices=2, `synchronised` with sync_batch_norm=true.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

NETS = {  # and how many images a run takes after its first steps
    "densenet_32": (["model@student.model=densenet_12", "data.image_size=32"], 3840),
    "densenet_112": (["model@student.model=densenet_12", "data.image_size=112"], 1280),
    "resnet8_32": (["model@student.model=resnet", "student.model.depth=8", "data.image_size=32"], 6400),
    "mlp": (["model@student.model=mlp", "student.model.hidden_units=[800,800]", "data.image_size=28"], 40_000),
}
WAYS = {"default": ["devices=1"], "two": ["devices=2"], "synchronised": ["devices=2", "sync_batch_norm=true"]}
REDUCTION = """
import statistics, sys, time
from kdrun.runtime import tensorflow
tensorflow.load_tensorflow(1, 2)
import tensorflow as tf
from kdrun.training.replicas import Replicas
replicas, own = Replicas(tensorflow.device_names(2)), tf.ones([int(sys.argv[1])])
step = tf.function(lambda: [summed for (summed,) in replicas.run(lambda part: (part.sum(own + part.number)[:1],))])
seconds = []
for _ in range(30):
    started = time.perf_counter()
    step()
    seconds.append(time.perf_counter() - started)
print(1000 * statistics.median(seconds[5:]))
"""
COMMON = ["stage=student", "epochs=2", "data.validation_size=128", "data.test_size=128", "measure_latency=false"]
COMMON += ["tensorboard.histograms=false", "tracker=[jsonl]"]


def measured(net: str, way: str) -> tuple[float, float, float]:
    """Images/s after the first call, seconds to the first step, and bytes that a step brings together."""
    words, size = NETS[net]
    with tempfile.TemporaryDirectory() as outputs:
        command = [*COMMON, *words, *WAYS[way], f"data.train_size={size}", f"outputs={outputs}"]
        subprocess.run([sys.executable, "-m", "kdrun", *command], check=True, capture_output=True)
        (record,) = Path(outputs).glob("student/*/run.json")
        found = json.loads(record.read_text())
    results = found["results"]
    return results["images_per_second"], results["seconds_to_first_step"], 4.0 * found["parameters"]["total"]


def reduction(size: float) -> float:
    """Milliseconds of one sum over two devices of so many MB of float32."""
    command = [sys.executable, "-c", REDUCTION, str(int(size * 1e6 / 4))]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Print a row for each net."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--nets", nargs="+", choices=NETS, default=list(NETS))
    asked = parser.parse_args()
    print("| net | way | images/s | times default | first step, s | MB a step brings together | ms that takes alone |")
    print("|---|---|---|---|---|---|---|")
    for net in asked.nets:
        ways = [way for way in WAYS if net != "mlp" or way != "synchronised"]  # it has no batch normalisation
        found: dict[str, list] = {way: [] for way in ways}
        for _ in range(asked.rounds):
            for way in ways:
                found[way].append(measured(net, way))
        medians = {way: [statistics.median(column) for column in zip(*found[way], strict=True)] for way in ways}
        for way, (speed, first, size) in medians.items():
            ratio, together = speed / medians["default"][0], 0 if way == "default" else size / 1e6
            alone = f"{reduction(together):.1f}" if together else ""
            row = [net, way, f"{speed:,.0f}", f"{ratio:.2f}", f"{first:.1f}", f"{together:.1f}", alone]
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()

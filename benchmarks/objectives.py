"""Each objective against kd: images/s of distilling and peak memory, by kdrun's own command, in turns.

    python benchmarks/objectives.py --net mlp
    python benchmarks/objectives.py --net densenet --steps 24

Prints a Markdown table of ratios to kd within each round (medians), and writes benchmarks/objectives-<net>.json.
Objectives on features run the teacher live, as they do by default; kd reads its logits from the cache.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NETS = {
    "mlp": [
        *["data.image_size=28", "model@teacher.model=mlp", "model@student.model=mlp"],
        *["teacher.model.hidden_units=[1200,1200]", "student.model.hidden_units=[800,800]"],
    ],
    "densenet": ["data.image_size=32"],
}
ON_MAPS = ("attention", "review")  # which an MLP has none of


def run(outputs: Path, *arguments: str) -> tuple[dict, float]:
    """The results of a kdrun command in a process of its own, and its peak memory in GB."""
    before = set(outputs.glob("*/*/run.json"))
    command = [sys.executable, "-m", "kdrun", *arguments, f"outputs={outputs}"]
    with open(os.devnull, "w") as nowhere:
        actions = [(os.POSIX_SPAWN_DUP2, nowhere.fileno(), 1)]
        process = os.posix_spawn(sys.executable, command, os.environ, file_actions=actions)
    _, status, usage = os.wait4(process, 0)
    if status:
        raise SystemExit(f"failed: {' '.join(command)}")
    (made,) = set(outputs.glob("*/*/run.json")) - before
    return json.loads(made.read_text())["results"], usage.ru_maxrss / 1e6


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--net", choices=NETS, required=True)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    names = sorted(path.stem for path in (ROOT / "conf" / "objective").glob("*.yaml"))
    names = [name for name in names if name not in ("kd", "own", "kd_unscaled")]
    if asked.net == "mlp":
        names = [name for name in names if name not in ON_MAPS]
    common = [
        *NETS[asked.net],
        "data.validation_size=128",
        "data.test_size=128",
        "evaluation_batch_size=128",
        "epochs=1",
    ]
    common += ["tensorboard.histograms=false", "measure_latency=false", f"data.train_size={128 * asked.steps}"]
    measured = {}
    with tempfile.TemporaryDirectory() as folder:
        outputs = Path(folder)
        run(outputs, "stage=teacher", *common)
        run(outputs, "stage=cache", *common)
        for _ in range(asked.rounds):
            for name in ("kd", *names):
                results, memory = run(outputs, "stage=distill", *common, f"objective={name}")
                measured.setdefault(name, []).append([results["images_per_second"], memory])
    Path(__file__).with_name(f"objectives-{asked.net}.json").write_text(json.dumps(measured, indent=1) + "\n")
    print("| objective | images/s | to kd | peak memory, GB | to kd |\n|---|---|---|---|---|")
    for name, rounds in measured.items():
        speed, memory = (statistics.median(values) for values in zip(*rounds, strict=True))
        ratios = [
            [mine / kds for mine, kds in zip(*pair, strict=True)] for pair in zip(rounds, measured["kd"], strict=True)
        ]
        faster, larger = (statistics.median(values) for values in zip(*ratios, strict=True))
        print(f"| {name} | {speed:,.0f} | {faster:.2f} | {memory:.2f} | {larger:.2f} |")


if __name__ == "__main__":
    main()

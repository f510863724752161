"""kdrun against what one would use instead, side by side on one machine: python benchmarks/compare.py

Each measurement is a process of its own. A round runs every tool once, one after the other; the figures are medians
over the rounds. Prints tables in Markdown and writes benchmarks/results.json after every case; what it holds of other
cases, if it was measured on the same machine, stays and is shown again. Run it on an idle machine; three rounds of
everything take an hour and a half on two cores, which --cases and --phases divide. `torch` takes part if it is
installed: pip install -e '.[benchmarks]'.
"""

import argparse
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from importlib.metadata import version
from pathlib import Path

import measuring

HERE = Path(__file__).resolve().parent
TOOLS = {
    "notebook": ["notebook.py"],
    "keras": ["keras_distiller.py"],
    "torch": ["torch_loop.py"],
    "torch, bfloat16": ["torch_loop.py", "--bfloat16"],
    "torch, compiled": ["torch_loop.py", "--compile"],
}
STEPS = {"112": 6, "32": 48, "mlp": 384}  # a measurement's training steps, of 128 images
BATCH = 128
BF16 = {"avx512_bf16", "amx_bf16"}  # instructions that mixed_bfloat16 is meant for
EPOCH = 391  # steps of an epoch over the notebook's 50,000 images
CASES = {
    "112": ("densenet", 112, ["data.image_size=112"]),
    "32": ("densenet", 32, ["data.image_size=32"]),
    "mlp": ("mlp", 28, ["data.image_size=28", "model@teacher.model=mlp", "model@student.model=mlp"]),
}
# what a target asks for: (name, case, measured, tool against, at least)
TARGETS = [
    ("distil at 112×112, seconds to the first step, cache there", "112", "first", "notebook", 6.0),
    ("distil at 112×112, images/s, cached", "112", "distill", "notebook", 2.2),
    ("distil at 112×112, images/s, cached", "112", "distill", "keras", 2.5),
    ("distil at 112×112, images/s, cached", "112", "distill", "torch", 2.0),
    ("student alone at 112×112, images/s", "112", "student", "notebook", 1.15),
    ("student alone at 112×112, images/s", "112", "student", "torch", 1.1),
    (
        "10 epochs of distilling at 112×112 incl. filling the cache (from measured steps)",
        "112",
        "epochs",
        "notebook",
        2.0,
    ),
    ("teacher training at 112×112 in mixed_bfloat16, images/s", "112", "teacher, bf16", "notebook", 1.8),
    ("nine jobs of 2 epochs at 32×32 (from measured jobs and steps)", "32", "sweep", "notebook", 6.0),
    ("distil at 112×112, images/s, cached", "112", "distill", "notebook", 3.0),
    ("student alone at 112×112, images/s", "112", "student", "torch, bfloat16", 1.0),
    ("mlp, batch 128, AdaBelief, images/s", "mlp", "student", "keras", 1.0),
    ("mlp, batch 128, Adam, images/s", "mlp", "student, Adam", "keras", 1.25),
]


def run(command: list[str], folder: Path) -> dict:
    """Run a process; returns its wall seconds, peak memory in bytes, and what it printed last as JSON, if that is."""
    spawned = time.time()
    environment = os.environ | {measuring.SPAWNED: str(spawned)}
    with (folder / "said").open("w+") as said:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=said, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.time() - spawned
        said.seek(0)
        lines = said.read().splitlines()
    if process.returncode:
        sys.exit("\n".join([*lines[-20:], f"failed: {' '.join(command)}"]))
    measured = {"seconds": seconds, "peak_memory": usage.ru_maxrss * 1024, "spawned": spawned}
    printed = [line for line in lines if line.startswith("{")]
    return measured | (json.loads(printed[-1]) if printed else {})


def kdrun(folder: Path, case: str, *overrides: str, steps: int | None = None) -> dict:
    """Run a kdrun command in a case's setting."""
    steps = STEPS[case] if steps is None else steps
    setting = [f"data.train_size={steps * BATCH}", f"data.validation_size={BATCH}", f"data.test_size={BATCH}"]
    flags = [o for o in overrides if o.startswith("-")]  # argparse takes the rest only in one piece
    rest = [o for o in overrides if o not in flags]
    return run([sys.executable, "-m", "kdrun", *flags, *CASES[case][2], *setting, "epochs=1", *rest], folder)


def trained(folder: Path, case: str, stage: str, *overrides: str) -> dict:
    """A kdrun training run's measurements."""
    outputs = Path(tempfile.mkdtemp(dir=folder))
    measured = kdrun(folder, case, f"stage={stage}", f"outputs={outputs}", *overrides)
    (record,) = [json.loads(path.read_text()) for path in outputs.glob(f"{stage}/*/run.json")]
    results = record["results"]
    measured["seconds_to_first_step"] = datetime.fromisoformat(results["first_step"]).timestamp() - measured["spawned"]
    return measured | {"images_per_second": results["images_per_second"]}


def prepared(folder: Path, case: str) -> list[str]:
    """Overrides for a teacher that is there, and a cache of its logits."""
    kdrun(folder, case, "stage=teacher", f"outputs={folder / 'teacher'}")
    (teacher,) = (folder / "teacher").glob("teacher/*")
    overrides = [f"teacher.run={teacher}", f"cache_dir={folder / 'cache'}"]
    kdrun(folder, case, "stage=cache", f"outputs={folder / 'fill'}", *overrides)
    return overrides


def filling(folder: Path, case: str, overrides: list[str]) -> dict:
    """Seconds to fill the cache, apart from each image's own, and images/s, from two sizes of training set."""
    seconds = {}
    for steps in (1, 1 + STEPS[case]):
        cache = Path(tempfile.mkdtemp(dir=folder))
        seconds[steps] = kdrun(
            folder, case, "stage=cache", f"outputs={cache}", *overrides[:1], f"cache_dir={cache}", steps=steps
        )["seconds"]
    (few, less), (many, more) = seconds.items()
    rate = (many - few) * BATCH / (more - less)
    return {"images_per_second": rate, "seconds": less - (few + 2) * BATCH / rate}


def sweep(folder: Path, case: str, overrides: list[str]) -> dict:
    """A sweep of nine with few steps an epoch: whole seconds, and the seconds from one job's last step to a first."""
    outputs = Path(tempfile.mkdtemp(dir=folder))
    values = ["temperature=2,5,10", "alpha=0.1,0.5,0.9", "epochs=2"]
    command = ["-m", "stage=distill", f"outputs={outputs}", *overrides[:1], f"cache_dir={outputs}", *values]
    measured = kdrun(folder, case, *command, steps=STEPS[case] // 3)
    jobs = sorted(
        (json.loads(path.read_text())["results"] for path in outputs.glob("sweeps/*/*/run.json")),
        key=lambda job: job["first_step"],
    )
    last = [datetime.fromisoformat(job["last_step"]) for job in jobs]
    first = [datetime.fromisoformat(job["first_step"]) for job in jobs]
    gaps = [(after - before).total_seconds() for before, after in zip(last, first[1:], strict=False)]
    return measured | {"steps": sum(job["steps"] for job in jobs), "between_jobs": statistics.median(gaps)}


def beside(folder: Path, case: str) -> dict:
    """Images/s of students alone, two jobs beside each other in workers of one thread: the sum of both."""
    outputs = Path(tempfile.mkdtemp(dir=folder))
    command = ["-m", "stage=student", f"outputs={outputs}", "seed=1,2", "workers=2", "measure_latency=false"]
    measured = kdrun(folder, case, *command)
    jobs = [json.loads(path.read_text())["results"] for path in outputs.glob("sweeps/*/*/run.json")]
    return measured | {"images_per_second": sum(job["images_per_second"] for job in jobs)}


def measure(case: str, phases: list[str], rounds: int, folder: Path) -> list[dict]:
    """A case's measurements, in the order in which they were made."""
    rows = []

    def note(tool: str, what: str, measured: dict) -> None:
        measured.pop("spawned", None)
        rows.append({"case": case, "tool": tool, "what": what, **measured})
        print(f"{datetime.now():%H:%M:%S} {json.dumps(rows[-1])}", file=sys.stderr, flush=True)

    net, image_size, _ = CASES[case]
    teacher = prepared(folder, case)
    size = ["--image-size", str(image_size), "--steps", str(STEPS[case])]
    for _ in range(rounds):
        for phase in phases:
            for tool, (script, *flags) in TOOLS.items():
                if "torch" not in tool or importlib.util.find_spec("torch"):
                    note(tool, phase, run([sys.executable, str(HERE / script), phase, net, *size, *flags], folder))
            if phase != "distill":
                note("kdrun", phase, trained(folder, case, phase))
            if phase == "student":
                note("kdrun", "student, Adam", trained(folder, case, phase, "optimizer=adam"))
                note("kdrun, two jobs", phase, beside(folder, case))
        if case == "112" and BF16 & instructions() and "teacher" in phases:
            note("kdrun", "teacher, bf16", trained(folder, case, "teacher", "precision=mixed_bfloat16"))
        note("kdrun", "distill, live", trained(folder, case, "distill", *teacher, "teacher.cache=off"))
        note("kdrun", "distill", trained(folder, case, "distill", *teacher, "teacher.cache=on"))
        note("kdrun", "filling", filling(folder, case, teacher))
        note("kdrun", "sweep", sweep(folder, case, teacher))
        note("kdrun", "--help", run([sys.executable, "-m", "kdrun", "--help"], folder))
    return rows


class Medians:
    """Medians over the rounds of measurements."""

    def __init__(self, rows: list[dict]):
        self._rows = rows

    def __call__(self, case: str, tool: str, what: str, figure: str) -> float:
        """NaN where it was not measured."""
        found = [row[figure] for row in self._rows if (row["case"], row["tool"], row["what"]) == (case, tool, what)]
        return statistics.median(found) if found else float("nan")

    def seconds(self, case: str, tool: str, measured: str) -> float:
        """What a target compares, as seconds (an image's, where it is a rate)."""
        if measured in ("student", "distill"):
            return 1 / self(case, tool, measured, "images_per_second")
        if measured == "student, Adam":
            return 1 / self(case, tool, measured if tool == "kdrun" else "student", "images_per_second")
        if measured == "teacher, bf16":
            return 1 / self(case, tool, measured if tool == "kdrun" else "teacher", "images_per_second")
        if measured == "first":
            return self(case, tool, "distill", "seconds_to_first_step")
        images = EPOCH * BATCH
        start, rate = (self(case, tool, "distill", f) for f in ("seconds_to_first_step", "images_per_second"))
        if measured == "epochs":
            seconds = start + 10 * images / rate
            if tool == "kdrun":  # the cache holds validation and test images, too
                seconds += self(case, tool, "filling", "seconds") + 70_000 / self(
                    case, tool, "filling", "images_per_second"
                )
            return seconds
        if tool == "kdrun":
            left = 9 * 2 * images - self(case, tool, "sweep", "steps") * BATCH
            return self(case, tool, "sweep", "seconds") + left / rate
        return 9 * (start + 2 * images / rate)


def tables(rows: list[dict]) -> str:
    """The figures in Markdown."""
    medians, lines = Medians(rows), []
    cases = [case for case in CASES if case in {row["case"] for row in rows}]
    for case in cases:
        net, image_size, _ = CASES[case]
        lines += [f"\n{net}, {image_size}×{image_size}, batch {BATCH}, float32\n"]
        lines += ["| | teacher, images/s | student alone | distil | first step of distilling, s | peak memory, GB |"]
        lines += ["|---|---|---|---|---|---|"]
        for tool, phase in (
            ("notebook", "distill"),
            ("keras", "distill"),
            ("torch", "distill"),
            ("torch, bfloat16", "distill"),
            ("torch, compiled", "distill"),
            ("kdrun, two jobs", "distill"),
            ("kdrun", "distill, live"),
            ("kdrun", "distill"),
        ):
            rates = [medians(case, tool, what, "images_per_second") for what in ("teacher", "student", phase)]
            name = {"distill, live": "kdrun, teacher live"}.get(phase, "kdrun, cached" if tool == "kdrun" else tool)
            cells = [f"{rate:,.0f}" if rate == rate else "" for rate in rates]
            cells += [f"{medians(case, tool, phase, 'seconds_to_first_step'):.1f}"]
            cells += [f"{medians(case, tool, phase, 'peak_memory') / 1e9:.2f}"]
            lines += [f"| {name} | {' | '.join(cells)} |"]
        fill = [medians(case, "kdrun", "filling", figure) for figure in ("images_per_second", "seconds")]
        nine = [medians(case, "kdrun", "sweep", figure) for figure in ("seconds", "steps", "between_jobs")]
        lines += [
            f"\nFilling the cache: {fill[0]:,.0f} images/s after {fill[1]:.1f} s. "
            f"Nine jobs of {nine[1] / 9:.0f} steps: {nine[0]:.1f} s, "
            f"{nine[2]:.2f} s from one job's last step to the next one's first."
        ]
    lines += ["\n| target | against | at least | measured | |", "|---|---|---|---|---|"]
    for name, case, measured, against, least in TARGETS:
        if case in cases:
            theirs, ours = (medians.seconds(case, tool, measured) for tool in (against, "kdrun"))
            ratio = theirs / ours  # NaN where either was not measured
            verdict = "reached" if ratio >= least else "missed" if ratio < least else "not measured"
            lines += [f"| {name} | {against} | {least:g} times | {ratio:.2f} times | {verdict} |"]
    shown = statistics.median(row["seconds"] for row in rows if row["what"] == "--help")
    lines += [f"\n`kdrun --help`: {shown:.2f} s."]
    return "\n".join(lines)


def instructions() -> set[str]:
    """The processor's instructions that matter here; on Linux alone."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    flags = next((line for line in info.splitlines() if line.startswith("flags")), "").split()
    return {"avx2", "avx512f", "avx512_vnni", *BF16} & set(flags)


def machine() -> dict:
    """What the figures depend on."""
    packages = ["tensorflow", "tf-keras", "keras", *(["torch"] if importlib.util.find_spec("torch") else [])]
    return {
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "instructions": sorted(instructions()),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--phases", nargs="+", choices=measuring.PHASES, default=list(measuring.PHASES))
    parser.add_argument("--add", action="store_true", help="keep the rounds of these cases that were measured before")
    parser.add_argument("--output", type=Path, default=HERE / "results.json")
    asked = parser.parse_args()
    about, rows = machine(), []
    if asked.output.exists():
        before = json.loads(asked.output.read_text())
        rows = before["measured"] if before["about"] == about else []
    for case in asked.cases:
        with tempfile.TemporaryDirectory() as folder:
            measured = measure(case, asked.phases, asked.rounds, Path(folder))
        rows = [row for row in rows if asked.add or row["case"] != case] + measured
        asked.output.write_text(json.dumps({"about": about, "measured": rows}, indent=1) + "\n")
    print(json.dumps(about))
    print(tables(rows))


if __name__ == "__main__":
    main()

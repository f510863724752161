"""How long kdrun takes to answer when nothing has to be computed: python benchmarks/startup.py

Prints CPU seconds (user + system) and wall seconds of whole processes, medians of several runs. Run it on an idle
machine.
"""

import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time

COMMANDS = (["--help"], ["--cfg", "job"], ["alpha=1.2"], ["alfa=0.5"], ["batch_size=100000"], ["data.image_size=28"])
COMMANDS += (["--complete", "zsh", "experiment=pa"], ["--complete", "zsh", "teacher.a"])
RUNS = 7


def measure(arguments: list[str], folder: str) -> tuple[float, float]:
    """CPU and wall seconds of one kdrun process."""
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, "-m", "kdrun", *arguments], cwd=folder, capture_output=True)
    wall, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, wall


def main() -> None:
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}, median of {RUNS}")
    print(f"{'kdrun ...':24} {'CPU s':>8} {'wall s':>8}")
    with tempfile.TemporaryDirectory() as folder:
        for arguments in COMMANDS:
            measure(arguments, folder)  # the first run writes byte code and warms the disk's cache
            runs = [measure(arguments, folder) for _ in range(RUNS)]
            cpu, wall = (statistics.median(values) for values in zip(*runs, strict=True))
            print(f"{' '.join(arguments):24} {cpu:8.2f} {wall:8.2f}")


if __name__ == "__main__":
    main()

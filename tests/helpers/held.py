"""What a run directory holds, for comparing runs bit by bit; its table, for LaTeX."""

import subprocess
from pathlib import Path


def bits(run_dir: Path) -> dict[str, bytes]:
    """Everything that a run has come to: predictions, metrics, best and last weights."""
    held = {name: (run_dir / name).read_bytes() for name in ("predictions/test.npz", "metrics.jsonl")}
    for which in ("best", "last"):
        found = arrays(run_dir / f"checkpoints/{which}.weights.h5")
        held |= {f"{which} {name}": content for name, content in found.items()}
    assert len(held) > 4
    return held


def arrays(path: Path) -> dict[str, bytes]:
    """All arrays of a file of weights, by name."""
    import h5py

    with h5py.File(path) as file:
        datasets = []
        file.visititems(lambda _, item: datasets.append(item) if hasattr(item, "dtype") else None)
        assert datasets
        return {item.name: item[()].tobytes() for item in datasets}


def compiled(table: str, folder: Path) -> None:
    """Compile a table in a minimal document with pdflatex; any error in it is one here."""
    begin = "\\documentclass{article}\n\\usepackage{booktabs}\n\\begin{document}\n"
    (folder / "table.tex").write_text(f"{begin}{table}\n\\end{{document}}\n")
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "-no-shell-escape", "table.tex"]
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", timeout=120)
    assert ended.returncode == 0 and (folder / "table.pdf").stat().st_size > 1000, ended.stdout[-2000:]

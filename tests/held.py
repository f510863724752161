"""What a run directory holds, for comparing runs bit by bit."""

from pathlib import Path


def bits(run_dir: Path) -> dict[str, bytes]:
    """Everything that a run has come to: predictions, metrics, best and last weights."""
    import h5py

    held = {name: (run_dir / name).read_bytes() for name in ("predictions/test.npz", "metrics.jsonl")}
    for name in ("best", "last"):
        with h5py.File(run_dir / f"checkpoints/{name}.weights.h5") as file:
            datasets = []
            file.visititems(lambda _, item, into=datasets: into.append(item) if hasattr(item, "dtype") else None)
            held |= {f"{name} {item.name}": item[()].tobytes() for item in datasets}
    assert len(held) > 4
    return held

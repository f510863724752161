"""What must stay as it is while the house is rebuilt: composed configs, identities, the bits of small runs.

`python tests/test_golden.py` writes golden/ anew: only where a raised format, or a key that is new, says why.
"""

import hashlib
import json
import platform
import sys
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import identities
import numpy as np
import pytest
from held import arrays
from identities import CHAINS, TRAINING

from kdrun.cli import offers
from kdrun.cli.main import main
from kdrun.config.schema import flatten
from kdrun.runs.identity import of_chain
from kdrun.storage.manifest import digest

GOLDEN = Path(__file__).with_name("golden")
_SINCE = ("cifar100/", "paper/distilled_views")  # presets that were not there then
PRESETS = ["", *(name for name in offers.names("experiment") if not name.startswith(_SINCE))]
# keys that came since, which no result of before depends on
_BEGINS = ("initial_weights", "freeze", "new_learning_rate")
_MIXING = ("mixup", "cutmix", "label_smoothing")
_AUGMENT = ("resized_crop", "colour", "cutout", "views", "seed")
NEW: tuple[str, ...] = ("data.on_device", "data.split", "data.split_seed", "data.transfer", "data.transfer_store")
NEW += ("print", *(f"export.{key}" for key in ("format", "quantize", "output", "calibration_images", "most_loss")))
NEW += tuple(f"{role}.{key}" for role in ("teacher", "student") for key in ("image_size", "normalise", *_BEGINS))
NEW += ("data.normalise", "distill.cutmix", "distill.label_smoothing")
NEW += tuple(f"{role}.{key}" for role in ("teacher", "student") for key in _MIXING)
NEW += tuple(f"teacher.{key}" for key in ("file", "input", "classes", "weak", "time_limit"))
NEW += ("student.quantize", "devices", "sync_batch_norm", "task", "cluster_timeout")
_OPTIMIZER = ("decay", "coupled", "clip_norm", "ema", "step_epochs", "step_factor")
NEW += tuple(f"{role}optimizer.{key}" for role in ("", "teacher.", "student.") for key in _OPTIMIZER)
NEW += tuple(f"{part}.augment.{key}" for part in ("data", "teacher", "student") for key in _AUGMENT)

TINY = ["data.image_size=8", "data.train_size=96", "data.validation_size=64", "data.test_size=64", "batch_size=16"]
TINY += ["epochs=2", "optimizer=adam", "tensorboard.histograms=false"]
NETS = ["model@teacher.model=mlp", "teacher.model.hidden_units=[16]", "model@student.model=mlp"]
NETS += ["student.model.hidden_units=[8]", "student.model.hidden_dropout=0.2"]
MAPS = ["model@teacher.model=convnet", "teacher.model.filters=[4,6]", "model@student.model=convnet"]
MAPS += ["student.model.filters=[2,3]"]
RUNS = {
    "teacher": ["stage=teacher", *NETS],
    "student": ["stage=student", *NETS, "data.augment.jitter=1"],
    "distil, kept logits": ["stage=distill", *NETS],
    "distil, live features": ["stage=distill", *MAPS, "objective=[kd,fitnet]", "optimizer=adabelief"],
    "peers": ["stage=mutual", *MAPS, "distill.peers=2"],
    "a sweep's second job": [
        "-m",
        "stage=distill",
        *NETS,
        "temperature=2,4",
        "seed=3",
        "teacher.seed=42",
        "sweep=golden",
    ],
}


@lru_cache
def composed(preset: str, *others: str) -> dict:
    """A preset's config as plain values."""
    return identities.composed(*[f"experiment={preset}"] * bool(preset), *others)


def configs() -> dict:
    """Every preset's config; for what differs from the one without any preset."""
    plainest = dict(flatten(composed("")))
    return {preset: _differing(dict(flatten(composed(preset))), plainest if preset else {}) for preset in PRESETS}


def _differing(values: dict, plainest: dict) -> dict:
    found = {key: value for key, value in values.items() if key not in plainest or plainest[key] != value}
    gone = {key: "(not a key of it)" for key in plainest.keys() - values.keys()}
    return dict(sorted({**found, **gone}.items()))


def all_identities() -> dict:
    """The sha256 of every preset's identity at every stage, code left out."""
    found = {}
    for preset in PRESETS:
        config = composed(preset)
        specialists = composed(preset, "stage=specialists") | {"classes": [1, 2]}
        of = {stage: identities.of(config, stage, "data", ["weights"]) for stage in TRAINING}
        of["specialist"] = identities.of({**specialists, "stage": "specialist"}, "specialist", "data", ["weights"])
        for stage in CHAINS:
            chain = of_chain(composed(preset, f"stage={stage}"), "data")
            of[stage] = {**chain, "stages": [{**each, "code": None} for each in chain["stages"]]}
        for stage, depends in of.items():
            found[f"{preset or 'no preset'}, {stage}"] = digest({**depends, "code": None})
    return found


def machine() -> str:
    """What decides on bits: the processor's instructions and TensorFlow."""
    flags = [
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith(("flags", "model name"))
    ]
    named = hashlib.sha256("\n".join(sorted(set(flags))).encode()).hexdigest()[:12]
    return f"{platform.machine()} {named}, TensorFlow {version('tensorflow')}, NumPy {version('numpy')}"


def bits(folder: Path) -> dict:
    """Six small runs, one after the other in one process: sums of their weights and predictions, and some logits."""
    found = {}
    for name, overrides in RUNS.items():
        if overrides[0] == "stage=distill" and "live" in name:
            assert main(["stage=teacher", *TINY, *MAPS, "optimizer=adabelief", f"outputs={folder}"]) == 0
        assert main([*overrides, *TINY[: -2 if "live" in name else None], f"outputs={folder}"]) == 0, name
        newest = max(folder.rglob("run.json"), key=lambda path: json.loads(path.read_text())["started"]).parent
        with np.load(newest / "predictions/test.npz") as predictions:
            held = {key: array.tobytes() for key, array in predictions.items()}
            logits = predictions["logits"][:2].astype(float).round(4).tolist()
        for which in ("best", "last"):
            held |= {
                f"{which}{key}": value for key, value in arrays(newest / f"checkpoints/{which}.weights.h5").items()
            }
        sums = {key: hashlib.sha256(value).hexdigest() for key, value in held.items()}
        found[name] = {"sha256": digest(sums), "logits": logits}
    return found


def golden(name: str) -> dict:
    return json.loads((GOLDEN / f"{name}.json").read_text())


@pytest.mark.parametrize("preset", PRESETS)
def test_a_presets_config_is_what_it_was(preset):
    before, now = golden("configs"), dict(flatten(composed(preset)))
    expected = {**before[""], **before[preset]}
    gone = {key for key, value in expected.items() if value == "(not a key of it)"}
    assert {key: value for key, value in now.items() if not key.startswith(NEW) and key != "cluster"} == {
        key: value for key, value in expected.items() if key not in gone
    }


def test_an_identity_is_what_it_was():
    assert all_identities() == golden("identities")


def test_a_runs_bits_are_what_they_were(tmp_path):
    before, now = golden("bits"), bits(tmp_path)
    assert now.keys() == before["runs"].keys()
    for name, held in now.items():
        expected = before["runs"][name]
        np.testing.assert_allclose(held["logits"], expected["logits"], rtol=1e-2, atol=1e-2, err_msg=name)
        if machine() == before["machine"]:
            assert held["sha256"] == expected["sha256"], name


if __name__ == "__main__":
    import tempfile

    GOLDEN.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        written = {"configs": configs(), "identities": all_identities()}
        if "--bits" in sys.argv:
            written["bits"] = {"machine": machine(), "runs": bits(Path(scratch))}
    for name, values in written.items():
        (GOLDEN / f"{name}.json").write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n")

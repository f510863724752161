"""A finished run's network as files for other runtimes: made, held against the run, measured, with a model card."""

import csv
import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from kdrun import __version__
from kdrun.comparison import texts
from kdrun.comparison.kinds import TEACHER
from kdrun.config import rules
from kdrun.data import datasets, inputs, preparation
from kdrun.data.datasets import Dataset
from kdrun.errors import InputError, KdrunError
from kdrun.export import asking, card, facts, formats
from kdrun.export.formats import Target
from kdrun.registry import register
from kdrun.runs import code
from kdrun.runs import record as runs
from kdrun.runs.recording import recording
from kdrun.runtime.child import Child, Lost
from kdrun.stages import checks
from kdrun.storage import files
from kdrun.teachers import checkpoint, predictor

if TYPE_CHECKING:
    import pandas as pd

    from kdrun.export.parity import Parity

log = logging.getLogger(__name__)

CARD, LABELS, CHANGED = "README.md", "labels.txt", "changed.csv"
_CONVERSION = "kdrun.export.conversion_process"
# sets have the same order in each such process, so that what is named by it is the same each time
_ENVIRONMENT = {"PYTHONHASHSEED": "0", "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
_MADE_BY = ("tensorflow", "numpy")  # beside what the formats need
_CALIBRATION = 7  # of the random numbers that draw images


class _Given(NamedTuple):
    """The run that is exported, its record and data, its network's logits of the test images, and the export keys."""

    run: Path
    record: Mapping[str, Any]
    dataset: Dataset
    logits: np.ndarray
    export: Mapping[str, Any]
    plugins: Sequence[str]


def check(config: Mapping, overrides: Sequence[str]) -> None:
    """Raises InputError for a run whose network cannot be exported, or not so here."""
    if not config["export"]["format"]:
        raise InputError("export.format=[] is nothing. Give some of saved_model, litert, onnx: export.format=[litert].")
    formats.targets(config["export"]["format"], config["export"]["quantize"])
    checks.own_data_alone(config["data"], "export", "Leave it out.", overrides)
    run = chosen(config["run"], config["outputs"])
    checks.taken(str(run))
    record = predictor.check(run)
    checks.sizes(record["config"]["data"])
    datasets.load(record["config"]["data"])


def of(config: Mapping) -> dict:
    """The identity of the configured export."""
    return identity(config, chosen(config["run"], config["outputs"]))


def identity(config: Mapping, run: Path) -> dict:
    """Everything that the export of a run depends on."""
    record, packages = runs.read(run), {*_MADE_BY}
    for name in config["export"]["format"]:
        packages |= {*formats.FORMATS[name].run_by, *formats.FORMATS[name].made_by}
    return {
        "format": facts.FORMAT,
        "stage": "export",
        "run": record.get("fingerprint"),
        "weights": record["files"][checkpoint.WEIGHTS],
        "export": dict(config["export"]),
        "packages": {name: version(name) for name in sorted(packages)},
        "code": {"export": code.of_module(Path(facts.__file__).with_name("conversion_process.py"))},
    }


@register("stage", "export", check=check, identity=of, exports=True, exports_network=True)
def export(config: Mapping, run_dir: Path, *, run: rules.Path) -> dict:
    """Export the best weights of `run`; writes a file or folder for each format and quantisation, labels.txt,
    README.md, the model card, and changed.csv, the test images whose class a file sees otherwise.

    Each is asked for the whole test split in its own runtime before it gets its name. Raises KdrunError where one
    cannot be made, or is not what the network was: by more than rounding, or, quantised, by more than
    export.most_loss.
    """
    from kdrun.evaluation.inference import compiled_inference, logits
    from kdrun.reports import tables
    from kdrun.runtime import precision

    network_of, settings = chosen(run, config["outputs"]), config["export"]
    if str(network_of) != str(Path(run)):
        log.info("export: the best student of %s on validation is %s", run, network_of)
    theirs = predictor.check(network_of)
    with recording(run_dir, config, identity(config, network_of), exported=str(network_of)) as record:
        dataset = datasets.load(theirs["config"]["data"])
        precision.prepare_machine()
        images = dataset.test.images
        network, shown = checkpoint.load(network_of, "float32"), preparation.of_run(theirs)
        infer = compiled_inference(network, images.shape[1:], theirs["config"]["evaluation_batch_size"], shown)
        given = _Given(network_of, theirs, dataset, logits(infer, images), settings, config["plugins"])
        files.write_bytes(run_dir / LABELS, facts.labels(predictor.class_names(theirs)))
        exported, changed = [], []
        with _conversion(given) as ask:
            for target in formats.targets(settings["format"], settings["quantize"]):
                found, moved = _made(target, given, ask, run_dir)
                exported.append(found)
                changed.append((target.name, moved))
        _write_changed(changed, theirs, dataset, run_dir)
        of_files = _facts(given, "none", (None, None, images.shape[3]))
        text = card.written({**theirs, "host": record["host"]}, of_files, images.shape[1:], exported, str(network_of))
        files.write_bytes(run_dir / CARD, text.encode(errors="replace"))
        record["files"] = dict(_sums([LABELS, CARD, CHANGED, *(each["file"] for each in exported)], run_dir))
        record["results"] = {"exports": exported, "model": theirs["model"]["name"], "run": str(network_of)}
        tables.exports(exported)
        log.info("export: %s -> %s", network_of, run_dir)
        return record["results"]


def chosen(given: str, outputs: str) -> Path:
    """The run that is meant: itself, or of a comparison, a pipeline or a sweep the best student on validation. Raises
    InputError where there is none."""
    named = Path(outputs) / "sweeps" / given
    place = Path(given) if Path(given).exists() or not named.is_dir() else named
    record = runs.read(place) if (place / "run.json").exists() else None
    if record is not None and (stage := runs.stage_of(record)) is not None and stage.leaves_network:
        return place
    from kdrun.comparison import gathering  # pandas: a second, for who asks

    places = record["config"]["runs"] if record is not None and "runs" in record["config"] else [place]
    table = gathering.frame(*([places] if isinstance(places, str) else places))
    if "kind" not in table or (students := table[table["kind"].notna() & (table["kind"] != TEACHER)]).empty:
        raise InputError(f"run: {given} is no run with a network, and holds no finished student. Give a run directory.")
    return Path(best_on_validation(students))


def best_on_validation(table: "pd.DataFrame") -> str:
    """Of a comparison's runs the one with the highest validation accuracy; the lower cross-entropy decides between
    equals."""
    order = ["validation_accuracy", "validation_cross_entropy", "run"]
    return str(table.sort_values(order, ascending=[False, True, True]).iloc[0]["run"])


def _facts(given: _Given, quantize: str, shape: Sequence[int | None]) -> dict[str, Any]:
    """What a file says of itself, plain values; see export.facts."""
    record = given.record
    return {
        "format": facts.FORMAT,
        "kdrun": __version__,
        "run": record.get("fingerprint"),
        "dataset_sha256": record.get("dataset_sha256"),
        "class_names": predictor.class_names(record),
        "input": list(shape),
        "output": given.export["output"],
        "quantize": quantize,
        "decoding": inputs.decoding_of(record)._asdict(),
        "preprocessing": {
            "image_size": preparation.of_run(record).image_size,
            **preparation.recorded(preparation.of_run(record)),
        },
    }


@contextmanager
def _conversion(given: _Given) -> Iterator:
    """While inside, a process that has loaded the run's network, as a function of what it is told."""
    with Child(_CONVERSION, _ENVIRONMENT) as process:

        def ask(told: Mapping[str, Any], payload: bytes = b"") -> tuple[dict, bytes]:
            try:
                return process.ask(told, payload)
            except Lost as error:
                raise KdrunError(f"export: the process that converts the network {error}.") from error

        told = {"run": str(given.run.resolve()), "plugins": list(given.plugins), "output": given.export["output"]}
        ask({**told, "shape": given.dataset.test.images.shape[1:]})
        yield ask


def _made(target: Target, given: _Given, ask, run_dir: Path) -> tuple[dict[str, Any], "Parity"]:
    """One file, which has its name once it has been held against the run. Raises KdrunError where it does not hold."""
    path = run_dir / target.name
    temporary = files.temporary_name(path)  # ends as the name does, which says its format
    log.info("export: %s: converting", target.name)
    try:
        has_floats = _converted(target, given, ask, temporary)
        held, latency, peak = _asked(target, given, temporary)
        _check(target, given, held.said)
        if path.is_dir():  # of an export that was killed, and goes on
            shutil.rmtree(path)
        temporary.replace(path)
        files.flush(run_dir)
    except KdrunError as error:
        raise files.no_room(error, run_dir) or error from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        temporary.unlink(missing_ok=True)
    if has_floats:
        log.warning("export: %s: some operations have no int8 kernel and stay floats", target.name)
    found = {"file": target.name, "format": target.format, "quantize": target.quantize, "bytes": _size(path)}
    found |= {"has_floats": has_floats, "parity": held.said, "latency": latency, "peak_memory": peak}
    return found, held


def _converted(target: Target, given: _Given, ask, path: Path) -> bool:
    """Have a file written with its facts; whether operations that were to be in int8 stay floats."""
    dataset, told = given.dataset, {"format": target.format, "quantize": target.quantize, "path": str(path.resolve())}
    drawn = _calibration(given) if target.quantize == "int8" else dataset.test.images[:0]
    answer, content = ask({**told, "calibration": drawn.shape}, np.ascontiguousarray(drawn).tobytes())
    shape = dataset.test.images.shape[1:]
    if target.format == "saved_model":
        facts.attach_to_folder(path, _facts(given, target.quantize, (None, None, shape[2])))
    else:
        files.write_bytes(path, facts.attached(target.format, content, _facts(given, target.quantize, shape)))
    facts.read(path)
    return bool(answer.get("has_floats"))


def _calibration(given: _Given) -> np.ndarray:
    """Images of validation, drawn by the run's seed, uint8 [n, height, width, channels], in their order."""
    images = given.dataset.validation.images
    count = min(len(images), given.export["calibration_images"])
    places = np.random.default_rng([given.record["seed"], 0, _CALIBRATION]).choice(len(images), count, replace=False)
    return np.asarray(images[np.sort(places)])


def _asked(target: Target, given: _Given, path: Path) -> tuple["Parity", dict[str, Any], int | None]:
    """What a file says of the test split, held against the run; how long it takes for one image with one thread and
    with all; and the most memory, in bytes, of a process that answers for one image at a time."""
    from kdrun.export import parity  # and with it scipy, for who exports

    test, image = given.dataset.test, np.asarray(given.dataset.test.images[0])
    with asking.asked(path, target.quantize, 1, "export") as runtime:
        one = runtime.latency(image)
    with asking.asked(path, target.quantize, None, "export") as runtime:
        all_ = runtime.latency(image)
        found = asking.of_all(runtime.outputs, test.images, f"asking {target.name}")
    if not np.isfinite(found).all():
        raise KdrunError(
            f"export: {target.name}: what it says of some test images is not finite. Nothing is kept of it."
        )
    kept = ("median", "p95")
    latency = {name: {key: each[key] for key in kept} for name, each in (("one_thread", one), ("all_threads", all_))}
    held = parity.held(given.logits, found, test.labels, given.export["output"])
    return held, latency, one["peak_memory"]


def _check(target: Target, given: _Given, said: Mapping[str, Any]) -> None:
    """Raises KdrunError for a file that is not what the network was."""
    from kdrun.export import parity

    most, loss = parity.beyond_rounding(given.logits, target.quantize, dict(said)), given.export["most_loss"]
    if most is not None:
        raise KdrunError(
            f"export: {target.name}: its {said['output']} differ from the run's by up to "
            f"{said['largest_difference']:.2g}, and rounding explains {most:.2g}; {said['lost']} of {said['count']:,} "
            "test images are lost. The converter has changed the network. It is not kept; another format may do."
        )
    lost = -100 * said["change"]["gain"]
    if loss is not None and target.quantize not in parity.ROUNDING and lost > loss:
        low, high = -100 * said["change"]["high"], -100 * said["change"]["low"]
        raise KdrunError(
            f"export: {target.name} loses {lost:.2f} points of test accuracy (95 % {low:.2f} to {high:.2f}), more than "
            f"export.most_loss={loss:g}. It is not kept. Train for it (student.quantize=int8), or take "
            "export.quantize=[dynamic] or [float16]."
        )


def _size(path: Path) -> int:
    """Bytes of a file, or of all that is in a folder."""
    return sum(each.stat().st_size for each in (path, *path.rglob("*")) if each.is_file())


def _sums(names: Sequence[str], folder: Path) -> Iterator[tuple[str, str]]:
    """The sha256 of files, and of all those in folders."""
    for path in (folder / name for name in names):
        for each in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if each.is_file():
                yield str(each.relative_to(folder)), files.sha256(each)


def _write_changed(
    changed: Sequence[tuple[str, "Parity"]], record: Mapping[str, Any], dataset: Dataset, run_dir: Path
) -> None:
    """changed.csv: a row for each file and each test image whose class it sees otherwise than the network."""
    names, classes = datasets.whole(record["config"]["data"]).names[1], predictor.class_names(record)
    called = np.asarray(names, object)

    def write(path: str) -> None:
        with open(path, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
            rows = csv.writer(file, lineterminator="\n")
            rows.writerow(["file", "image", "label", "before", "after", "change"])
            for name, held in changed:
                for place, before, after in zip(held.places, held.before, held.after, strict=True):
                    label, image = int(dataset.test.labels[place]), called[place]
                    change = "lost" if before == label else "won" if after == label else ""
                    image = image if isinstance(image, str) else f"image {image}"
                    cells = [name, image, classes[label], classes[before], classes[after]]
                    rows.writerow([*map(texts.csv, cells), change])

    files.write_with(run_dir / CHANGED, write)

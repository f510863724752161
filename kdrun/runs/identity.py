"""Identity of a run: all that its result depends on, as plain values. No TensorFlow in here.

Code is in it: of the net, the objectives, the optimizer and the data source that a run uses. The rest is FORMAT.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from kdrun import registry
from kdrun.config.keys import DATA
from kdrun.config.schema import LATER_OF_STUDENT, LATER_OF_TRAINING, depended_on, depended_on_optimizer, for_role
from kdrun.errors import InputError
from kdrun.runs import code
from kdrun.runtime import cluster, devices
from kdrun.storage import files, manifest

# Raise when the same config would no longer give the same result: then no run from before is reused for it. Such runs
# can still be read, compared, evaluated and teach.
FORMAT = 6
# keys of the config that only distilling depends on
DISTILLING = ("temperature", "temperature_end", "alpha", "alpha_end", "alpha_warmup_epochs", "annealing", "objective")
_ARMS = ["student", "distill"]  # which a pipeline had before it had several seeds
_WHERE = ("path", "on_device", "transfer", "transfer_store")  # keys of data that say where images are, not which
_DATA = Path(__file__).parent.parent / "data"


def of_teacher(config: Mapping, dataset_sha256: str) -> dict:
    """The identity of a teacher, trained on labels."""
    return _of_network(config, "teacher", "teacher", config["teacher"], config["teacher"]["seed"], dataset_sha256)


def of_student(config: Mapping, dataset_sha256: str, transfer_sha256: str | None = None) -> dict:
    """The identity of a student alone; `transfer_sha256` is of the images that only its distilled brothers learn from,
    where there are any: it takes as many steps as they."""
    found = _of_network(config, "student", "student", config["student"], config["seed"], dataset_sha256)
    return found | _of_transfer(transfer_sha256)


def of_distilled(
    config: Mapping, dataset_sha256: str, teacher_weights: Sequence[str] = (), transfer_sha256: str | None = None
) -> dict:
    """The identity of a distilled student; `teacher_weights` are sums of the weights, or of the file of logits, of each
    who teaches, `transfer_sha256` is of the images that only they label."""
    objective, distill = config["objective"], config["distill"]
    found = _of_network(config, "distill", "student", distill, config["seed"], dataset_sha256)
    found["code"] |= _code(("objective", name) for name, keys in objective.items() if isinstance(keys, Mapping))
    found |= {key: config[key] for key in DISTILLING}
    if module := objective.get("module"):
        found["objective"] = {**objective, "module": files.sha256(Path(module))}
        of_file = {f"objective/{name}" for name in objective if not _is_shipped("objective", name)}
        found["code"] = {name: each for name, each in found["code"].items() if name not in of_file}
    found["teachers"] = {key: config["teacher"][key] for key in ("combine", "weights", "shuffle")}
    found["teacher_weights"] = list(teacher_weights)
    if config["teacher"]["file"] is not None:
        found["teacher_file"] = {key: _content(config["teacher"][key]) for key in ("input", "classes")}
    found["teacher_inference_batch_size"] = config["teacher"]["inference_batch_size"]
    found["classifier"] = config["student"]["classifier"]
    return found | {key: distill[key] for key in ("mixup", "peers")} | _of_transfer(transfer_sha256)


def of_specialist(config: Mapping, dataset_sha256: str, generalist_weights: Sequence[str]) -> dict:
    """The identity of a specialist for `classes` of the config, which begins as a generalist."""
    found = _of_network(config, "specialist", "teacher", config["specialist"], config["seed"], dataset_sha256)
    return found | {"classes": config["classes"], "generalist_weights": list(generalist_weights)}


def of_chain(config: Mapping, dataset_sha256: str, transfer_sha256: str | None = None) -> dict:
    """The identity of a stage of several parts: theirs, which teacher is given, how many."""
    parts = [of_teacher(config, dataset_sha256), of_student(config, dataset_sha256, transfer_sha256)]
    return {
        "stage": config["stage"],
        "stages": [*parts, of_distilled(config, dataset_sha256, transfer_sha256=transfer_sha256)],
        "teacher": [config["teacher"][key] for key in ("run", "logits")],
        **({"teacher_files": given} if (given := config["teacher"]["file"]) else {}),
        **{key: config.get(key) for key in ("generations", "run", "clusters", "specialist")},
        **{key: config[key] for key in ("seeds", "teachers", "controls") if config.get(key)},
        **({"arms": config["arms"]} if config.get("arms", _ARMS) != _ARMS else {}),
    }


def of_initial_weights(config: Mapping, role: str) -> dict:
    """What a role's net depends on beside drawn weights: those that it begins with, what is frozen, the learning rate
    of what is new; nothing where there is none of these. Raises InputError where there is no such file."""
    keys = ("initial_weights", "freeze", "new_learning_rate")
    found = {key: config[role][key] for key in keys if config[role].get(key) is not None}
    if given := found.get("initial_weights"):
        found["initial_weights"] = files.sha256(weights_file(f"{role}.initial_weights", given))
    return found


def weights_file(key: str, given: str) -> Path:
    """The file of weights that a run directory or a file's name stands for. Raises InputError where there is none."""
    path = Path(given)
    file = path / "checkpoints" / "best.weights.h5" if path.is_dir() else path
    if not file.is_file():
        what = "a run directory with weights" if path.is_dir() else "there"
        raise InputError(f"{key}: {given} is not {what}. Give a run directory, or a .weights.h5 file.")
    return file


def of_data(data: Mapping) -> dict:
    """The keys of data that a result depends on, beside the dataset's fingerprint: not in which kind of file it is, but
    for a source of the user's own, of which nobody knows what its keys do."""
    own = () if _is_shipped("data", data["name"]) else ("name", *(data.keys() - DATA))
    kept = (*DATA, *own)
    return {key: value for key, value in depended_on(data).items() if key in kept and key not in _WHERE}


def _content(given: Any) -> Any:
    """A value; of a file's name, what it holds."""
    return files.sha256(Path(given)) if isinstance(given, str) and Path(given).is_file() else given


def fingerprint(identity: Mapping) -> str:
    """sha256 of an identity."""
    return manifest.digest(identity)


def _of_network(config: Mapping, stage: str, role: str, training: Mapping, seed: int, dataset_sha256: str) -> dict:
    """What every network's result depends on; `training` has its epochs, patience and batch size."""
    model, optimizer = config[role]["model"], config[role]["optimizer"]
    used = [("model", model["name"]), ("optimizer", optimizer["name"])]
    if not _is_shipped("data", config["data"]["name"]):  # of the others, what they hold says all
        used.append(("data", config["data"]["name"]))
    return {
        "format": FORMAT,
        "stage": stage,
        "model": _of_model(model),
        "seed": seed,
        "epochs": training["epochs"],
        "patience": training["patience"],
        "batch_size": training["batch_size"],
        "evaluation_batch_size": config["evaluation_batch_size"],
        "precision": config["precision"],
        "optimizer": depended_on_optimizer(optimizer),
        **_of_devices(config),
        **of_initial_weights(config, role),
        **{key: training[key] for key in LATER_OF_TRAINING if training.get(key)},
        **{key: config[role][key] for key in LATER_OF_STUDENT if config[role].get(key)},
        "data": of_data(for_role(config, role)["data"]),
        "dataset_sha256": dataset_sha256,
        "code": {**_code(used), "data": code.of_module(_DATA / "datasets.py")},
    }


def _of_devices(config: Mapping) -> dict:
    """How many devices share a batch, on how many machines, and what batch normalisation sees of it, where there are
    several: each number of them rounds otherwise, and drops other units."""
    machines = cluster.size(config)
    count = devices.count(config["devices"]) * machines
    shared = {"machines": machines} if machines > 1 else {}
    return {"devices": count, "sync_batch_norm": config["sync_batch_norm"], **shared} if count > 1 else {}


def _of_transfer(sha256: str | None) -> dict:
    return {"transfer_sha256": sha256} if sha256 else {}


def _of_model(model: Mapping) -> dict:
    """A model's keys, with the sums of the files that they name."""
    named = registry.get("model", model["name"]).files if registry.has("model", model["name"]) else ()
    return {key: files.sha256(Path(value)) if value and key in named else value for key, value in model.items()}


def code_of(kind: str, name: str) -> str | None:
    """The hash of the module, or the sum of the user's own file, that a name stands for; None where it is not known."""
    if not registry.has(kind, name):
        return None
    entry = registry.get(kind, name)
    return code.of_module(entry.file) if entry.is_shipped else files.sha256(entry.file)


def _code(used: Iterable[tuple[str, str]]) -> dict[str, str]:
    return {f"{kind}/{name}": found for kind, name in used if (found := code_of(kind, name))}


def _is_shipped(kind: str, name: str) -> bool:
    return registry.has(kind, name) and registry.get(kind, name).is_shipped

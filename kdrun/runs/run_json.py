"""The form of run.json: every key that kdrun reads again."""

from collections.abc import Iterator, Mapping

from kdrun.storage.forms import amount, count, flag, fraction, moment, number, positive, problem, sha256, whole, word

STATUSES = ("running", "completed", "interrupted", "failed", "diverged")


def status(value) -> bool:
    """What can become of a run."""
    return value in STATUSES


def positions(value) -> bool:
    """A range of a data set's training images: from one to below another, or null for the end."""
    return isinstance(value, list) and len(value) == 2 and count(value[0]) and (value[1] is None or count(value[1]))


def relative_path(value) -> bool:
    """A file below the run directory."""
    parts = value.split("/")
    return "\0" not in value and all(parts) and not {".", ".."} & set(parts)


MEASURED = {
    "accuracy": fraction,
    "errors": count,
    "count": count,
    "cross_entropy": number,
    "teacher_kl?": number,
    "teacher_agreement?": fraction,
    "balanced_accuracy?": fraction,
    "class_accuracy?": [(None, fraction)],
    "epoch?": count,
}
SPLIT = {"best": MEASURED, "last": MEASURED, "confusion?": [[count]]}
RESULTS = {
    "test?": SPLIT,
    "validation?": SPLIT,
    "steps?": count,
    "training_seconds?": amount,
    "seconds_to_first_step?": number,  # a clock may have jumped
    "images_per_second?": amount,
    "images_per_second_of_each_device?": amount,
    "latency?": {str: amount},
}
DATA = {
    "name": word,
    "path?": (None, str),
    "num_classes?": (None, count),
    "image_size?": count,
    "validation_size?": (None, fraction, count),
    "train_size?": (None, count),
    "test_size?": (None, fraction, count),
    "train_on_validation?": flag,
    "train_fraction?": fraction,
    "include_classes?": (None, [count]),
    "exclude_classes?": [count],
    "augment?": {"jitter": count, "flip": flag},
}
NAMED = {"name": word}
MODEL = NAMED  # other keys are each model's own
IDENTITY = {
    "stage?": word,
    "model?": MODEL,
    "seed?": whole,
    "epochs?": count,
    "data?": {**DATA, "name?": word},
    "objective?": {},
    "optimizer?": {**NAMED, "schedule?": word},
    "temperature?": amount,
    "alpha?": fraction,
    "teachers?": (count, word, {"shuffle": word}),  # of several parts: how many are trained
    "grown_from?": [count],
    "format?": count,
    "code?": {str: sha256},
}
CONFIG = {"data": DATA, "stage?": word, "evaluation_batch_size?": count, "outputs?": str}
TEACHER = {"run": str, "weights_sha256": sha256, "identity": (None, IDENTITY), "trained_on?": [positions]}
RECORD = {
    "stage": word,
    "status": status,
    "config": CONFIG,
    "started?": moment,
    "finished?": moment,
    "heartbeat?": str,
    "error?": str,
    "command?": (None, str),
    "fingerprint?": sha256,
    "identity?": IDENTITY,
    "seed?": whole,
    "dataset_sha256?": sha256,
    "num_classes?": count,
    "class_names?": [str],
    "image_shape?": [count],
    "raw_shape?": [count],
    "normalisation?": {"mean": [number], "std": [positive]},
    "precision?": word,
    "model?": MODEL,
    "parameters?": {str: count},
    "multiply_adds?": (None, count),
    "room_needed?": count,
    "teachers?": [TEACHER],
    "adjusted?": TEACHER,
    "initial_weights?": TEACHER,
    "overlap?": count,
    "validation_images?": count,
    "findings?": [str],
    "threads?": positive,
    "devices?": positive,
    "machines?": positive,
    "kdrun?": {"version": str, "code_sha256": sha256},
    "results?": {},
    "files?": {str: sha256},
    "stages?": {str: str},
    "packages?": {str: str},
    "git_commit?": (None, str),
    "host?": {"name?": str, "gpus?": list},
    "pid?": count,
    "resumed?": [str],
}
COMPLETED = {"finished": moment}
NETWORK = {
    "files": dict,
    "num_classes": count,
    "dataset_sha256": sha256,
    "results?": RESULTS,
    "config": {
        "data": {
            "image_size": count,
            "validation_size": (None, fraction, count),
            "train_size": (None, count),
            "test_size": (None, fraction, count),
        }
    },
}
BUILT = {"model": MODEL, "image_shape": [count], "num_classes": count, "seed": whole, "precision": word}
EVALUATED = BUILT | {"config": {"evaluation_batch_size": positive}, "results": {"test": SPLIT}}
ADJUSTED = BUILT | {
    "parameters": {},
    "multiply_adds": (None, count),
    "results": {
        "steps": count,
        "training_seconds": amount,
        "seconds_to_first_step": number,
        "images_per_second": amount,
    },
}
# what a comparison needs of a completed run that trained a network, and what else of one that distilled
TRAINED = {
    "model": MODEL,
    "seed": whole,
    "parameters": {"total": count},
    "identity": {"epochs": count, "data": {}},
    "files": {"checkpoints/best.weights.h5": sha256},
    "results": {
        "test": SPLIT,
        "validation": {"best": MEASURED, "last": {**MEASURED, "epoch": count}},
        "steps": count,
        "training_seconds": amount,
        "images_per_second": amount,
    },
}
DISTILLED = {"identity": {"temperature": positive, "alpha": fraction, "objective": {}, "teachers": {"shuffle": word}}}


def no_network(record: Mapping, room: int) -> str | None:
    """Why a record is of no network whose weights take `room` bytes, in one line; None where it may be."""
    if found := problem(record, BUILT):
        return found
    size = record["config"]["data"].get("image_size")
    if record["image_shape"][:2] != [size, size] or len(record["image_shape"]) != 3 or record["image_shape"][2] > 4:
        return f"image_shape is {record['image_shape'][:4]}, and data.image_size {size}"
    for key, values in record.get("normalisation", {}).items():
        if len(values) != record["image_shape"][2]:
            return f"normalisation has {len(values)} numbers for {key}, and images have {record['image_shape'][2]}"
    # a network of so many classes, or units, has at least that many weights: it need not be made to be known as none
    most = max([record["num_classes"], *_whole_numbers(record["model"])])
    return (
        None if most <= max(room, 2**20) else f"it speaks of {most} classes or units, and its weights take {room} bytes"
    )


def _whole_numbers(value) -> Iterator[int]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from _whole_numbers(each)
    elif type(value) is int:
        yield value


def wrong(record: Mapping, has_network: bool) -> str | None:
    """What is wrong with a record, in one line; None for a good one. `has_network`: where its stage has one."""
    if found := problem(record, RECORD):
        return found
    if record["status"] == "completed":
        form = COMPLETED | (NETWORK if has_network else {})
        if found := problem(record, form) or (_of_other_classes(record) if has_network else None):
            return found
    if outside := [name for name in record.get("files", ()) if not relative_path(name)]:
        return f"files names {outside[0]!a}, which is not below the run directory"
    return None


def _of_other_classes(record: Mapping) -> str | None:
    """Which list of a network's record is of more or fewer classes than it has, in one line; None for a good record."""
    results, classes = record.get("results", {}), record["num_classes"]
    confusion = results.get("test", {}).get("confusion", [])
    lists = [("class_names", record.get("class_names")), ("results.test.confusion", confusion or None)]
    lists += [(f"results.test.confusion[{label}]", row) for label, row in enumerate(confusion)]
    lists += [
        (f"results.{split}.{which}.class_accuracy", results[split][which].get("class_accuracy"))
        for split in ("test", "validation")
        for which in ("best", "last")
        if split in results
    ]
    wrong = next(((name, found) for name, found in lists if found is not None and len(found) != classes), None)
    return wrong and f"{wrong[0]} is of {len(wrong[1])} classes, and num_classes is {classes}"

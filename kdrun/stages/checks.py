"""Checks that stages share, before anything is made: data, nets, teachers. No TensorFlow in here."""

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

from kdrun import registry
from kdrun.config.schema import for_role
from kdrun.data import augmentation, datasets, mixing, preparation, report, transfer
from kdrun.errors import InputError
from kdrun.models import build as models
from kdrun.objectives import selection
from kdrun.runs import directory
from kdrun.runs import record as runs
from kdrun.runtime import cluster, devices, terminal
from kdrun.teachers import cache, checkpoint, foreign, initial, kinds, logits_file, overlap
from kdrun.teachers.sources import is_run, learned_from

log = logging.getLogger(__name__)

OF_RUN = "of_run"  # the data of stages that take a run's


def training(config: Mapping, *parts: tuple[str, str]) -> datasets.Dataset:
    """What is trained must fit the data: for each part, the part of the config with its epochs, and whose net it is.

    Returns the data that students see. Raises InputError.
    """
    dataset = students_data(config)
    for part, role in parts:
        _part(config, part, role)
    views = config["data"]["augment"]["views"]
    if parts and views and not any(augmentation.of(for_role(config, role)["data"]).is_drawn for _, role in parts):
        raise InputError(
            f"data.augment.views={views}: there is nothing to draw them with. Set data.augment.jitter, flip, "
            "resized_crop, colour or cutout, or leave it out."
        )
    return dataset


def students_data(config: Mapping) -> datasets.Dataset:
    """The data that students see. Raises InputError where they cannot be had, or are of classes that there are not."""
    sizes(config["data"])
    data = for_role(config, "student")["data"]
    dataset = datasets.load(data, config["seed"])
    _classes(config["data"], dataset.num_classes)
    _say_findings(json.dumps(data))
    return dataset


@lru_cache(maxsize=1)
def _say_findings(data: str) -> None:
    """Say what hurts in the data, once for the jobs of a sweep: they are mostly the same. Raises InputError."""
    for line in report.findings(json.loads(data)):
        log.warning("data: %s", line)


def cache_folder(config: Mapping) -> None:
    """Raises InputError where teachers' outputs are to be cached, and their folder cannot be written."""
    if config["teacher"]["cache"] == "on":
        directory.check_writable("cache_dir", Path(config["cache_dir"]))


def sizes(data: Mapping) -> None:
    """Raises InputError where the sizes of splits are not to be had."""
    with terminal.doing(f"reading the images of {data.get('path') or data['name']}"):  # for the first time
        whole = datasets.whole(data)
    held_out = datasets.validation_count(data)
    count = len(whole.training.labels)
    if held_out >= count:
        raise InputError(
            f"data.validation_size={data['validation_size']} leaves no training images: {data['name']} has "
            f"{count}. It must be below {count}."
        )
    size("train_size", data["train_size"], count - held_out)
    size("test_size", datasets.test_count(data), len(whole.test.labels))


def size(key: str, size: int | None, most: int) -> None:
    """Raises InputError where data.`key` asks for more images than there are; None is all."""
    if size is not None and size > most:
        raise InputError(f"data.{key}={size} is more than there are: {most}. Give at most {most}, or null for all.")


def _classes(data: Mapping, num_classes: int) -> None:
    for key in ("include_classes", "exclude_classes"):
        unknown = [label for label in data[key] or () if label >= num_classes]
        if unknown:
            raise InputError(
                f"data.{key}={data[key]}: there is no class {unknown[0]}. Classes are 0 to {num_classes - 1}."
            )
    included = range(num_classes) if data["include_classes"] is None else data["include_classes"]
    if not set(included) - set(data["exclude_classes"]):
        raise InputError(
            f"data.include_classes={data['include_classes']}, data.exclude_classes={data['exclude_classes']} leave the "
            "student no class to learn from. Exclude fewer."
        )


def augmented(data: Mapping) -> None:
    """Raises InputError where augmentation would leave nothing of an image, or is for others than these."""
    shape, augment, how = datasets.shapes(data).train, data["augment"], augmentation.of(data)
    height, width = shape[1:3]
    if how.jitter >= min(height, width):
        raise InputError(
            f"data.augment.jitter={how.jitter} would shift images of {height}x{width} pixels out of sight. It must be "
            f"below {min(height, width)}."
        )
    if how.cutout > min(height, width):
        raise InputError(
            f"data.augment.cutout={how.cutout:g} is larger than images of {height}x{width} pixels. Give at most "
            f"{min(height, width)}, or a part of that below 1."
        )
    for key in ("saturation", "hue"):
        if augment["colour"][key] and shape[3:] != (3,):
            raise InputError(
                f"data.augment.colour.{key}={augment['colour'][key]:g}: {data['name']}'s images are grayscale and have "
                "none. Set it to 0; brightness and contrast are for them, too."
            )


def kept_views(config: Mapping, sources: Sequence[Path] = ()) -> None:
    """Raises InputError where what teachers say of every view, as the student sees them, is to be kept, and there is no
    end to them, or somebody has spoken of one of them alone."""
    shown, asked = augmentation.of(config["data"]), config["teacher"]["cache"]
    for source in sources:
        if logits_file.is_one(source) and shown.view_count > 1:
            key = "teacher.logits" if config["teacher"]["logits"] else f"teacher.file: {source}"
            raise InputError(
                f"{key} holds one answer for each image, and augmentation shows others. Set data.augment to none "
                "(jitter=0, flip=false, and the others off), or give a teacher.run."
            )
        if kinds.is_foreign(source) and asked == "off":
            raise InputError(
                f"teacher.cache=off: {source} is asked once, and what it says is kept. Leave teacher.cache out."
            )
        if kinds.is_foreign(source) and not shown.is_finite:
            raise InputError(
                f"teacher.file: {source} is asked once, and with resized_crop, colour or cutout no two views of an "
                "image are alike. Set data.augment.views=4 or the like, so that there are as many of each."
            )
    if asked == "on" and not shown.is_finite:
        raise InputError(
            "teacher.cache=on: with resized_crop, colour or cutout no two views of an image are alike. Set "
            "data.augment.views=4 or the like, so that there are as many of each, or teacher.cache=auto."
        )


def _devices(config: Mapping, part: str, role: str) -> None:
    """Raises InputError where a batch cannot be spread over the devices that there are."""
    own, machines, batch_size = devices.count(config["devices"]), cluster.size(config), config[part]["batch_size"]
    here, count = devices.visible(), own * machines
    if here and own > len(here):
        begun = config["resume"] not in (None, "auto")
        advice = "Go on where there are so many" if begun else f"Give at most {len(here)}"
        raise InputError(f"devices={config['devices']}: this machine has {len(here)} GPUs. {advice}.")
    if machines > 1 and own > 1 and not here:
        raise InputError(
            f"devices={config['devices']}: in a cluster a CPU is one device. Give devices=1; a machine may be several "
            "tasks, each at a port of its own."
        )
    spread = f"devices={config['devices']}" + (f" on each of {machines} machines" if machines > 1 else "")
    if batch_size % count:
        nearest = max(count, batch_size // count * count)
        raise InputError(
            f"{spread}: {part}.batch_size={batch_size} cannot be spread over {count} devices "
            f"equally. Give a multiple of {count}, like {part}.batch_size={nearest}."
        )
    if count > 1 and config[role].get("quantize"):
        raise InputError(
            f"{spread}: {role}.quantize={config[role]['quantize']} finds its ranges on one device. "
            "Give devices=1, and no cluster."
        )


def _part(config: Mapping, part: str, role: str) -> None:
    """What a stage's part trains must fit the data: `part` of the config has its epochs, `role` is whose net it is."""
    batch_size = config[part]["batch_size"]
    data = for_role(config, role)["data"]
    augmented(data)
    if config[part]["patience"] and data["train_on_validation"]:
        raise InputError(
            f"{part}.patience={config[part]['patience']} waits for validation, whose images are trained on here. Set "
            "train_on_validation=false, or patience=null."
        )
    dataset = datasets.load(data, config["seed"])
    preparation.of_data(data, dataset)
    training_size = transfer.images_per_epoch(dataset, transfer.load(data)) or len(dataset.train.labels)
    if batch_size > training_size:
        raise InputError(
            f"{part}.batch_size={batch_size} is larger than the training split of {training_size} images. "
            f"Give at most {training_size}."
        )
    _devices(config, part, role)
    _optimizer(config, part, role)
    _model(config, role, data["normalise"])
    initial.check(config, role, dataset)
    _quantized(config, role)
    smallest = models.smallest_image_size(config[role]["model"])
    if (size := config[role]["image_size"]) < smallest:
        key = "data.image_size" if size == config["data"]["image_size"] else f"{role}.image_size"
        raise InputError(
            f"{key}={size} is too small for {role}.model={config[role]['model']['name']}: its last pooling would have "
            f"nothing to pool. Set {key}={smallest} or more."
        )


def _model(config: Mapping, role: str, normalise: str | list) -> None:
    """What a role's net needs must be there, and its images must not be normalised twice."""
    model = config[role]["model"]
    models.check(model)
    if models.normalises(model) and normalise != "none":
        key = "data.normalise" if normalise == config["data"]["normalise"] else f"{role}.normalise"
        raise InputError(
            f"{key}={normalise}: {role}.model={model['name']} brings what is to be done to its images. Set "
            f"{role}.normalise=none."
        )


def _quantized(config: Mapping, role: str) -> None:
    """Raises InputError where a network is to be trained for whole numbers, and cannot be."""
    asked = config[role].get("quantize")
    if asked and config[role]["initial_weights"] is None:
        raise InputError(
            f"{role}.quantize={asked} goes on from a network that was trained without it. Train that first, and give "
            f"its run: {role}.initial_weights=RUN."
        )
    if asked and config["precision"] not in ("auto", "float32"):
        raise InputError(
            f"precision={config['precision']} cannot hold the steps of {role}.quantize={asked}. Set precision=float32, "
            "or leave it out."
        )


def _optimizer(config: Mapping, part: str, role: str) -> None:
    """Raises InputError for keys of a role's optimizer that do not fit together, or not the epochs of `part`."""
    epochs, optimizer = config[part]["epochs"], config[role]["optimizer"]
    whose = "optimizer" if optimizer == config["optimizer"] else f"{role}.optimizer"
    if optimizer["warmup_epochs"] > epochs:
        raise InputError(
            f"{whose}.warmup_epochs={optimizer['warmup_epochs']:g} is more than {part}.epochs={epochs}. "
            "Give at most that."
        )
    if (optimizer["schedule"] == "step") != (optimizer["step_epochs"] is not None):
        raise InputError(
            f"{whose}.schedule={optimizer['schedule']} and {whose}.step_epochs={optimizer['step_epochs'] or 'null'} do "
            f"not go together. Set {whose}.schedule=step and {whose}.step_epochs=[150,180,210] or the like, or neither."
        )
    if optimizer["step_epochs"] and (last := max(optimizer["step_epochs"])) >= epochs:
        raise InputError(
            f"{whose}.step_epochs={optimizer['step_epochs']}: {part}.epochs={epochs}, so none comes after {last}. Give "
            f"epochs below {epochs}."
        )
    if optimizer.get("nesterov") and not optimizer["momentum"]:
        raise InputError(f"{whose}.nesterov=true needs momentum, got 0. Set {whose}.momentum=0.9 or the like.")
    its_own = not registry.get("optimizer", optimizer["name"]).is_shipped
    if its_own and (optimizer["decay"] == "weights" or optimizer["coupled"]):
        raise InputError(
            f"{whose}.decay={optimizer['decay']}, {whose}.coupled={str(optimizer['coupled']).lower()}: "
            f"{optimizer['name']} is your own, and how it decays is its own to say. Leave both out."
        )


def teachers(
    config: Mapping, dataset: datasets.Dataset, sources: Sequence[Path] | None, to_be: Mapping | None = None
) -> None:
    """What those who teach must have in common with what is asked of them, the students' config.

    None: a teacher that is trained first, with the model `to_be`. Raises InputError.
    """
    teacher, objective = config["teacher"], config["objective"]
    if unlabelled := transfer.load(config["data"]):
        _without_labels(config)
    count = 1 if sources is None else len(sources)
    of_a_file = not all(map(is_run, sources or ()))
    if config["distill"]["peers"]:
        return peers(config)
    if teacher["weights"] is not None and len(teacher["weights"]) != count:
        raise InputError(f"teacher.weights={teacher['weights']} must be one for each teacher, and there are {count}.")
    kept_views(config, sources or ())
    answered = transfer.added(dataset, unlabelled) if unlabelled else dataset
    for file in filter(logits_file.is_one, sources or ()):
        logits_file.logits(file, answered, quietly=True)
    key = "teacher.file" if teacher["file"] else "teacher.run"
    for source in filter(is_run, sources or ()):
        overlap.check(config, learned_from(config, source), f"{key}: {source}")
    _inside(config, dataset, sources, to_be)
    if mixing.is_on(config["distill"]):
        _mixed(config, of_a_file)
    if (
        teacher["shuffle"] != "none"
        and count
        and (selection.layers(objective) or not (of_a_file or cache.wanted(config)))
    ):
        raise InputError(
            f"teacher.shuffle={teacher['shuffle']} permutes the teacher's kept logits, and here the teacher runs live. "
            "Set teacher.cache=on, and take an objective on logits."
        )
    for source in filter(kinds.is_foreign, sources or ()):  # last, since it takes a while
        foreign.check(config, source, dataset)


def _inside(config: Mapping, dataset: datasets.Dataset, sources: Sequence[Path] | None, to_be: Mapping | None) -> None:
    """Raises InputError where a network's features or classifier are asked for that it does not have; see teachers."""
    student, objective = config["student"], config["objective"]
    layers, takes_classifier = selection.layers(objective), student["classifier"] == "teacher"
    teacher = sources[0] if sources and len(sources) == 1 else None
    if (layers or takes_classifier) and sources is not None and (teacher is None or not is_run(teacher)):
        if takes_classifier or teacher is None or not foreign.have_features(teacher):
            raise InputError(
                f"objective={'+'.join(selection.chosen(objective))}, student.classifier={student['classifier']}: "
                f"{_named(sources)} cannot give a network's features or classifier. Take an objective on logits, or "
                "the run of one teacher."
            )
        foreign.check_runtime(teacher)
    begins = [f"student.{key}" for key in ("initial_weights", "freeze") if student[key] is not None]
    if begins and takes_classifier:
        raise InputError(
            "student.classifier=teacher: the student begins with the teacher's classifier and a projection of its own. "
            f"Leave out {', '.join(begins)}."
        )
    if layers:
        ours = [*models.features(student["model"]), *["projection"] * takes_classifier]
        maps: Collection[str] | None
        if teacher is not None and not is_run(teacher):
            shapes = foreign.features(config, teacher, dataset)
            theirs, maps = list(shapes), {name for name, shape in shapes.items() if len(shape) == 3}
        else:
            model = checkpoint.model_of(teacher) if teacher else to_be
            assert model is not None  # who names no sources says what is trained
            theirs, maps = [*models.features(model)], models.maps(model)
        selection.check_kinds(selection.expanded(objective, ours, theirs), models.maps(student["model"]), maps)


def _named(sources: Sequence[Path]) -> str:
    """What these are who teach, for a line."""
    if any(map(logits_file.is_one, sources)):
        return "a file of logits"
    return kinds.FOREIGN[kinds.of(sources[0])].name if len(sources) == 1 else f"{len(sources)} teachers"


def _without_labels(config: Mapping) -> None:
    """Raises InputError for what images without labels cannot go with."""
    path, objective = config["data"]["transfer"], config["objective"]
    if selection.need_teacher(objective) and selection.need_labels(objective):
        raise InputError(
            f"data.transfer={path}: objective={'+'.join(selection.chosen(objective))} looks at every image's label, "
            "and these have none. Take another, as kd or dist, or leave data.transfer out."
        )
    if config["teacher"]["shuffle"] == "within_class":
        raise InputError(
            f"data.transfer={path}: teacher.shuffle=within_class permutes the images of each class, and these have "
            "none. Take teacher.shuffle=all."
        )


def peers(config: Mapping) -> None:
    """Raises InputError for what networks that learn from each other cannot go with."""
    teacher = config["teacher"]
    given = {
        "a teacher.run": teacher["run"] != "auto",
        "teacher.logits": teacher["logits"] is not None,
        "teacher.file": teacher["file"] is not None,
        "teacher.weights": teacher["weights"] is not None,
        "teacher.shuffle": teacher["shuffle"] != "none",
        "student.classifier=teacher": config["student"]["classifier"] == "teacher",
        "distill.mixup": bool(config["distill"]["mixup"]),
        "distill.cutmix": bool(config["distill"]["cutmix"]),
        "student.initial_weights, with which all would be alike": config["student"]["initial_weights"] is not None,
        "objectives on features": bool(selection.layers(config["objective"])),
        "objectives without a teacher": not selection.need_teacher(config["objective"]),
    }
    if any(given.values()):
        raise InputError(
            f"distill.peers={config['distill']['peers']}: peers learn from the labels and each other's logits. Leave "
            f"out {', '.join(name for name, is_given in given.items() if is_given)}."
        )


def _mixed(config: Mapping, of_a_file: bool) -> None:
    """Raises InputError for what mixed images cannot go with."""
    given = ", ".join(f"distill.{key}={value:g}" for key in ("mixup", "cutmix") if (value := config["distill"][key]))
    if config["teacher"]["cache"] == "on" or config["teacher"]["cache_features"] or of_a_file:
        raise InputError(
            f"{given} shows the student images that no kept answers are of. Leave out teacher.cache=on, "
            "teacher.cache_features, teacher.logits and teacher.file: the teacher then runs live, on the same images."
        )
    if selection.need_labels(config["objective"]):
        raise InputError(
            f"{given} mixes images, which then have two labels: cross-entropy takes both, and "
            f"objective={'+'.join(selection.chosen(config['objective']))} asks for one. Take an objective without "
            "labels, as kd."
        )


def one_network(run: str | None, file: str | None) -> None:
    """Raises InputError unless a stage is given either a run or an exported file."""
    if run is None and file is None:
        raise InputError(
            "run or file must be given. Write run=RUN_DIRECTORY, or file=FILE, one that stage=export made."
        )
    if run is not None and file is not None:
        raise InputError(f"run={run} and file={file} are two networks. Leave one of them out.")


def taken(run: str) -> Mapping:
    """The record of a run whose network is to be taken. Raises InputError where it cannot be."""
    record = runs.read(run)
    runs.check_leaves_network(record, f"run: {run}")
    if record["status"] != "completed":
        raise InputError(f"run: {run} is {record['status']}, not completed. Give a completed run.")
    return record


def own_data_alone(data: Mapping, stage: str, hint: str, overrides: Sequence[str]) -> None:
    """Raises InputError where a stage that takes a run's data was given other data, or keys of none."""
    if data["name"] != OF_RUN:
        raise InputError(f"data={data['name']}: stage={stage} takes the data of the run. Leave it out.")
    for word in overrides:
        if word.lstrip("+~").startswith("data."):
            raise InputError(f"{word}: stage={stage} takes the data of the run as they are. {hint}")

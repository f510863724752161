"""What of a config must fit together, and with the files that it names. No TensorFlow in here."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from kdrun.data import batches, datasets
from kdrun.errors import InputError
from kdrun.models import build as models
from kdrun.objectives import selection as choosing
from kdrun.runs import record as runs
from kdrun.teachers import cache, checkpoint, overlap
from kdrun.teachers import logits_file as file

OF_RUN = "of_run"  # the data of stages that take a run's
# what stages of several parts train
_ROLES = {
    "pipeline": runs.TRAINING,
    "generations": ("student", "distill"),
    "specialists": ("teacher", "specialist"),
}


def check(config: Mapping, overrides: Sequence[str] = ()) -> None:
    """What must fit together: data and its files, sizes, models, the teacher's or evaluated run, the outputs folder.

    `overrides` are the command line's, for the command that an error recommends.
    """
    stage = config["stage"]
    if stage == "cache" and config["cache"]["clear"]:
        pass  # about what is there, whatever it was made from
    elif stage == "compare":
        runs.found(config["runs"])
    elif stage in ("evaluate", "adjust_bias"):
        record = _taken(config["run"])
        if stage == "evaluate" and config["data"]["name"] != OF_RUN:
            _check_other_data(config["data"], record, overrides)
        else:
            _check_own_data(config["data"], stage, overrides)
            _check_sizes(record["config"]["data"])
            dataset = datasets.load(record["config"]["data"])
        if stage == "adjust_bias":
            _check_adjusted(config, record, dataset)
    elif config["data"]["name"] == OF_RUN:
        raise InputError(f"data={OF_RUN} is for stage=evaluate and stage=adjust_bias. Give data, data=mnist or others.")
    else:
        _check_sizes(config["data"])
        students = runs.seen(config, "distill")
        dataset = datasets.load(students["data"], config["seed"])
        _check_classes(config["data"], dataset.num_classes)
        for role in _ROLES.get(stage, {stage} & set(runs.TRAINING)):
            _check_role(config, role)
        if config["optimizer"].get("nesterov") and not config["optimizer"]["momentum"]:
            raise InputError("optimizer.nesterov=true needs momentum, got 0. Set optimizer.momentum=0.9 or the like.")
        if stage == "cache":
            _check_augmentation(students["data"])
            checkpoint.sources(config, overrides)
        if stage == "generations":
            _check_generations(config)
        if stage == "specialists" and config["run"] != "auto":
            _taken(config["run"])
            checkpoint.check(config, config["run"], "run")
        if stage in ("distill", "pipeline", "generations"):
            choosing.check(config["objective"], dataset.num_classes)
            trained_first = stage == "generations" or (stage == "pipeline" and config["teacher"]["run"] == "auto")
            _check_teachers(students, dataset, None if trained_first else checkpoint.sources(config, overrides))
        if stage == "cache" or config["teacher"]["cache"] == "on":
            runs.check_writable("cache_dir", Path(config["cache_dir"]))
    runs.check_writable("outputs", Path(config["outputs"]) / stage)


def _check_sizes(data: Mapping) -> None:
    """Raises InputError where the sizes of splits are not to be had."""
    shapes = datasets.shapes(data)
    rest = shapes.train[0] - data["validation_size"]
    if rest < 1:
        raise InputError(
            f"data.validation_size={data['validation_size']} leaves no training images: {data['name']} has "
            f"{shapes.train[0]}. It must be below {shapes.train[0]}."
        )
    _check_size("train_size", data["train_size"], rest)
    _check_size("test_size", data["test_size"], shapes.test[0])


def _check_size(key: str, size: int | None, most: int) -> None:
    if size is not None and size > most:
        raise InputError(f"data.{key}={size} is more than there are: {most}. Give at most {most}, or null for all.")


def _check_own_data(data: Mapping, stage: str, overrides: Sequence[str]) -> None:
    """Raises InputError where a stage that takes a run's data was given other data, or keys of none."""
    if data["name"] != OF_RUN:
        raise InputError(f"data={data['name']}: stage={stage} takes the data of the run. Leave it out.")
    for word in overrides:
        if word.lstrip("+~").startswith("data."):
            hint = " Name other data with it: data=mnist or the like." if stage == "evaluate" else " Leave it out."
            raise InputError(f"{word}: stage={stage} takes the data of the run as they are.{hint}")


def _check_other_data(data: Mapping, record: Mapping, overrides: Sequence[str]) -> None:
    """Raises InputError where a run's network cannot be measured on these data."""
    theirs, shapes = record["config"]["data"], datasets.shapes(data)
    _check_size("test_size", data["test_size"], shapes.test[0])
    sized = [word for word in overrides if word.lstrip("+~").startswith("data.image_size=")]
    if sized and data["image_size"] != theirs["image_size"]:
        raise InputError(f"{sized[0]}: the run's network sees images of {theirs['image_size']} pixels. Leave it out.")
    channels = shapes.test[3] if len(shapes.test) == 4 else 1
    if channels != record["image_shape"][2]:
        raise InputError(
            f"data={data['name']}: its images have {channels} channel(s), and the run's network sees "
            f"{record['image_shape'][2]}. Give images like those that it was trained on."
        )
    labels = datasets.load({**data, **runs.ALL_IMAGES}).test.labels
    if int(labels.max()) >= record["num_classes"]:
        raise InputError(
            f"data={data['name']}: its labels go up to {labels.max()}, and the run's network tells "
            f"{record['num_classes']} classes apart. Give data with the same classes."
        )


def _check_classes(data: Mapping, num_classes: int) -> None:
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


def _check_augmentation(data: Mapping) -> None:
    height, width = datasets.shapes(data).train[1:3]
    if data["augment"]["jitter"] >= min(height, width):
        raise InputError(
            f"data.augment.jitter={data['augment']['jitter']} would shift images of {height}x{width} pixels out of "
            f"sight. It must be below {min(height, width)}."
        )


def _check_role(config: Mapping, role: str) -> None:
    """What a role trains must fit the data. Distilling trains the student's model."""
    epochs, batch_size = config[role]["epochs"], config[role]["batch_size"]
    data = runs.seen(config, role)["data"]
    _check_augmentation(data)
    if config[role]["patience"] and data["train_on_validation"]:
        raise InputError(
            f"{role}.patience={config[role]['patience']} waits for validation, whose images are trained on here. Set "
            "train_on_validation=false, or patience=null."
        )
    training_size = len(datasets.load(data, config["seed"]).train.labels)
    if batch_size > training_size:
        raise InputError(
            f"{role}.batch_size={batch_size} is larger than the training split of {training_size} images. "
            f"Give at most {training_size}."
        )
    if config["optimizer"]["warmup_epochs"] > epochs:
        raise InputError(
            f"optimizer.warmup_epochs={config['optimizer']['warmup_epochs']:g} is more than {role}.epochs={epochs}. "
            "Give at most that."
        )
    owner = runs.role_of(role)
    smallest = models.smallest_image_size(config[owner]["model"])
    if config["data"]["image_size"] < smallest:
        raise InputError(
            f"data.image_size={config['data']['image_size']} is too small for {owner}.model="
            f"{config[owner]['model']['name']}: its last pooling would have nothing to pool. "
            f"Set data.image_size={smallest} or more."
        )


def _check_teachers(config: Mapping, dataset: datasets.Dataset, sources: Sequence[Path] | None) -> None:
    """What those who teach must have in common with what is asked of them. None: the configured teacher, trained first.

    Raises InputError.
    """
    teacher, objective = config["teacher"], config["objective"]
    layers, asked_for = choosing.layers(objective), "+".join(choosing.chosen(objective))
    count = 1 if sources is None else len(sources)
    of_a_file = bool(sources) and sources[0].is_file()
    if config["distill"]["peers"]:
        return _check_peers(config)
    if teacher["weights"] is not None and len(teacher["weights"]) != count:
        raise InputError(f"teacher.weights={teacher['weights']} must be one for each teacher, and there are {count}.")
    if config["stage"] == "pipeline" and (count > 1 or teacher["logits"]):
        raise InputError("stage=pipeline takes one teacher's run. For others, run stage=distill.")
    if of_a_file:
        file.logits(sources[0], dataset, quietly=True)
        if batches.view_count(**config["data"]["augment"]) > 1:
            raise InputError(
                "teacher.logits holds one answer for each image, and augmentation shows others. Set data.augment to "
                "none (jitter=0, flip=false), or give a teacher.run."
            )
    if sources is None and config["stage"] == "pipeline":
        overlap.check(config, overlap.configured(config), "The configured teacher")
    for source in sources or () if not of_a_file else ():
        overlap.check(config, overlap.trained_on(runs.read(source)), f"teacher.run: {source}")
    if (layers or config["student"]["classifier"] == "teacher") and (count != 1 or of_a_file):
        given = "a file of logits" if of_a_file else f"{count} teachers"
        raise InputError(
            f"objective={asked_for}, student.classifier={config['student']['classifier']}: {given} cannot give a "
            "network's features or classifier. Take an objective on logits, or the run of one teacher."
        )
    if layers:
        ours = [*models.features(config["student"]["model"])]
        ours += ["projection"] * (config["student"]["classifier"] == "teacher")
        theirs = _teachers_model(config, sources)
        expanded = choosing.expanded(objective, ours, [*models.features(theirs)])
        choosing.check_kinds(expanded, models.maps(config["student"]["model"]), models.maps(theirs))
    if config["distill"]["mixup"]:
        _check_mixup(config, of_a_file)
    if teacher["shuffle"] != "none" and count and (layers or not (of_a_file or cache.wanted(config))):
        raise InputError(
            f"teacher.shuffle={teacher['shuffle']} permutes the teacher's kept logits, and here the teacher runs live. "
            "Set teacher.cache=on, and take an objective on logits."
        )


def _check_peers(config: Mapping) -> None:
    """Raises InputError for what networks that learn from each other cannot go with."""
    teacher = config["teacher"]
    given = {
        "stage=generations": config["stage"] == "generations",
        "a teacher.run": teacher["run"] != "auto",
        "teacher.logits": teacher["logits"] is not None,
        "teacher.weights": teacher["weights"] is not None,
        "teacher.shuffle": teacher["shuffle"] != "none",
        "student.classifier=teacher": config["student"]["classifier"] == "teacher",
        "distill.mixup": bool(config["distill"]["mixup"]),
        "objectives on features": bool(choosing.layers(config["objective"])),
        "objectives without a teacher": not choosing.need_teacher(config["objective"]),
    }
    if any(given.values()):
        raise InputError(
            f"distill.peers={config['distill']['peers']}: peers learn from the labels and each other's logits. Leave "
            f"out {', '.join(name for name, is_given in given.items() if is_given)}."
        )


def _check_mixup(config: Mapping, of_a_file: bool) -> None:
    """Raises InputError for what mixed images cannot go with."""
    if config["teacher"]["cache"] == "on" or config["teacher"]["cache_features"] or of_a_file:
        raise InputError(
            "distill.mixup shows the student images that no kept answers are of. Leave out teacher.cache=on, "
            "teacher.cache_features and teacher.logits: the teacher then runs live, on the same images."
        )
    labelled = choosing.need_labels(config["objective"])
    if config["alpha"] != 1 or config["alpha_end"] not in (None, 1.0) or config["alpha_warmup_epochs"] or labelled:
        raise InputError(
            f"distill.mixup={config['distill']['mixup']:g} mixes images, which then have no label. Set alpha=1 without "
            "alpha_end and alpha_warmup_epochs, and take an objective without labels, as objective=function_matching "
            "does."
        )


def _teachers_model(config: Mapping, sources: Sequence[Path] | None) -> Mapping:
    if sources is None:
        return config["student" if config["stage"] == "generations" else "teacher"]["model"]
    return checkpoint.model_of(sources[0])


def _check_generations(config: Mapping) -> None:
    """Raises InputError where another teacher was asked for than the generation before."""
    teacher = config["teacher"]
    if teacher["run"] != "auto" or teacher["logits"] or config["student"]["classifier"] == "teacher":
        raise InputError(
            "stage=generations: each generation is taught by the one before. Leave out teacher.run, teacher.logits and "
            "student.classifier."
        )
    if config["data"]["train_fraction"] < 1:
        raise InputError(
            "stage=generations: each generation has a seed of its own, by which data.train_fraction would draw other "
            "images. Set data.train_size instead."
        )
    if not choosing.need_teacher(config["objective"]):
        raise InputError("stage=generations: this objective needs no teacher. Take objective=kd.")


def _taken(run: str) -> Mapping:
    """The record of a run whose network is to be taken. Raises InputError where it cannot be."""
    if not isinstance(run, str):
        raise InputError(f"run must be one run directory, got {run}.")
    record = runs.read(run)
    if record["stage"] not in runs.NETWORKS:
        raise InputError(f"run: {run} is a {record['stage']} run. Give one of stage {', '.join(runs.NETWORKS)}.")
    if record["status"] != "completed":
        raise InputError(f"run: {run} is {record['status']}, not completed. Give a completed run.")
    return record


def _check_adjusted(config: Mapping, record: Mapping, dataset: datasets.Dataset) -> None:
    classes, num_classes = config["classes"], record["num_classes"]
    if changed := runs.damaged(Path(config["run"]), record):
        raise InputError(f"run: {config['run']}: {', '.join(changed)} is not what run.json says. Give another run.")
    if max(classes) >= num_classes or set(classes) == set(range(num_classes)):
        raise InputError(
            f"classes={classes}: one number is added to their biases, and to none of the others. Give some of 0 to "
            f"{num_classes - 1}, not all."
        )
    for split in ("validation", "test"):
        if not set(classes) & set(getattr(dataset, split).labels.tolist()):
            raise InputError(f"classes={classes}: no {split} image of {config['run']} is of these. Give others.")

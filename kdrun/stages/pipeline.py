"""Teacher, students alone, distilled students and controls, over one seed or several, and how they compare."""

import logging
import threading
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path

from kdrun.config.schema import for_role
from kdrun.data import datasets, transfer
from kdrun.evaluation import metrics
from kdrun.export import formats
from kdrun.objectives import selection
from kdrun.registry import register
from kdrun.runs import identity, predictions
from kdrun.runs import record as runs
from kdrun.runs.recording import recording
from kdrun.stages import chain, checks, export, seeds, work
from kdrun.stages.compare import compared
from kdrun.stages.seeds import Student
from kdrun.teachers import cache, logits_file, overlap, sources

log = logging.getLogger(__name__)

_FEW = 3  # teacher, student, distilled student: a table of single runs


def check(config: Mapping, overrides: Sequence[str]) -> None:
    """Raises InputError where one of the networks cannot be trained."""
    arms, teacher = config["arms"], config["teacher"]
    if config["export"]["format"]:
        formats.targets(config["export"]["format"], config["export"]["quantize"])
    students = seeds.distilled(config, arms)
    of_teacher = [("teacher", "teacher")] if students and not sources.are_given(config) else []
    dataset = checks.training(config, *of_teacher, *((arm, "student") for arm in arms))
    seeds.check(config)
    for student in students:
        selection.check(student.config["objective"], dataset.num_classes)
    if not students:
        return
    found: list[Path] | None = None  # a teacher that is trained first
    if sources.are_given(config):
        found = sources.resolve(config, overrides) if any(sources.are_needed(each.config) for each in students) else []
    checks.teachers(for_role(config, "student"), dataset, found, teacher["model"])
    if found is None and not config["distill"]["peers"]:
        overlap.check(for_role(config, "student"), overlap.configured(config), "The configured teacher")
    checks.cache_folder(config)


def of(config: Mapping) -> dict:
    """The identity of the configured run."""
    return identity.of_chain(config, *transfer.fingerprints(config["data"]))


@register(
    "stage",
    "pipeline",
    check=check,
    identity=of,
    needs_tensorflow=False,
    has_parts=True,
    takes_seeds=True,
    exports=True,
)
def pipeline(config: Mapping, run_dir: Path) -> dict:
    """Train, or find completed, the teacher, the students of all seeds alone and distilled, and their controls; then
    compare them on the test set."""
    from kdrun.reports import tables

    with recording(run_dir, config, of(config), dataset_sha256=datasets.fingerprint(config["data"])) as record:
        arms = config["arms"]
        students = seeds.distilled(config, arms)
        jobs = len(students) + len(seeds.of(config)) * ("student" in arms) + len(seeds.of_teachers(config)) - 1
        with chain.parts_of(config, run_dir, record, jobs) as parts:
            teachers = _teachers(config, students, parts) if students else []
            networks = _students(config, students, teachers, parts)
            # takes seconds, and this process has nothing else to do
            threading.Thread(target=import_module, args=["kdrun.reports.comparison"]).start()
            parts.wait()
            exported = _exported(config, networks, parts)
        measured = [path for path in teachers if _is_measured(config, path)]
        judged = measured if measured == teachers else []
        rows = [_row("teacher", path, judged) for path in measured]
        rows += [_row(runs.read(path)["stage"], path, judged) for path in networks]
        places = [row["run"] for row in rows]
        if len(rows) == _FEW:
            tables.comparison(rows)
        places += map(str, exported)
        record["results"] = {"runs": rows, **compared(config, places, run_dir, table=len(rows) != _FEW)}
        return record["results"]


def _teachers(config: Mapping, students: Sequence[Student], parts: chain.Parts) -> list[Path]:
    """The runs of those who teach, or a file of logits. Where teachers are to be trained, they are started."""
    if sources.are_given(config):
        is_needed = any(sources.are_needed(student.config) for student in students)
        return sources.resolve(config) if is_needed else [Path(config["teacher"]["run"])]
    if any(selection.are_to_be_tried(student.config["objective"]) for student in students):
        work.load_tensorflow(config)
        from kdrun.teachers.supervisors import rehearse

        of_student = for_role(config, "student")
        data, teacher = datasets.load(of_student["data"], config["seed"]), config["teacher"]
        rehearse(of_student, data, teacher["model"], teacher["image_size"])
    found = []
    for number, seed in enumerate(seeds.of_teachers(config)):
        teacher = {**config, "teacher": {**config["teacher"], "seed": seed}}
        depends = identity.of_teacher(teacher, datasets.fingerprint(config["data"]))
        found.append(parts.start(f"teacher, seed {seed}" if number else "teacher", teacher, depends))
    return found


def _students(
    config: Mapping,
    distilled: Sequence[Student],
    teachers: Sequence[Path],
    parts: chain.Parts,
) -> list[Path]:
    """The students' runs, started: at first those that need no teacher, unless the teachers are there."""
    sums, found = transfer.fingerprints(config["data"]), []
    taught = [each for each in distilled if sources.are_needed(each.config)]
    are_there = parts.have_ended(*teachers)
    if taught and are_there:
        _ask(config, taught, teachers, parts)
    for name, student, _ in seeds.students("student", config) if "student" in config["arms"] else ():
        found.append(parts.start(name, student, identity.of_student(student, *sums)))
    for name, student, _ in distilled:
        if not sources.are_needed(student):
            found.append(parts.start(name, student, _identity(student, *sums)))
    if taught and not are_there:
        parts.wait(*teachers)
        _ask(config, taught, teachers, parts)
    for each in taught:
        student = _taught_by(each, teachers)
        found.append(parts.start(each.name, student, _identity(student, *sums)))
    return found


def _taught_by(student: Student, teachers: Sequence[Path]) -> dict:
    """A student's config with its teachers' runs: all of them, or the one that has its place among the seeds."""
    config, chosen = student.config, [str(each) for each in teachers]
    if config["teacher"]["logits"] or config["teacher"]["file"]:
        return config
    if config["teachers"] == "seeds":
        chosen = [chosen[student.number]]
    return {**config, "teacher": {**config["teacher"], "run": chosen[0] if len(chosen) == 1 else chosen}}


def _identity(student: Mapping, dataset_sha256: str, transfer_sha256: str | None) -> dict:
    found = sources.resolve(student) if sources.are_needed(student) else []
    weights = [sources.weights_of(each) for each in found]
    return identity.of_distilled(student, dataset_sha256, weights, transfer_sha256)


def _ask(config: Mapping, taught: Sequence[Student], teachers: Sequence[Path], parts: chain.Parts) -> None:
    """Have what the teachers say cached once, before several students want it; each student has to ask for itself where
    it sees images of its own."""
    of_student = for_role(config, "student")
    is_kept = cache.wanted(of_student) or not all(map(sources.is_run, teachers))
    if not is_kept or of_student["data"]["train_fraction"] < 1:
        return
    sums = transfer.fingerprints(config["data"])
    identities = [_identity(_taught_by(each, teachers), *sums) for each in taught]
    if not all(chain.reusable(config, depends) for depends in identities):
        for teacher in filter(lambda each: not logits_file.is_one(each), teachers):
            parts.ask(of_student, teacher)


def _exported(config: Mapping, networks: Sequence[Path], parts: chain.Parts) -> list[Path]:
    """The exports of the student alone and of the distilled one that are best on validation, where they are asked for:
    one after the other, since each is timed."""
    if not config["export"]["format"]:
        return []
    from kdrun.comparison import gathering
    from kdrun.comparison.kinds import ALONE, DISTILLED

    table, found = gathering.frame(*networks), []
    for kind, name in ((ALONE, "student's export"), (DISTILLED, "distilled student's export")):
        if (of_kind := table[table["kind"] == kind]).empty:
            continue
        best = Path(export.best_on_validation(of_kind))
        found.append(parts.start(name, config, export.identity(config, best), run=str(best)))
        parts.wait(found[-1])
    return found


def _row(stage: str, run_dir: Path, teachers: Sequence[Path]) -> dict:
    record = runs.read(run_dir)
    results = record["results"]
    return {
        "stage": stage,
        "parameters": record["parameters"]["total"],
        "test": results["test"]["best"],
        "test_last": results["test"]["last"],
        "teacher_agreement": _agreement(run_dir, teachers),
        "steps": results["steps"],
        "training_seconds": results["training_seconds"],
        "seconds_to_first_step": results["seconds_to_first_step"],
        "images_per_second": results["images_per_second"],
        "run": str(run_dir),
    }


def _is_measured(config: Mapping, teacher: Path) -> bool:
    """Whether what a teacher has said of the test images is in its run."""
    return sources.is_run(teacher) and sources.is_of_these_images(config, runs.read(teacher))


def _agreement(run_dir: Path, teachers: Sequence[Path]) -> float | None:
    """With the one teacher's run, if there is one."""
    if len(teachers) != 1:
        return None
    logits, of_teacher = (predictions.read(path)[1] for path in (run_dir, teachers[0]))
    return metrics.agreement(logits, of_teacher)

"""A generalist, specialists for the classes that it confuses, and both combined (arXiv 1503.02531, section 5)."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated

import numpy as np

from kdrun.comparison import texts
from kdrun.config import rules
from kdrun.config.keys import Training
from kdrun.config.schema import for_role
from kdrun.data import batches, datasets, preparation
from kdrun.data.rows import chosen
from kdrun.errors import InputError
from kdrun.evaluation import by_class, metrics
from kdrun.registry import register
from kdrun.runs import identity, predictions
from kdrun.runs import record as runs
from kdrun.runs.recording import recording
from kdrun.stages import chain, checks, work
from kdrun.teachers import sources

log = logging.getLogger(__name__)

_ROUNDS = 200  # of expectation and maximisation, at most


def check(config: Mapping, overrides: Sequence[str]) -> None:
    """Raises InputError where generalist or specialists cannot be trained, or the given one is none for these data."""
    if config["data"]["transfer"]:
        raise InputError("data.transfer: specialists have no teacher, and learn from labels. Leave it out.")
    checks.training(config, ("teacher", "teacher"), ("specialist", "teacher"))
    if given := [key for key in ("initial_weights", "freeze") if config["teacher"][key] is not None]:
        raise InputError(
            f"teacher.{given[0]}: specialists begin as the generalist, and are trained as a whole. Leave it out; for "
            "the generalist, run stage=teacher with it and give run=RUN_DIRECTORY."
        )
    if config["run"] != "auto":
        checks.taken(config["run"])
        sources.check(config, config["run"], "run", these_images=True)
        _check_shown(config)
    checks.cache_folder(config)


def of(config: Mapping) -> dict:
    """The identity of the configured run."""
    return identity.of_chain(config, datasets.fingerprint(config["data"]))


@register("stage", "specialists", check=check, identity=of, needs_tensorflow=False, has_parts=True)
def specialists(
    config: Mapping,
    run_dir: Path,
    *,
    run: rules.RunDirectory,
    clusters: Annotated[int, rules.integer(2)],
    specialist: Training,
) -> dict:
    """Cluster the classes that the generalist confuses on validation, train a specialist for each cluster of two or
    more, and measure generalist and all of them together on the test set."""
    from kdrun.reports import tables

    dataset_sha256 = datasets.fingerprint(config["data"])
    with recording(run_dir, config, of(config), dataset_sha256=dataset_sha256) as record:
        with chain.parts_of(config, run_dir, record, clusters) as parts:
            generalist = Path(run)
            if run == "auto":
                generalist = parts.start("teacher", config, identity.of_teacher(config, dataset_sha256))
                parts.wait()
            work.load_tensorflow(config)
            dataset = datasets.load(for_role(config, "teacher")["data"])
            of_classes = confusable(_said(config, generalist, dataset, "validation"), clusters)
            record["class_names"] = [str(name) for name in dataset.class_names]
            for classes in of_classes:
                log.info("specialists: one for classes %s", _named(classes, dataset.class_names))
                for split in dataset[:3]:
                    if not np.isin(split.labels, classes).any():
                        raise InputError(f"specialists: a split has no images of {classes}. Use more images.")
            paths = []
            for classes in of_classes:
                own = {"run": str(generalist), "classes": classes, "specialist": specialist}
                depends = identity.of_specialist({**config, **own}, dataset_sha256, [sources.weights_of(generalist)])
                paths.append(parts.start(f"specialist {classes}", config, depends, **own))
            parts.wait()
        found = [
            {"classes": classes, "run": str(path), **_tested(path)}
            for classes, path in zip(of_classes, paths, strict=True)
        ]
        log_p, labels = _said(config, generalist, dataset, "test"), dataset.test.labels
        theirs = [(each["classes"], _log_probabilities(Path(each["run"]), each["dustbin_shift"])) for each in found]
        together = np.log(np.maximum(combined(log_p, theirs), 1e-300))
        record["results"] = {
            "specialists": found,
            "generalist": {"run": str(generalist), "test": by_class.evaluate(log_p, labels)},
            "combined": {"run": "", "test": by_class.evaluate(together, labels)},
        }
        rows = [{"name": name, **record["results"][name]} for name in ("generalist", "combined")]
        for each in found:
            among = np.isin(labels, each["classes"])
            each["test_of_classes"] = {
                name: metrics.evaluate(z[among], labels[among])
                for name, z in (("generalist", log_p), ("combined", together))
            }
        tables.networks(rows)
        return record["results"]


@register("stage", "specialist", role="teacher", trains="specialist", is_part=True)
def specialist(
    config: Mapping,
    run_dir: Path,
    *,
    run: rules.Path,
    classes: Annotated[list[int], rules.integers(0)],
    specialist: Training,
) -> dict:
    """Train a network that begins as the generalist `run` to tell `classes` apart, all others being one, the last.

    Half of its training images are all of its classes, half are drawn from the others. `dustbin_shift` in the results
    is what its logit of the others is to be raised by, because it saw too few of them.
    """
    from kdrun.models import surgery
    from kdrun.stages import job
    from kdrun.teachers import checkpoint
    from kdrun.training.job import InitialWeights

    generalist, seed = Path(run), config["seed"]
    whole = datasets.load(config["data"])
    dataset = _specialised(whole, classes, seed)
    weights = sources.weights_of(generalist)
    depends = identity.of_specialist(config, whole.sha256, [weights])
    with recording(run_dir, config, depends, seed=seed, dataset_sha256=whole.sha256) as record:
        network = checkpoint.load(generalist, "float32")
        begins = {layer.name: layer.get_weights() for layer in network.layers}
        classifier = surgery.classifier(network)
        begins[classifier.name] = [_with_dustbin(array, classes) for array in classifier.get_weights()]

        def begin(model) -> None:
            for name, weights_of_layer in begins.items():
                model.get_layer(name).set_weights(weights_of_layer)

        # the seed draws the others
        initial_weights = InitialWeights({"generalist": weights, "classes": classes, "seed": seed}, begin)
        theirs = runs.read(generalist)
        model = theirs["model"]
        settings = job.settings_of(config, specialist, seed, preparation.of_run(theirs))
        made = job.training_job(config, dataset, model, settings, initial_weights=initial_weights)
        results = job.train(made, config, run_dir, record)
        others = np.isin(whole.train.labels, classes, invert=True).sum()
        seen = (dataset.train.labels == len(classes)).sum()
        results["dustbin_shift"] = float(np.log(others / seen))
        return results


def confusable(log_p: np.ndarray, clusters: int) -> list[list[int]]:
    """Classes in so many clusters by how often log-probabilities [n, C] hold them possible together; those of one
    class are left out. Average linkage over minus the log of the mean product of two classes' probabilities."""
    from scipy.cluster import hierarchy
    from scipy.spatial import distance

    p = np.exp(log_p)
    distances = -np.log(np.maximum(p.T @ p / len(p), 1e-300))
    np.fill_diagonal(distances, 0.0)
    tree = hierarchy.linkage(distance.squareform(distances, checks=False), "average")
    of_class = hierarchy.fcluster(tree, clusters, "maxclust")
    found = [np.flatnonzero(of_class == number).tolist() for number in np.unique(of_class)]
    return sorted(classes for classes in found if len(classes) > 1)


def combined(log_p: np.ndarray, specialists: Sequence[tuple[Sequence[int], np.ndarray]]) -> np.ndarray:
    """Probabilities q [n, C] that are nearest to the generalist's [n, C] and to those of the specialists asked.

    Asked are those to whose classes the generalist's most probable one belongs. q minimises KL(p ‖ q) + Σ KL(p_m ‖ q),
    q's other classes together being the specialist m's last (arXiv 1503.02531, equation 5): the likelihood of counts
    some of which are of several classes together, so expectation and maximisation get there, and nowhere else.
    """
    p = np.exp(log_p)
    q, first = p.copy(), log_p.argmax(axis=1)
    asked = [(list(classes), np.exp(of_classes), np.isin(first, classes)) for classes, of_classes in specialists]
    for _ in range(_ROUNDS):
        total, count = p.copy(), np.ones(len(p))
        for classes, p_m, here in asked:
            others = np.delete(q, classes, axis=1).sum(axis=1)
            shares = q * (p_m[:, -1] / np.maximum(others, 1e-300))[:, np.newaxis]
            shares[:, classes] = p_m[:, :-1]
            total += shares * here[:, np.newaxis]
            count += here
        before, q = q, total / total.sum(axis=1, keepdims=True)
        if np.abs(q - before).max() < 1e-12:
            break
    return q


def _check_shown(config: Mapping) -> None:
    """Raises InputError where specialists, who begin as the generalist, are to be shown images in another way."""
    data = {"normalise": "none", **runs.read(config["run"])["config"]["data"]}
    for key in ("image_size", "normalise"):
        if data[key] != config["teacher"][key]:
            raise InputError(
                f"run: {config['run']} was trained with data.{key}={data[key]}, and specialists begin as it: "
                f"teacher.{key} is {config['teacher'][key]}. Set teacher.{key}={data[key]}, or give another generalist."
            )


def _said(config: Mapping, run_dir: Path, dataset: datasets.Dataset, split: str) -> np.ndarray:
    """A network's log-probabilities of a split's images, float64 [n, C]."""
    from kdrun.evaluation.inference import compiled_inference, logits
    from kdrun.runtime import precision
    from kdrun.teachers import checkpoint

    images = getattr(dataset, split).images
    record = runs.read(run_dir)
    precision.prepare_machine()
    model = checkpoint.load(run_dir, record["precision"])
    infer = compiled_inference(model, images.shape[1:], config["evaluation_batch_size"], preparation.of_run(record))
    return metrics.log_softmax(metrics.check_finite(logits(infer, images), f"on the {split} split, by {run_dir}"))


def _log_probabilities(run_dir: Path, dustbin_shift: float) -> np.ndarray:
    """A specialist's log-probabilities on the test set, float64; the last class's logit raised first."""
    z = predictions.read(run_dir)[1].astype(np.float64)
    z[:, -1] += dustbin_shift
    return metrics.log_softmax(z)


def _named(classes: Sequence[int], names: Sequence[str]) -> str:
    """Classes by name, for a line of the log."""
    return ", ".join(texts.short(str(names[label]), 40) for label in classes)


def _tested(run_dir: Path) -> dict:
    results = runs.read(run_dir)["results"]
    return {"test": results["test"]["best"], "dustbin_shift": results["dustbin_shift"]}


def _specialised(dataset: datasets.Dataset, classes: Sequence[int], seed: int) -> datasets.Dataset:
    """The dataset as one of `classes` by their place, all others being one more class; of these, training and
    validation have no more images than of the classes."""
    random = np.random.default_rng([seed, 0, batches.OTHERS])

    def relabelled(split: datasets.Split, balanced: bool) -> datasets.Split:
        places = np.full(dataset.num_classes, len(classes), np.int32)
        places[list(classes)] = np.arange(len(classes))
        labels = places[split.labels]
        ours, others = np.flatnonzero(labels < len(classes)), np.flatnonzero(labels == len(classes))
        if balanced:
            others = random.permutation(others)[: len(ours)]
        kept = np.sort(np.concatenate([ours, others]))
        return datasets.Split(chosen(split.images, kept), labels[kept])

    return dataset._replace(
        train=relabelled(dataset.train, True),
        validation=relabelled(dataset.validation, True),
        test=relabelled(dataset.test, False),
        num_classes=len(classes) + 1,
        class_names=(*(dataset.class_names[label] for label in classes), "others"),
    )


def _with_dustbin(array: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    """A classifier's kernel or bias with columns for `classes`, and the mean of the others as one for them all."""
    others = np.delete(array, classes, axis=-1).mean(axis=-1, keepdims=True)
    return np.concatenate([array[..., list(classes)], others], axis=-1)

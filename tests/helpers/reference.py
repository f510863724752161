"""What kdrun computes, computed in another way: images by NumPy, a plain forward pass, measures in float64."""

import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np

from kdrun.data import datasets


def record(run_dir: Path) -> dict:
    """A run's run.json."""
    return json.loads((run_dir / "run.json").read_text())


def split(name: str, validation: int, train: int = 0, test: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """MNIST's images float32 [n, 28, 28, 1] in [0, 1] and labels of a split of these sizes, validation first."""
    with np.load(Path(datasets.__file__).with_name("mnist.npz")) as mnist:
        x, y = (mnist[f"{array}_{'test' if name == 'test' else 'train'}"] for array in "xy")
    part = {"validation": slice(validation), "train": slice(validation, validation + train), "test": slice(test)}[name]
    return x[part, ..., np.newaxis].astype(np.float32) / 255, y[part].astype(np.int64)


def network(run_dir: Path, which: str):
    """A tf_keras network of the run's kind with its best or last weights, from the file."""
    from kdrun.models import build as models

    found = record(run_dir)
    # of another seed: all that it says is from the file
    made = models.build(found["model"], tuple(found["image_shape"]), found["num_classes"], 987, found["precision"])
    made.load_weights(run_dir / "checkpoints" / f"{which}.weights.h5")
    return made


def logits(run_dir: Path, which: str, images: np.ndarray) -> np.ndarray:
    """The logits of a run's best or last weights: dropout off, moving statistics; all images in one batch."""
    return network(run_dir, which)(images, training=False).numpy().astype(np.float64)


def softmax(z: np.ndarray) -> np.ndarray:
    """Probabilities, float64."""
    e = np.exp(np.asarray(z, np.float64) - np.max(z, axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def cross_entropy(z: np.ndarray, labels: np.ndarray) -> float:
    """Mean of -log p(label)."""
    z = np.asarray(z, np.float64)
    return float(np.mean(np.logaddexp.reduce(z, axis=1) - z[np.arange(len(z)), labels]))


def divergence(teacher: np.ndarray, student: np.ndarray, temperature: float = 1.0) -> float:
    """Mean KL(softmax(v/T) || softmax(z/T))."""
    log_p, log_q = (
        z / temperature - np.logaddexp.reduce(z / temperature, axis=1, keepdims=True)
        for z in (np.asarray(teacher, np.float64), np.asarray(student, np.float64))
    )
    return float(np.mean(np.sum(np.exp(log_p) * (log_p - log_q), axis=1)))


def measures(z: np.ndarray, labels: np.ndarray, teacher: np.ndarray | None = None) -> dict[str, float]:
    """What run.json says of a split."""
    predicted = z.argmax(axis=1)
    found = {
        "accuracy": float(np.mean(predicted == labels)),
        "errors": int(np.sum(predicted != labels)),
        "count": len(labels),
        "cross_entropy": cross_entropy(z, labels),
    }
    if teacher is not None:
        found["teacher_kl"] = divergence(teacher, z)
        found["teacher_agreement"] = float(np.mean(predicted == teacher.argmax(axis=1)))
    return found


def by_class(z: np.ndarray, labels: np.ndarray) -> dict:
    """What run.json says of a split's classes, counted image by image; the first one of the highest logit is taken."""
    classes = z.shape[1]
    confusion = [[0] * classes for _ in range(classes)]
    for row, label in zip(z.tolist(), labels.tolist(), strict=True):
        confusion[label][row.index(max(row))] += 1
    of_classes = [row[label] / sum(row) if sum(row) else None for label, row in enumerate(confusion)]
    present = [value for value in of_classes if value is not None]
    balanced = math.fsum(present) / len(present)
    return {"class_accuracy": of_classes, "balanced_accuracy": balanced, "confusion": confusion}


def density(x: np.ndarray, degrees: float) -> np.ndarray:
    """Student's t distribution's."""
    scale = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(degrees * math.pi)
    return scale * (1 + x**2 / degrees) ** (-(degrees + 1) / 2)


def two_sided(t: float, degrees: float) -> float:
    x = np.linspace(0, t, 400_001)
    return 1 - 2 * np.trapezoid(density(x, degrees), x)


def quantile(level: float, degrees: float) -> float:
    """By bisection of the integral."""
    low, high = 0.0, 200.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if two_sided(middle, degrees) > 1 - level else (low, middle)
    return low


def variance(values) -> Fraction:
    middle = sum(values, Fraction(0)) / len(values)
    return sum(((value - middle) ** 2 for value in values), Fraction(0)) / (len(values) - 1)


def crossed(d, level: float = 0.95) -> tuple[float, float, float, float]:
    """Of differences, fractions [seeds][images]: their mean, its interval over seeds and images crossed, and p."""
    n, images = len(d), len(d[0])
    of_seeds = float(variance([sum(row) for row in d])) / images
    of_images = float(variance([sum(row[i] for row in d) for i in range(images)])) / n
    total = of_seeds + of_images
    degrees = total**2 / (of_seeds**2 / (n - 1) + of_images**2 / (images - 1))
    error = math.sqrt(total / (n * images))
    gain = float(sum(map(sum, d))) / (n * images)
    half = quantile(level, degrees) * error
    return gain, gain - half, gain + half, two_sided(abs(gain) / error, degrees)

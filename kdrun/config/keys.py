"""Every key of a config, each with its type and range.

Those of a net, a data source, an objective, an optimizer, a tracker or a stage stand with their owner: see schema.
"""

import math
from collections.abc import Mapping
from typing import Annotated, Any, TypedDict

from kdrun.config import rules
from kdrun.config.rules import Amount, Count, Fraction, Path, Paths, Positive, Size, Temperature, integer, one_of

Keys = Mapping[str, Any]  # of an owner: its `name`, and what its function's signature says


MOST_PIXELS = 4096  # a side of an image that a network sees
Pixels = Annotated[int, integer(1, MOST_PIXELS)]
Normalise = Annotated[str | list, rules.normalisation]


class Colour(TypedDict):
    """Strengths of random changes of colour."""

    brightness: Amount
    contrast: Amount
    saturation: Amount
    hue: Annotated[float, rules.number(0, 0.5)]


class Augment(TypedDict):
    """Of the images that a network learns from."""

    jitter: Annotated[int, integer(0, 64)]
    flip: bool
    resized_crop: Annotated[float, rules.part]
    colour: Colour
    cutout: Annotated[float, rules.side]
    views: Annotated[int | None, integer(1, optional=True)]
    seed: Annotated[int, integer(0, 2**31 - 1)]


class Training(TypedDict):
    """How long a network is trained, and on how many images a step."""

    epochs: Count
    patience: Annotated[int | None, integer(1, optional=True)]
    batch_size: Count


class Mixing(TypedDict):
    """What a network is trained on instead of images and their labels as they are."""

    mixup: Amount
    cutmix: Amount
    label_smoothing: Annotated[float, rules.number(0, 1, high_included=False)]


class Role(Training, Mixing):
    """What teacher and student each have of their own."""

    image_size: Pixels
    normalise: Normalise
    augment: Augment
    train_on_validation: bool
    initial_weights: Annotated[str | None, rules.optional(rules.path)]
    freeze: Annotated[int | str | None, rules.number_or_name]
    new_learning_rate: Annotated[float | None, rules.optional(rules.number(0, low_included=False))]
    model: Keys
    optimizer: Keys


class Input(TypedDict):
    """What a teacher from elsewhere is given."""

    size: Annotated[int | None, integer(1, MOST_PIXELS, optional=True)]
    channels: Annotated[str | None, rules.optional(rules.channels)]
    layout: Annotated[str | None, rules.optional(one_of("NHWC", "NCHW", "NHW"))]
    scale: Annotated[float | None, rules.optional(rules.number(0, low_included=False))]
    mean: Annotated[float | list[float], rules.of_channels(-math.inf)]
    std: Annotated[float | list[float], rules.of_channels(0)]


class Teacher(Role):
    """The teacher, or those who are to teach."""

    run: Paths
    combine: Annotated[str, one_of("probabilities", "logits")]
    weights: Annotated[list[float] | None, rules.optional(rules.numbers(0))]
    logits: Annotated[str | None, rules.optional(rules.path)]
    file: Annotated[str | list[str] | None, rules.optional(rules.paths)]
    input: Input
    classes: Annotated[str | list[int] | list[str] | None, rules.optional(rules.outputs)]
    weak: Annotated[str, one_of("refuse", "allow")]
    time_limit: Positive
    overlap: Annotated[str, one_of("refuse", "allow")]
    shuffle: Annotated[str, one_of("none", "within_class", "all")]
    seed: Annotated[int, integer(0, 2**31 - 1)]
    cache: Annotated[str, rules.switch]
    cache_features: bool
    inference_batch_size: Count


class Student(Role):
    """The student, alone or distilled."""

    classifier: Annotated[str, one_of("own", "teacher")]
    quantize: Annotated[str | None, rules.optional(one_of("int8"))]


class Distill(Training, Mixing):
    """How a student is distilled."""

    peers: Annotated[int, integer(0, 16)]


class Data(TypedDict):
    """What all data sources have in common; a source's own keys stand beside these."""

    image_size: Pixels
    normalise: Normalise
    validation_size: Size
    train_on_validation: bool
    train_size: Annotated[int | None, integer(1, optional=True)]
    test_size: Size
    split: Annotated[str, one_of("first", "stratified")]
    split_seed: Annotated[int, integer(0, 2**31 - 1)]
    on_device: Annotated[str, rules.switch]
    transfer: Annotated[str | None, rules.optional(rules.path)]
    transfer_store: Path
    train_fraction: Annotated[float, rules.number(0, 1, low_included=False)]
    include_classes: Annotated[list[int] | None, rules.optional(rules.integers(0))]
    exclude_classes: Annotated[list[int], rules.classes]
    augment: Augment


class Schedule(TypedDict):
    """What all optimizers have in common."""

    learning_rate: Positive
    decay: Annotated[str, one_of("all", "weights")]
    coupled: bool
    clip_norm: Annotated[float | None, rules.optional(rules.number(0, low_included=False))]
    ema: Annotated[float | None, rules.optional(rules.number(0, 1, low_included=False, high_included=False))]
    schedule: Annotated[str, one_of("constant", "cosine", "step")]
    step_epochs: Annotated[list[int] | None, rules.optional(rules.integers(1))]
    step_factor: Annotated[float, rules.number(0, 1, low_included=False)]
    warmup_epochs: Amount


class Weight(TypedDict):
    """What all objectives have in common; their functions do not get it."""

    weight: Amount
    weight_end: Annotated[float | None, rules.optional(rules.number(0))]
    warmup_epochs: Amount


class Checkpoint(TypedDict):
    """When training states are saved."""

    every_minutes: Positive


class Compare(TypedDict):
    """How runs are held against each other."""

    margin: Amount


class Export(TypedDict):
    """What a network is exported as, and what is asked of the files."""

    format: Annotated[list[str], rules.some_of("saved_model", "litert", "onnx", empty=True)]
    quantize: Annotated[list[str], rules.some_of("none", "float16", "dynamic", "int8")]
    output: Annotated[str, one_of("probabilities", "logits")]
    calibration_images: Count
    most_loss: Annotated[float | None, rules.optional(rules.number(0))]


class Tensorboard(TypedDict):
    """What curves are shown with."""

    histograms: bool


class Config(TypedDict):
    """All keys that every stage has; a stage's own stand beside these."""

    stage: str
    seed: Annotated[int, integer(0, 2**31 - 1)]
    epochs: Count
    patience: Annotated[int | None, integer(1, optional=True)]
    batch_size: Count
    temperature: Temperature
    temperature_end: Annotated[float | None, rules.optional(rules.temperature)]
    alpha: Fraction
    alpha_end: Annotated[float | None, rules.optional(rules.number(0, 1))]
    alpha_warmup_epochs: Amount
    annealing: Annotated[str, one_of("linear", "cosine")]
    precision: Annotated[str, one_of("auto", "float32", "mixed_bfloat16", "mixed_float16")]
    threads: Annotated[int | str, rules.auto_or(integer(1, 1024))]
    devices: Annotated[int | str, rules.auto_or(integer(1, 1024))]
    sync_batch_norm: bool
    cluster: Annotated[str | None, rules.optional(rules.text)]
    task: Annotated[int | None, integer(0, optional=True)]
    cluster_timeout: Annotated[float, rules.number(1, 86_400)]
    evaluation_batch_size: Count
    resume: Annotated[str | None, rules.optional(rules.path)]
    outputs: Path
    sweep: Annotated[str | None, rules.folder_name]
    cache_dir: Path
    reuse: bool
    workers: Annotated[int | str, rules.auto_or(integer(1, 1024))]
    print: Annotated[str, one_of("text", "json")]
    seeds: Annotated[int | list[int] | None, rules.seeds]
    arms: Annotated[list[str], rules.some_of("student", "distill")]
    teachers: Annotated[int | str | None, rules.teachers]
    controls: Keys
    plugins: Annotated[list[str], rules.files]
    measure_latency: bool
    data: Keys
    optimizer: Keys
    objective: Keys
    tracker: Keys
    teacher: Teacher
    student: Student
    distill: Distill
    checkpoint: Checkpoint
    compare: Compare
    export: Export
    tensorboard: Tensorboard


DATA = tuple(Data.__annotations__)
WEIGHT = tuple(Weight.__annotations__)

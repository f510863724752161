"""What a page begins with, of made-up runs: the verdict's parts, its sign, and the numbers that it is about."""

import gathered
import numpy as np
import pandas as pd
import pytest

from kdrun.comparison import exports, sentences, studies
from kdrun.reports import headline

PARTS = {
    "No gain (a; b (c) d); it closes 5 to 9 % of the gap.": (
        "No gain",
        "a; b (c) d.",
        "It closes 5 to 9 % of the gap.",
    ),
    "Harm: -1 points (p = 1).": ("Harm: -1 points", "p = 1.", ""),
    "Not decided (p): which may be luck. About 9 seeds.": ("Not decided", "p.", "Which may be luck. About 9 seeds."),
    "Nothing.": ("Nothing.", "", ""),
    "No end (of (this)": ("No end", "of (this)", ""),
}


@pytest.mark.parametrize("sentence", PARTS)
def test_a_sentence_in_parts(sentence):
    assert headline.parts(sentence) == PARTS[sentence]


def judged(*wrong: int, size: int = 16000) -> headline.Headline:
    """The headline of four seeds of 4,000 images: so many wrong of the teacher, the students alone, the distilled."""
    rows = []
    for number, (kind, count) in enumerate(zip(("teacher", "student", "distill"), wrong, strict=True)):
        for seed in range(1 if kind == "teacher" else 4):
            given = {"weights": "t", "parameters": size} if kind == "teacher" else {}
            right = gathered.counts(4000, 4000 - count, order=7 * number + seed)
            rows.append(gathered.run(kind, kind, seed, right, **given))
    judgement = studies.judge(pd.DataFrame(rows))
    files = [
        exports.Row("distill", 0, name, "litert", "none", accuracy, size, 1e-3, 2e-3, 0.9, (0.0, 0.0, 0.0), run)
        for name, accuracy, size, run in (
            ("model.tflite", 0.9, 80_000, "distill/0/t"),
            ("model_int8.tflite", 0.89, 21_000, "distill/0/t"),
            ("other.tflite", 0.5, 1_000, "student/0/"),
        )
    ]
    said = sentences.said(judgement)
    (found,) = headline.headlines(judgement, said, files)
    assert said[0].sentence.startswith(found.claim) and found.notes == said[0].notes
    return found


def test_a_student_of_its_teachers_size_has_all_of_its_parameters():
    (size,) = [number for number in judged(40, 480, 200, size=1000).numbers if number.name == "student's parameters"]
    assert size.note == "100 % of the teacher's 1,000"


def test_the_numbers_are_those_of_the_sentence_and_its_groups():
    found = judged(40, 480, 200)
    assert (found.tone, found.sign) == ("helped", "▲") and found.claim.startswith("Distilling helped: +7.00 points")
    numbers = {number.name: (number.value, number.note) for number in found.numbers}
    interval = numbers.pop("gain, points")
    assert interval[0] == "+7.00" and found.basis.startswith(f"{interval[1]}, p = ")
    assert numbers == {
        "student alone": ("88.00 %", "test accuracy, 4 seeds"),
        "distilled student": ("95.00 %", "test accuracy, 4 seeds"),
        "teacher": ("99.00 %", "test accuracy, 1 seed"),
        "student's parameters": ("1,000", "6.2 % of the teacher's 16,000"),
        "smallest file": ("21 kB", "model_int8.tflite, 89.00 %"),
    }


def test_a_verdict_has_a_sign_and_words_beside_its_colour():
    harm, even = judged(40, 200, 480), judged(40, 200, 200)
    assert (harm.tone, harm.sign) == ("harm", "▼") and harm.claim.startswith("Distilling did harm")
    assert even.tone == "" and even.sign in "=?" and even.claim.startswith(("No gain", "Not decided"))
    nothing = gathered.frame(gathered.run("student", "a", 0, np.ones(9, bool)))
    (found,) = headline.headlines(studies.judge(nothing), [], [])
    assert (found.sign, found.claim, found.numbers) == ("–", sentences.NOTHING, [])

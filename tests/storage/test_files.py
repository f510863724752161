"""What is written as JSON is read as it was, and a list of numbers is one line of it."""

import json

from hypothesis import given
from hypothesis import strategies as st

from kdrun.storage import files

TEXTS = st.text(alphabet=st.sampled_from('[]{},:"\\\n \u20aca1-'), max_size=50)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(TEXTS, inner, max_size=5),
)


@given(value=PLAIN)
def test_any_plain_value_is_read_as_it_was_written(value, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "value.json"
    files.write_json(path, value)
    assert json.loads(path.read_text()) == value


def test_numbers_and_short_texts_are_on_a_line(tmp_path):
    value = {"matrix": [[1, 0], [None, -2.5e-7]], "names": ["a", "b, c"], "said": ["x" * 60, "y"], "none": []}
    files.write_json(tmp_path / "value.json", value | {"mixed": [1, {"a": [True, False]}]})
    assert (tmp_path / "value.json").read_text().splitlines() == [
        "{",
        '  "matrix": [',
        "    [1, 0],",
        "    [null, -2.5e-07]",
        "  ],",
        '  "names": ["a", "b, c"],',
        '  "said": [',
        f'    "{"x" * 60}",',
        '    "y"',
        "  ],",
        '  "none": [],',
        '  "mixed": [',
        "    1,",
        "    {",
        '      "a": [true, false]',
        "    }",
        "  ]",
        "}",
    ]

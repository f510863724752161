"""Pictures named in a table: a CSV file of paths and labels."""

import csv
import io
import os
from pathlib import Path
from typing import Unpack

from kdrun.config import rules
from kdrun.data.listing import Listing, of_files, of_texts, some, split_of
from kdrun.data.source import existing
from kdrun.data.store import Keys, StoredSource
from kdrun.errors import InputError
from kdrun.registry import register
from kdrun.storage import files

_COLUMNS = "path, label and, if it is known, split"


@register("data", "table")
def table(*, path: rules.Path, **keys: Unpack[Keys]) -> StoredSource:
    """A CSV file with the columns path, label and perhaps split; paths are relative to it. Decoded once, and kept in
    `store`."""
    return StoredSource(listed(existing(path, f"a .csv file with the columns {_COLUMNS}")), **keys)


def listed(path: Path) -> Listing:
    """The pictures that a table names. Raises InputError for what cannot be read, or names what is not there."""
    rows = _rows(path)
    if not rows:
        raise InputError(f"data.path: {path} has no rows below its first line. It must have the columns {_COLUMNS}.")
    names = [row["path"] for row in rows]
    paths = [os.path.join(path.parent, os.path.expanduser(name)) for name in names]
    if missing := [name for name, each in zip(names, paths, strict=True) if not os.path.isfile(each)]:
        raise InputError(
            f"data.path: {path} names {len(missing):,} pictures that are not there: {some(missing)}. Paths are "
            f"relative to {path.parent}."
        )
    labels, class_names = of_texts(path, [row["label"] for row in rows])
    splits = [split_of(path, row.get("split") or "train", f"row {place}") for place, row in enumerate(rows, 2)]
    return of_files(path, names, paths, labels=labels, splits=splits, class_names=class_names)


def _rows(path: Path) -> list[dict[str, str]]:
    try:
        text = files.read(path, most=1 << 30).decode("utf-8-sig")
        delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
        rows = list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"data.path: {path} cannot be read as a CSV file ({' '.join(str(error).split())}).") from error
    columns = list(rows[0]) if rows else ["path", "label"]
    if missing := [name for name in ("path", "label") if name not in columns]:
        had = ", ".join(str(name) for name in columns)
        raise InputError(f"data.path: {path} has no column {missing[0]}: it has {had!a}. It must have {_COLUMNS}.")
    for place, row in enumerate(rows, 2):
        if None in row or None in row.values() or not row["path"] or not row["label"]:
            raise InputError(f"data.path: {path}: row {place} has not a value for each column. Mend it.")
    return rows

"""What people found on the parts of a period that they checked: a table, read for `plants.prevalence`.

A row is a part: `part_id`, `class` (the plant's word) or `is_defect`, `sample_prob`, how likely it was to be checked (1
for rejects and reviews, the audit sample's share for parts that had passed), and `lot` where that is known. Parts that
customers sent back (`source` is return) were picked by what was wrong with them, so they tell nothing of a rate and are
left out.
"""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from plants.errors import InputError
from plants.labels import RETURN
from plants.plant import Plant

YES, NO = ("true", "1", "yes"), ("false", "0", "no")


class Checked(NamedTuple):
    """The checked parts of a period, by column [N]."""

    is_defect: npt.NDArray[np.bool_]
    sample_prob: npt.NDArray[np.float64]
    num_returned: int
    """Parts of the table that were left out, because customers sent them back."""
    lots: npt.NDArray[np.str_] | None
    """None without a column `lot`; a part that names none there is a lot of its own."""


def read_checked(data: bytes, *, plant: Plant, file: str) -> Checked:
    """The checked parts in a CSV (UTF-8) or Parquet file of this name.

    Raises InputError that names the column and the first part at fault.
    """
    table = _table(data, plant=plant, file=file)

    def fault(what: str, *, field: str, remedy: str | None = None) -> InputError:
        return InputError(what, plant=plant.name, file=file, field=field, remedy=remedy)

    judged = [name for name in ("class", "is_defect") if name in table]
    for name in ("part_id", "sample_prob"):
        if name not in table:
            raise fault(f"there is no such column; there are {', '.join(map(str, table.columns))}", field=name)
    if len(judged) != 1:
        remedy = "Write what was found as a plant class, or as true and false"
        raise fault(
            f"needs one of the columns class and is_defect, and has {len(judged)}", field="class", remedy=remedy
        )
    if table.empty:
        raise fault("holds no part", field="part_id", remedy="Name the parts that people checked")
    texts = table.astype(str).apply(lambda column: column.str.strip())
    is_returned = texts.get("source", pd.Series("", index=texts.index)).str.lower() == RETURN
    texts = texts[~is_returned]
    if texts.empty:
        raise fault("holds returned parts alone", field="source", remedy="Add what the line itself has checked")
    twice = texts.loc[texts["part_id"].duplicated(), "part_id"]
    if len(twice):
        remedy = "Write each part once, with the last word on it"
        raise fault(
            f"{len(twice)} parts stand there twice, the first is {twice.iloc[0]!r}", field="part_id", remedy=remedy
        )
    (column,) = judged
    values = texts[column] if column == "class" else texts[column].str.lower().str.removesuffix(".0")
    bad = set(plant.defects) if column == "class" else set(YES)
    known = set(plant.classes) if column == "class" else {*YES, *NO}
    strange = ~values.isin(known)
    if strange.any():
        part, value = texts.loc[strange, ["part_id", column]].iloc[0]
        words = f"{value!r} of part {part!r} is not among {', '.join(sorted(known))}"
        raise fault(words, field=column)
    prob = pd.to_numeric(texts["sample_prob"], errors="coerce").to_numpy(dtype=np.float64)
    wrong = np.flatnonzero(~((prob > 0) & (prob <= 1)))
    if len(wrong):
        part, value = texts[["part_id", "sample_prob"]].iloc[wrong[0]]
        remedy = "Write 1 for rejects and reviews, and the audit sample's share, such as 0.005, for the others"
        raise fault(
            f"{value!r} of part {part!r} is no probability above 0, at most 1", field="sample_prob", remedy=remedy
        )
    lots = _lots(table[~is_returned]) if "lot" in table else None
    return Checked(values.isin(bad).to_numpy(dtype=bool), prob, int(is_returned.sum()), lots)


def _lots(table: pd.DataFrame) -> npt.NDArray[np.str_]:
    names, alone = table["lot"].fillna("").astype(str).str.strip(), "\0" + table["part_id"].astype(str)
    return names.where(names != "", alone).to_numpy(dtype=np.str_)


def _table(data: bytes, *, plant: Plant, file: str) -> pd.DataFrame:
    try:
        if file.lower().endswith((".parquet", ".pq")):
            found: pd.DataFrame = pq.read_table(io.BytesIO(data)).to_pandas()
            return found
        text = data.decode("utf-8-sig")
        separator = max(",;\t", key=text.partition("\n")[0].count)
        return pd.read_csv(io.StringIO(text), sep=separator, dtype=str, keep_default_na=False)
    except UnicodeDecodeError:
        raise InputError("is not UTF-8", plant=plant.name, file=file, remedy="Save it as CSV UTF-8") from None
    except (pa.ArrowInvalid, ValueError) as error:
        words = str(error).strip().split("\n")[0]
        raise InputError(f"is not a readable table ({words})", plant=plant.name, file=file) from None

"""Checked parts are read from the table people kept, and every fault of it names the column and the part."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest

from plants.checked import read_checked
from plants.errors import InputError
from plants.plant import Plant

MILL = Plant.model_validate({"name": "mill", "images": "i", "classes": {"gut": "ok", "Riss": "crack"}, "ok": ["gut"]})


def read(text: str | bytes, *, file: str = "march.csv"):
    return read_checked(text.encode() if isinstance(text, str) else text, plant=MILL, file=file)


@pytest.mark.parametrize(
    "text",
    [
        "part_id,class,sample_prob\n4711,Riss,1\n4712,gut,0.005\n",
        "\ufeffpart_id;is_defect;sample_prob\n4711; TRUE ;1.0\n4712;0;0.005\n",
        "part_id\tis_defect\tsample_prob\n4711\tyes\t1\n4712\tno\t0.005\n",
    ],
)
def test_a_class_or_a_yes_says_what_was_found(text):
    found = read(text)
    assert found.is_defect.tolist() == [True, False]
    assert found.sample_prob.tolist() == [1.0, 0.005]


def test_lots_are_read_and_a_part_without_one_is_alone():
    text = "part_id,class,sample_prob,lot\n1,Riss,1,A 7\n2,gut,1, A 7 \n3,gut,0.005,\n4,gut,0.005, \n"
    first, second, third, fourth = read(text).lots
    assert first == second == "A 7"
    assert len({first, third, fourth}) == 3
    assert read(text.replace(",lot", ",hall")).lots is None


def test_parts_that_customers_sent_back_tell_nothing_of_the_rate_and_are_counted():
    text = "part_id,class,sample_prob,source\n1,Riss,1,import\n2,gut,0.005,\n3,Riss,1, Return \n"
    found = read(text)
    assert found.is_defect.tolist() == [True, False]
    assert found.num_returned == 1
    with pytest.raises(InputError, match="field source: holds returned parts alone"):
        read(text.replace("import", "return").replace("0.005,", "1,return"))


def test_parquet_with_typed_columns_reads_alike():
    buffer = io.BytesIO()
    columns = {"part_id": [1, 2], "is_defect": [True, False], "sample_prob": np.array([1, 0.005])}
    pd.DataFrame(columns).to_parquet(buffer)
    assert read(buffer.getvalue(), file="march.parquet").is_defect.tolist() == [True, False]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("part,class,sample_prob\n1,gut,1\n", "field part_id: there is no such column; there are part, class"),
        ("part_id,class\n1,gut\n", "field sample_prob: there is no such column"),
        ("part_id,sample_prob\n1,1\n", "field class: needs one of the columns class and is_defect, and has 0"),
        ("part_id,class,is_defect,sample_prob\n1,gut,0,1\n", "field class: needs one of .* and has 2"),
        ("part_id,class,sample_prob\n", "field part_id: holds no part"),
        (
            "part_id,class,sample_prob\n7,gut,1\n7,Riss,1\n",
            "field part_id: 1 parts stand there twice, the first is '7'",
        ),
        ("part_id,class,sample_prob\n7,Kratzer,1\n", "field class: 'Kratzer' of part '7' is not among Riss, gut"),
        ("part_id,is_defect,sample_prob\n7,perhaps,1\n", "field is_defect: 'perhaps' of part '7' is not among"),
        ("part_id,class,sample_prob\n7,gut,0\n", "field sample_prob: '0' of part '7' is no probability"),
        ("part_id,class,sample_prob\n7,gut,\n", "field sample_prob: '' of part '7' is no probability"),
        (b"part_id,class,sample_prob\n7,\xff,1\n", "is not UTF-8"),
        ("", "is not a readable table"),
    ],
)
def test_every_fault_is_one_line_that_names_plant_file_column_and_part(text, words):
    with pytest.raises(InputError, match=rf"^plant mill: file march.csv: {words}"):
        read(text)


def test_what_is_called_parquet_and_is_none_is_refused():
    with pytest.raises(InputError, match=r"plant mill: file march\.parquet: is not a readable table"):
        read("part_id,class,sample_prob\n", file="march.parquet")

from __future__ import annotations

import multiprocessing

import pytest
import sqlalchemy as sa

from cluster.database import Database, DatabaseAway
from plants.errors import InputError

tables = sa.MetaData()
things = sa.Table("things", tables, sa.Column("name", sa.String(9), primary_key=True))


def test_what_a_failed_block_wrote_is_undone(tmp_path):
    database = Database(f"sqlite:///{tmp_path}/a.db", tables)

    def fail():
        with database.begin() as connection:
            connection.execute(things.insert().values(name="a"))
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    with database.begin() as connection:
        assert connection.execute(sa.select(things)).all() == []


def _insert(database, name, barrier, outcomes):
    barrier.wait()
    with database.begin() as connection:
        connection.execute(things.insert().values(name=name))
    outcomes.put(name)


def test_processes_that_open_a_fresh_file_at_once_all_get_through(tmp_path):
    context = multiprocessing.get_context("fork")
    barrier, outcomes = context.Barrier(6), context.Queue()
    database = Database(f"sqlite:///{tmp_path}/deep/er/a.db", tables)
    children = [context.Process(target=_insert, args=(database, str(i), barrier, outcomes)) for i in range(6)]
    for child in children:
        child.start()
    assert {outcomes.get(timeout=60) for _ in children} == set("012345")
    for child in children:
        child.join()


def test_an_address_that_is_none_is_one_line():
    with pytest.raises(InputError, match="CROSSPLANT_JOURNAL_URL: is not a database address"):
        Database("routes.db", tables)


def test_a_missing_driver_is_named_with_what_to_install():
    with pytest.raises(InputError, match="no driver for oracle"), Database("oracle://u:secret@h/x", tables).begin():
        pass


def test_a_database_that_is_away_is_told_without_its_password(tmp_path):
    (tmp_path / "a.db").mkdir()
    with pytest.raises(DatabaseAway, match="does not answer"), Database(f"sqlite:///{tmp_path}/a.db", tables).begin():
        pass
    assert "secret" not in repr(Database("sqlite://u:secret@host/x", tables))


def test_a_home_that_cannot_be_made_is_one_line_that_names_the_setting(tmp_path):
    (tmp_path / "file").touch()
    database = Database(f"sqlite:///{tmp_path}/file/home/routes.db", tables)
    with pytest.raises(InputError, match=r"file/home: field CROSSPLANT_HOME: .*not a directory"), database.begin():
        pass


def test_a_closed_database_opens_again(tmp_path):
    database = Database(f"sqlite:///{tmp_path}/a.db", tables)
    for name in "ab":
        with database.begin() as connection:
            connection.execute(things.insert().values(name=name))
        database.close()
    with database.begin() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(things)).scalar() == 2

"""Every module of the room can be imported: the type checker does not look into it."""

from __future__ import annotations

import importlib
import pkgutil

import jobs


def test_every_module_of_jobs_can_be_imported():
    names = [module.name for module in pkgutil.iter_modules(jobs.__path__)]
    assert len(names) > 40
    for name in names:
        importlib.import_module(f"jobs.{name}")

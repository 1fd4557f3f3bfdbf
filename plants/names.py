"""How a plant or a fleet may be called. Apart from `plants.plant`, so that a client on a line's PC imports little."""

from __future__ import annotations

import re

from plants.errors import InputError

NAME_PATTERN = r"^[a-z0-9][a-z0-9_-]{0,62}$"


def checked_name(text: str) -> str:
    """The text, if a plant or a fleet may be called so. Raises InputError."""
    if re.fullmatch(NAME_PATTERN.strip("^$"), text):
        return text
    remedy = "Take its name in the fleet file: small letters, digits, - and _"
    raise InputError("is not a plant's name", plant=repr(text[:64]), field="plant", remedy=remedy)

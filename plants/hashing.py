"""Every hash has a purpose, so that split, canary and audit sample are independent of one another.

Not for naming content: a file or tensor is named by its plain SHA-256, and such a digest is never used for sampling.
"""

from __future__ import annotations

import hashlib


def unit_hash(purpose: str, salt: object, key: object) -> float:
    """A number in [0, 1), uniform over keys, the same on every host, independent between purposes and salts."""
    digest = hashlib.sha256(f"{purpose}|{salt}|{key}".encode("utf-8", "surrogatepass")).digest()
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53


def sha256(data: bytes) -> str:
    """The name of some bytes: 64 hex digits."""
    return hashlib.sha256(data).hexdigest()

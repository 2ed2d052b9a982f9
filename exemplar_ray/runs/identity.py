"""What makes two runs the same run: a job's identity, hashed, and how two of them differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

_HASH_LENGTH = 64


def fingerprint(identity: Mapping[str, Any]) -> str:
    """Return the SHA-256 (hex) of an identity's canonical JSON.

    >>> fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    True
    """
    canonical = json.dumps(identity, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, str]:
    """Return {key: how it differs} of two identities, in words.

    >>> differences({"top_k": 3, "seed": 0}, {"top_k": 5, "seed": 0})
    {'top_k': 'top_k: 3 there, 5 here'}
    """
    keys = [*here, *(key for key in there if key not in here)]
    return {key: _difference(key, there.get(key), here.get(key)) for key in keys if there.get(key) != here.get(key)}


def _difference(key: str, there: Any, here: Any) -> str:
    if key == "data":
        return f"{len(there or [])} shards there, {len(here)} here" if len(there or []) != len(here) else "other shards"
    there, here = (str(value)[:12] if len(str(value)) == _HASH_LENGTH else value for value in (there, here))
    return f"{key}: {there} there, {here} here"

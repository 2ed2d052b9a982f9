"""The token by which a Ray knows its own: which one is shown to it, and one for a Ray of our own."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import Any

from exemplar_ray.errors import UsageError

_MODE, _TOKEN, _PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
_USUAL = "~/.ray/auth_token"

HOW = (
    f"set {_MODE}=token, and put the token that `ray get-auth-token` prints on its head into {_USUAL}, "
    f"or into a file that {_PATH} names"
)


class RayToken:
    """What Ray's processes find in their environment, which those of a Ray of our own have from this process.

    Ray listens to the whole network, so one of our own wants a token, too. Left to itself it would write that
    to `~/.ray/auth_token`, or take what is there; every later `ray start` of this user then wants it.

    Args:
        raylet: Ray's module of that name, which remembers what it read.
    """

    def __init__(self, raylet: Any) -> None:
        self._raylet = raylet
        self._before: dict[str, str | None] = {}

    def make(self) -> None:
        """Put a new token into the environment, unless authentication is switched off there."""
        if os.environ.get(_MODE, "token").lower() == "token":
            self._before = {name: os.environ.get(name) for name in (_MODE, _TOKEN)}
            os.environ.update({_MODE: "token", _TOKEN: secrets.token_hex(32)})
        self._read_again()

    def shown(self, address: str) -> str | None:
        """Return the token that Ray will show at an address; None if it will show none.

        Raises:
            UsageError: there is none where it is said to be.
        """
        self._read_again()
        mode = os.environ.get(_MODE)
        # As Ray does, where it finds the address itself.
        if (mode is None and address != "auto") or (mode is not None and mode.lower() != "token"):
            return None
        path = os.environ.get(_PATH)
        # Ray would abort this process.
        if not os.environ.get(_TOKEN) and path and not _holds_something(path):
            raise UsageError(f"RAY_AUTH_TOKEN_PATH names '{path}', where no token can be read; {HOW}")
        loader = self._raylet.AuthenticationTokenLoader.instance()
        if loader.has_token(ignore_auth_mode=True):
            return str(loader.get_raw_token(ignore_auth_mode=True))
        if mode is not None:
            raise UsageError(f"RAY_AUTH_MODE is 'token', and there is none; {HOW}")
        return None

    def restore(self) -> None:
        """Leave the environment as it was before `make`."""
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if self._before:
            self._before = {}
            self._read_again()

    def _read_again(self) -> None:
        # A notebook may have set another since Ray was imported.
        self._raylet.Config.initialize("")
        self._raylet.AuthenticationTokenLoader.instance().reset_cache()


def source() -> str:
    """Say where a token that is shown comes from."""
    if os.environ.get(_TOKEN):
        return _TOKEN
    return f"the file that {_PATH} names" if os.environ.get(_PATH) else _USUAL


def _holds_something(path: str) -> bool:
    try:
        return bool(Path(path).expanduser().read_text().strip())
    except (OSError, UnicodeError):
        return False

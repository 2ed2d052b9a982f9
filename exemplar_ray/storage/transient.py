"""Which errors another attempt may mend, whatever library they come from; and trying again, with back-off.

One rule for all that reads and writes: shards, their footers, listings, records, tasks. Not being able to look is not
a difference, and never a reason to give work up.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")

# OSErrors that trying again does not mend.
_PERMANENT = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError, FileExistsError)

# Errors of connections that are no OSErrors, and of a GPU's memory that are no MemoryErrors, by the names of their
# classes: none of these libraries is imported for that. A class counts with all that inherit from it.
_OF_CONNECTIONS = {
    "aiohttp.client_exceptions.ClientConnectionError",
    "aiohttp.client_exceptions.ClientPayloadError",
    "asyncio.exceptions.IncompleteReadError",
    "azure.core.exceptions.ServiceRequestError",
    "azure.core.exceptions.ServiceResponseError",
    "botocore.exceptions.ConnectionError",
    "botocore.exceptions.HTTPClientError",
    "botocore.exceptions.IncompleteReadError",
    "botocore.exceptions.ResponseStreamingError",
    "http.client.HTTPException",
    "httpx.TransportError",
    "httpx2.TransportError",
    "torch.OutOfMemoryError",
    "urllib3.exceptions.HTTPError",
}

# Answers of servers that may be another one later: too early, too many requests, and what is the server's own.
_TRANSIENT_STATUS = {408, 425, 429, 500, 502, 503, 504}

ATTEMPTS = 4
_FIRST_PAUSE_SECONDS = 0.5


def is_transient(error: BaseException) -> bool:
    """Whether another attempt may fare better: connections, time-outs, servers in trouble, memory that ran out.

    What a server answered with a status is judged by that status.
    """
    status = _status_of(error)
    if status is not None:
        return status in _TRANSIENT_STATUS
    if isinstance(error, _PERMANENT):
        return False
    if isinstance(error, (OSError, MemoryError)):
        return True
    return any(f"{cls.__module__}.{cls.__qualname__}" in _OF_CONNECTIONS for cls in type(error).__mro__)


def patiently(function: Callable[[], Value], attempts: int = ATTEMPTS) -> Value:
    """Call a function, again after a pause if what it raises is transient.

    Raises:
        Exception: what the last attempt raised, or the first that was not transient.
    """
    for attempt in range(1, attempts):
        try:
            return function()
        except Exception as error:
            if not is_transient(error):
                raise
        time.sleep(_FIRST_PAUSE_SECONDS * 2 ** (attempt - 1))
    return function()


def _status_of(error: BaseException) -> int | None:
    """Return the HTTP status that a server answered with, where the error carries one."""
    response = getattr(error, "response", None)
    # botocore's ClientError has a mapping, httpx and requests an object, aiohttp the status itself.
    if isinstance(response, dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
    else:
        status = getattr(response, "status_code", None) or getattr(error, "status", None)
    return status if isinstance(status, int) else None

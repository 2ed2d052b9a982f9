"""Which errors another attempt may mend, whatever library they come from; and trying again, with back-off.

One rule for all that reads and writes: shards, their footers, listings, records, tasks. Not being able to look is not
a difference, and never a reason to give work up.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from typing import TypeVar

from exemplar_ray.errors import ShardError

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
    "botocore.exceptions.ChecksumError",
    "botocore.exceptions.ConnectionError",
    "botocore.exceptions.FlexibleChecksumError",
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
_TRANSIENT_STATUS = {408, 425, 429, 500, 502, 503, 504, 509}
# What object stores say of such things with another status.
_TRANSIENT_CODES = {"RequestTimeout", "RequestTimeoutException", "SlowDown", "Throttling", "ThrottlingException"}

# What allocators say that raise no MemoryError: torch's for CPUs and GPUs, C++, CUDA's libraries, Pillow's decoders.
_OUT_OF_MEMORY = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "cannot allocate memory",
    "bad_alloc",
    "ALLOC_FAILED",
)

ATTEMPTS = 4
_FIRST_PAUSE_SECONDS = 0.5


def is_transient(error: BaseException) -> bool:
    """Whether another attempt may fare better: connections, time-outs, servers in trouble, memory that ran out.

    What a server answered with a status is judged by that status. What was raised from another error is as transient as
    that one is, if it does not speak for itself: a ShardError says that trying again does not help, while a UsageError
    or a file that "is not there" may stand for a time-out.
    """
    status = _status_of(error)
    if status is not None:
        return status in _TRANSIENT_STATUS or _code_of(error) in _TRANSIENT_CODES
    if is_out_of_memory(error):
        return True
    if isinstance(error, ShardError):
        return False
    if isinstance(error, OSError) and not isinstance(error, _PERMANENT):
        return True
    if any(f"{cls.__module__}.{cls.__qualname__}" in _OF_CONNECTIONS for cls in type(error).__mro__):
        return True
    return error.__cause__ is not None and is_transient(error.__cause__)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, a machine's or a GPU's: this error says so, or the one that it was raised from."""
    if isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM:
        return True
    if isinstance(error, (RuntimeError, OSError)) and any(words in str(error) for words in _OUT_OF_MEMORY):
        return True
    return error.__cause__ is not None and is_out_of_memory(error.__cause__)


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


def _code_of(error: BaseException) -> str | None:
    """Return the code that an object store gives beside the status, as botocore has it."""
    response = getattr(error, "response", None)
    return response.get("Error", {}).get("Code") if isinstance(response, dict) else None

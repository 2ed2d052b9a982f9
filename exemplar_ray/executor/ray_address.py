"""Whether a Ray listens at an address, found out before Ray is asked to connect, which it tries for 14 minutes."""

from __future__ import annotations

import os
import socket
import time

import grpc

from exemplar_ray.errors import UsageError
from exemplar_ray.executor.ray_token import HOW, source

CLIENT = "ray://"

_CONNECT_SECONDS = 5.0
_ANSWER_SECONDS = 10.0
# What every head answers, with its version; the message that asks for it is empty.
_ALIVE = "/ray.rpc.NodeInfoGcsService/CheckAlive"
# The same of a server of clients; whatever it answers, it says first whether it wants a token.
_CLUSTER = "/ray.rpc.RayletDriver/ClusterInfo"
# What Ray talks to itself over is never a proxy's affair.
_NO_PROXY = (("grpc.enable_http_proxy", 0),)
_NOT_A_HEAD = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNIMPLEMENTED)

_WHICH = "a run wants the head's, such as 10.0.0.1:6379 or auto (--address, or RAY_ADDRESS)"


def refuse_unusable(address: str, token: str | None = None) -> None:
    """Refuse an address at which no Ray answers.

    Args:
        address: `HOST:PORT`, `[IPV6]:PORT` or `ray://HOST:PORT`. What is none of these is left for Ray to refuse.
        token: what is shown there, see `RayToken.shown`.

    Raises:
        UsageError: it is the dashboard's, nobody listens there, who listens is no Ray, or it wants another token.
    """
    if "://" in address and not address.startswith(CLIENT):
        raise UsageError(
            f"'{address}' is no address of a Ray to run on, but one of a web server, as Ray's dashboard is, where "
            f"`ray job submit` goes; {_WHICH}"
        )
    place = host_and_port(address)
    if place is None:
        return
    try:
        socket.create_connection(place, _CONNECT_SECONDS).close()
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"no Ray listens at '{address}' ({reason}): the cluster is gone, or the address is another's; {_WHICH}"
        ) from error
    # Where Ray encrypts, only Ray has the keys.
    if os.environ.get("RAY_USE_TLS", "0") != "0":
        return
    of_client = address.startswith(CLIENT)
    answer = _answer(place, _CLUSTER if of_client else _ALIVE, token)
    if answer in _NOT_A_HEAD and not of_client:
        raise UsageError(
            f"what listens at '{address}' is no Ray head, though it may be Ray's dashboard, where `ray job submit` "
            f"goes; {_WHICH}"
        )
    if answer is grpc.StatusCode.UNAUTHENTICATED:
        shown = "is shown none" if token is None else f"that of {source()} is another"
        raise UsageError(f"the Ray at '{address}' wants a token, and {shown}; {HOW}")


def host_and_port(address: str) -> tuple[str, int] | None:
    """Take an address apart; None if it has no port.

    >>> host_and_port("10.0.0.1:6379"), host_and_port("ray://[::1]:10001"), host_and_port("auto")
    (('10.0.0.1', 6379), ('::1', 10001), None)
    """
    host, colon, port = address.removeprefix(CLIENT).rpartition(":")
    return (host.strip("[]"), int(port)) if colon and host and port.isdecimal() and int(port) < 1 << 16 else None


def is_same(one: str, other: str) -> bool:
    """Whether two addresses are of the same place, however its host is called."""
    if one == other:
        return True
    places = host_and_port(one), host_and_port(other)
    if None in places or places[0][1] != places[1][1]:  # type: ignore[index]
        return False
    hosts = [_addresses(place[0]) for place in places if place is not None]
    # Ray calls this machine by its address in the network.
    return bool(hosts[0] & hosts[1]) or all(any(map(_is_here, found)) for found in hosts)


def _addresses(host: str) -> set[str]:
    try:
        return {str(found[4][0]) for found in socket.getaddrinfo(host, None)}
    except (OSError, UnicodeError):
        return {host}


def _is_here(address: str) -> bool:
    """Whether an IP address is one of this machine's: only those can be listened at."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as listener:
            listener.bind((address, 0))
    except (OSError, UnicodeError):
        return False
    return True


def _answer(place: tuple[str, int], question: str, token: str | None) -> grpc.StatusCode | None:
    """Ask who listens at a place; return why it does not answer, None if it does."""
    host, port = place
    target = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    shown = () if token is None else (("authorization", f"Bearer {token}"),)
    with grpc.insecure_channel(target, options=_NO_PROXY) as channel:
        try:
            channel.unary_unary(question)(b"", timeout=_ANSWER_SECONDS, metadata=shown)
        except grpc.RpcError as error:
            return error.code()
    return None


def why_not(address: str, error: Exception) -> str:
    """Say in one line why Ray does not connect."""
    if "AF_UNIX" in str(error):
        variable = "RAY_TMPDIR" if "RAY_TMPDIR" in os.environ else "TMPDIR"
        return (
            f"Ray cannot start below {variable} ('{os.environ.get(variable, '/tmp')}'): the paths of its sockets there "
            f"would be too long; set RAY_TMPDIR to a short folder of your own, such as /tmp/NAME ({error})"
        )
    what = f"connect to Ray at '{address}'" if address != "local" else "start Ray on this machine"
    return f"cannot {what}: {str(error) or type(error).__name__}"


class Watch:
    """Looks now and then whether a Ray is still there, while nothing is heard of it.

    Args:
        head: the address of its head.
        raylet: the address of its process on this machine, if it is known.
    """

    EVERY_SECONDS = 5.0
    # A head may come back. Without it Ray itself ends the process on the spot after 60 s.
    MOST_SECONDS = 30.0

    def __init__(self, head: str, raylet: str | None = None) -> None:
        self._head, self._raylet = head, raylet
        self._looked = self._seen = time.monotonic()

    def look(self) -> None:
        """Look, if it is time to.

        Raises:
            LostRayError: it is not there any more, or has not been for a while.
        """
        now = time.monotonic()
        if now - self._looked < self.EVERY_SECONDS:
            return
        self._looked = now
        error = _refusal(self._raylet)
        if error is not None:
            # It does not come back, and Ray ends this process soon after it.
            raise self._lost(error) from error
        error = _refusal(self._head)
        if error is None:
            self._seen = time.monotonic()
        elif time.monotonic() - self._seen > self.MOST_SECONDS:
            raise self._lost(error) from error

    def _lost(self, error: OSError) -> LostRayError:
        return LostRayError(
            f"the Ray at '{self._head}' is lost ({error.strerror or error}); finished shards are kept, run the same "
            "command to go on once there is a Ray again"
        )


def _refusal(address: str | None) -> OSError | None:
    """Return why nobody can be reached at an address; None if somebody can."""
    place = host_and_port(address or "")
    try:
        if place is not None:
            socket.create_connection(place, _CONNECT_SECONDS).close()
    except OSError as error:
        return error
    return None


class LostRayError(UsageError):
    """The Ray that a run was on is gone."""

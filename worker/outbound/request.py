"""One HTTP request that is over by its deadline, whatever the other side does."""

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import requests
import urllib3
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection

from worker.outbound.address import Address

#: Most bytes taken from the connection at once.
CHUNK_BYTES = 256 * 1024


class RequestFailed(Exception):  # noqa: N818 - a finding about the other side
    """There was no whole answer. The text is one clause; it holds no address and no header."""


class NotSent(Exception):  # noqa: N818 - what the caller wished
    """Once connected, the request was not wanted any more: nothing of it was sent."""


class Answer:
    """An answer whose status line and headers are here, and whose body may be read."""

    def __init__(self, response: requests.Response, deadline: "_Deadline") -> None:
        self._response, self._deadline = response, deadline
        self.status = response.status_code
        #: Names are looked up in any case.
        self.headers: Mapping[str, str] = response.headers

    def chunks(self) -> Iterator[bytes]:
        """The body as it arrives. Raises `RequestFailed` if it breaks off or comes too slowly."""
        try:
            while chunk := self._response.raw.read1(CHUNK_BYTES):
                yield chunk
        except (urllib3.exceptions.HTTPError, OSError):
            raise RequestFailed("the answer broke off") from None
        self._deadline.check()


@contextmanager
def request(
    method: str,
    address: Address,
    *,
    headers: Mapping[str, str],
    body: bytes | None = None,
    connect_timeout_seconds: float,
    deadline_seconds: float,
    still_wanted: Callable[[], bool] = lambda: True,
) -> Iterator[Answer]:
    """Send one request and yield its answer; the connection is closed at the end of the block.

    Redirects are not followed. Nothing of the environment is used: no `.netrc`, no proxy. The
    time-outs of `requests` hold for single reads, so a watchdog shuts the connection at the
    deadline, be it in the TLS handshake, the headers or the body. (Resolving the name, and a
    connect time-out for each address of the host, may come on top.)

    `still_wanted` is asked last of all, when the connection stands and the next thing is to write:
    a process may have stood still for long before that.

    Raises:
        RequestFailed: refused, broken off, or not there by the deadline.
        NotSent: it was not wanted any more.
    """
    deadline = _Deadline(deadline_seconds)
    session = _Session()
    session.trust_env = False
    session.headers.clear()
    session.mount("http://", _WatchedAdapter(deadline, still_wanted))
    session.mount("https://", _WatchedAdapter(deadline, still_wanted))
    try:
        with deadline, session:
            response = session.request(
                method,
                str(address),
                # An encoded answer would have to be decoded within a size limit: ask for none.
                headers={"Accept-Encoding": "identity", **headers},
                data=body,
                allow_redirects=False,
                stream=True,
                timeout=(min(connect_timeout_seconds, deadline_seconds), deadline_seconds),
            )
            with response:
                deadline.check()
                yield Answer(response, deadline)
    except (requests.RequestException, urllib3.exceptions.HTTPError, RequestFailed) as error:
        raise RequestFailed(_reason(error, deadline)) from None


class _Session(requests.Session):
    """Asks once.

    `allow_redirects=False` alone has requests take a redirect apart all the same, to offer what it
    would ask next: it reads a body of any size, and raises for an address that is none.
    """

    def resolve_redirects(self, *_args: Any, **_options: Any) -> Iterator[Any]:
        return iter(())


class _Deadline:
    """Shuts down the sockets it watches once the time is over; inside of a `with` block."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._ends = time.monotonic() + seconds
        self._lock = threading.Lock()
        self._watched: list[socket.socket] = []
        self._timer = threading.Timer(seconds, self._expire)
        self._timer.daemon = True

    @property
    def expired(self) -> bool:
        return time.monotonic() >= self._ends

    def check(self) -> None:
        """Raise if the time is over.

        To a parser a connection that was shut looks like the end of the headers, or of a body of
        unknown length: what it made of it is not an answer.
        """
        if self.expired:
            raise RequestFailed("the time is over")

    def watch(self, connected: socket.socket) -> None:
        # A second handle on the same connection: TLS takes the first one over, and either
        # can be closed without the other.
        handle = socket.socket(fileno=os.dup(connected.fileno()))
        with self._lock:
            self._watched.append(handle)
        if self.expired:
            self._expire()

    def _expire(self) -> None:
        with self._lock:
            for handle in self._watched:
                # Closed by the other side already: then nobody waits on it.
                with contextlib.suppress(OSError):
                    handle.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> "_Deadline":
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        with self._lock:
            for handle in self._watched:
                handle.close()
            self._watched.clear()


class _WatchedAdapter(HTTPAdapter):
    """Opens connections that the deadline watches from their first byte on."""

    def __init__(self, deadline: _Deadline, still_wanted: Callable[[], bool]) -> None:
        self._deadline, self._still_wanted = deadline, still_wanted
        super().__init__(max_retries=0)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        deadline, still_wanted = self._deadline, self._still_wanted

        class Watched(HTTPConnection):
            def _new_conn(self) -> socket.socket:
                connected = super()._new_conn()
                deadline.watch(connected)
                return connected

            def request(self, *args: Any, **kwargs: Any) -> None:
                if self.sock is None:
                    self.connect()
                if not still_wanted():
                    raise NotSent
                super().request(*args, **kwargs)

        class Https(Watched, HTTPSConnection):
            pass

        class HttpPool(urllib3.HTTPConnectionPool):
            ConnectionCls = Watched

        class HttpsPool(urllib3.HTTPSConnectionPool):
            ConnectionCls = Https

        self.poolmanager.pool_classes_by_scheme = {"http": HttpPool, "https": HttpsPool}


def _reason(error: Exception, deadline: _Deadline) -> str:
    """One clause. The errors' own texts are left out: they hold addresses and headers."""
    if deadline.expired or isinstance(error, requests.ReadTimeout):
        return f"there was no whole answer within {deadline.seconds:g} seconds"
    if isinstance(error, RequestFailed):
        return str(error)
    if isinstance(error, requests.ConnectTimeout):
        return "the connection was not accepted in time"
    if isinstance(error, requests.exceptions.SSLError):
        return "there was no TLS connection"
    if isinstance(error, requests.ConnectionError):
        cause = error.args[0] if error.args else None
        cause = getattr(cause, "reason", cause)
        if isinstance(cause, urllib3.exceptions.NameResolutionError):
            return "the host's name could not be resolved"
        if isinstance(cause, urllib3.exceptions.NewConnectionError):
            return "the connection was refused"
        return "the connection broke off"
    return f"the request failed ({type(error).__name__})"

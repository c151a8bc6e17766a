"""Running the application with uvicorn: the socket, the time limits of connections, and the end."""

from __future__ import annotations

import errno
import socket
from typing import TYPE_CHECKING, Any

from detector.core.errors import InputError
from detector.core.libraries import require_server

if TYPE_CHECKING:
    from detector.server.gate import Gate

_HEADER_SECONDS = 10.0
"""How long a connection may stay open without a complete request header."""
_MOST_CONNECTIONS = 256
_GRACE_SECONDS = 10
"""How long the end of the server waits for requests that are running."""


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on ``host`` and ``port``; port 0 takes a free one.

    Raises:
        InputError: the name is unknown, or the port is in use or not allowed.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.create_server(address[:2], family=family)
        # Only a socket that names its protocol gets TCP_NODELAY from asyncio. Without it, each answer waits
        # 40 ms for an acknowledgement of the one before.
        return socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, fileno=made.detach())
    except socket.gaierror as error:
        raise InputError(f"--host {host}: this name is unknown: {error.strerror}") from None
    except OSError as error:
        reasons = {
            errno.EADDRINUSE: "another program uses this port; choose another one",
            errno.EACCES: "this user may not use this port; choose one from 1024 on",
            errno.EADDRNOTAVAIL: "this machine has no such address; see --host",
        }
        reason = reasons.get(error.errno or 0, str(error.strerror))
        raise InputError(f"--host {host} --port {port}: {reason}") from None


def build_server(gate: Gate, header_seconds: float = _HEADER_SECONDS) -> Any:
    """Return a uvicorn server for ``gate``; ``server.run(sockets=[socket])`` returns after Ctrl-C.

    Raises:
        InputError: uvicorn is not installed.
    """
    require_server()
    import uvicorn

    config = uvicorn.Config(
        gate,
        http=_protocol(header_seconds),
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=_MOST_CONNECTIONS + 1,  # uvicorn refuses the connection that reaches this number
        timeout_keep_alive=5,
        timeout_graceful_shutdown=_GRACE_SECONDS,
    )
    return uvicorn.Server(config)


def _protocol(header_seconds: float) -> Any:
    """Return uvicorn's protocol with a time limit for headers, which uvicorn lacks."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Impatient(H11Protocol):  # type: ignore[misc,unused-ignore]
        _deadline: Any = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._forget()

        def _is_idle(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

        def _watch(self) -> None:
            if not self._is_idle():
                self._forget()
            elif self._deadline is None and not self.transport.is_closing():
                self._deadline = self.loop.call_later(header_seconds, self._too_late)

        def _forget(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _too_late(self) -> None:
            self._deadline = None
            if self._is_idle() and not self.transport.is_closing():
                self.transport.close()

    return Impatient

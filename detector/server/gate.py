"""The gate before the application: who may send requests, how many at once, how large and how slowly.

It works on ASGI messages (https://asgi.readthedocs.io/en/latest/specs/www.html), below FastAPI, since FastAPI
reads a whole upload before any function of an endpoint runs.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import math
import traceback
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from detector.core.progress import note

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]

_DRAINED_SECONDS = 5.0
"""How long the rest of a refused upload is read and dropped, so that the client gets to read the answer."""
FAILED = "The server failed on this request; its log says why."
_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The limits of requests.

    ``queue`` requests may wait while ``in_flight`` run; one more is refused. An upload may have
    ``upload_bytes`` and take ``upload_seconds``. ``hosts`` are names under which the server may be called,
    besides IP addresses and localhost.
    """

    queue: int = 8
    in_flight: int = 1
    upload_bytes: int = 20_000_000
    upload_seconds: float = 30.0
    hosts: Collection[str] = ()


class Refusal(Exception):
    """A request that is answered with an error before the application sees it."""

    def __init__(self, status: int, detail: str, headers: Collection[tuple[str, str]] = ()) -> None:
        super().__init__(detail)
        self.status, self.detail, self.headers = status, detail, headers


class ClientGone(Exception):
    """The client has closed the connection, so that nobody reads an answer."""


class Gate:
    """An ASGI application around another one.

    - A request must name an IP address, localhost or one of ``limits.hosts``: under any other name a foreign
      page could reach this server through its own DNS entry (DNS rebinding).
    - A POST of a page from another origin is refused by the headers Origin and Sec-Fetch-Site, which
      browsers set and scripts cannot change (cross-site request forgery).
    - Uploads are read completely, within the limits, before the application runs.
    """

    def __init__(self, application: Application, limits: Limits) -> None:
        self._application = application
        self.limits = limits
        self.inside = 0
        self._mean_seconds = 1.0

    @property
    def most_inside(self) -> int:
        return self.limits.queue + self.limits.in_flight

    def took(self, seconds: float) -> None:
        """Note how long a request has run, for the advice when to try again."""
        self._mean_seconds += 0.2 * (seconds - self._mean_seconds)

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        answer = _Answer(send)
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        try:
            self._check_caller(scope["method"], headers)
            if scope["method"] == "POST":
                await self._admit(scope, headers, receive, answer.send)
            else:
                await self._application(scope, receive, answer.send)
        except Refusal as refusal:
            await _refuse(refusal, receive, answer.send)
        except ClientGone:
            pass
        except Exception as error:  # of the application, which may have answered, or a fault of this class
            note("error: a request failed:\n" + "".join(traceback.format_exception(error)))
            if not answer.begun:
                await _refuse(Refusal(500, FAILED), receive, answer.send)

    def _check_caller(self, method: str, headers: dict[str, str]) -> None:
        host = headers.get("host", "")
        name = _host_name(host)
        if not (name == "localhost" or _is_address(name) or name in self.limits.hosts):
            raise Refusal(
                400,
                f"This server is not called {name!r:.100}; start it with --allow-host to allow this name.",
            )
        if method != "POST":
            return
        origin = headers.get("origin")
        foreign = origin is not None and _host_of(origin) != host.lower()
        if foreign or headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            raise Refusal(403, "Pages of other sites may not use this server.")

    async def _admit(
        self, scope: MutableMapping[str, Any], headers: dict[str, str], receive: Receive, send: Send
    ) -> None:
        """Let a request in if there is room, and read its upload."""
        if self.inside >= self.most_inside:
            seconds = max(1, math.ceil(self._mean_seconds * self.inside / self.limits.in_flight))
            raise Refusal(
                503,
                f"The server is busy: {self.inside} requests are waiting or running, which is its limit. Try "
                f"again in {seconds} s.",
                (("retry-after", str(seconds)),),
            )
        self.inside += 1
        try:
            body = await self._upload(headers, receive)
            await self._application(scope, _replayed(body, receive), send)
        finally:
            self.inside -= 1

    async def _upload(self, headers: dict[str, str], receive: Receive) -> bytes:
        most = self.limits.upload_bytes
        length = headers.get("content-length", "0")
        too_large = Refusal(413, f"The upload is larger than {most} bytes, which is the limit.")
        if length.isdecimal() and int(length) > most:
            raise too_large
        chunks, total = [], 0
        try:
            async with asyncio.timeout(self.limits.upload_seconds):
                async for chunk in _chunks(receive):
                    total += len(chunk)
                    if total > most:
                        raise too_large
                    chunks.append(chunk)
        except TimeoutError:
            seconds = self.limits.upload_seconds
            raise Refusal(408, f"The upload took longer than {seconds:g} s, which is the limit.") from None
        return b"".join(chunks)


async def until_gone(receive: Receive) -> None:
    """Return when the client has closed the connection, or has got its answer."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _host_name(host: str) -> str:
    """Return the name or address in a Host header, lower case, without the port and IPv6's brackets."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _host_of(origin: str) -> str | None:
    """Return the host and port in an Origin header, lower case; None if it is not the address of a page."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:  # such as http://[::1
        return None


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class _Answer:
    """Sends an answer with the usual headers; ``begun`` says whether any of it has been sent."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.begun = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun = True
            headers = list(message.get("headers", ()))
            given = {name.lower() for name, _ in headers}
            message["headers"] = headers + [pair for pair in _HEADERS if pair[0] not in given]
        await self._send(message)


async def _chunks(receive: Receive) -> Any:
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGone
        more = message.get("more_body", False)
        yield message.get("body", b"")


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return a ``receive`` that gives the whole body, and then what the connection gives."""
    waiting = [body]

    async def again() -> Message:
        if waiting:
            return {"type": "http.request", "body": waiting.pop(), "more_body": False}
        return await receive()

    return again


async def _refuse(refusal: Refusal, receive: Receive, send: Send) -> None:
    """Answer at once, and read the rest of the upload before the end of the answer.

    A connection that is closed while data arrive is reset, and the client may lose the answer.
    """
    content = json.dumps({"detail": refusal.detail}).encode()
    headers = [("content-type", "application/json"), ("content-length", str(len(content)))]
    headers += [*refusal.headers, ("connection", "close")]
    encoded = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    await send({"type": "http.response.start", "status": refusal.status, "headers": encoded})
    await send({"type": "http.response.body", "body": content, "more_body": True})
    try:
        async with asyncio.timeout(_DRAINED_SECONDS):
            async for _ in _chunks(receive):
                pass
    except (TimeoutError, ClientGone):
        pass
    await send({"type": "http.response.body", "body": b"", "more_body": False})

"""The endpoints: the page, its OpenAPI description, and detection and scores over HTTP.

This module imports FastAPI, so it is imported inside functions only; `detector.server.running` says what to
install where it is missing. Annotations are evaluated here, since FastAPI reads them from the functions.
"""

import asyncio
import base64
import hashlib
import re
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import resources
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, File, Form, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic import Field, TypeAdapter, ValidationError
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException, MultiPartParser

from detector import __version__
from detector.core.errors import InputError
from detector.data.images import FORMATS, NotAnImage, TooManyPixels
from detector.server.answers import Box, Detections, Health, Model, Problem, RegionScores, Scores
from detector.server.gate import FAILED, ClientGone, Gate, Limits, Receive, until_gone
from detector.server.service import MAX_BOXES, Service

_FORM_FIELDS = 8
_CLIENT_GONE = 499
"""The status that nginx logs for a client that has closed the connection; HTTP has none."""
_PROBLEMS = {
    400: "The request is not correct HTTP or multipart, or names another host.",
    403: "The request comes from a page of another site.",
    408: "The upload took too long.",
    413: "The upload has too many bytes, or the image too many pixels.",
    415: f"The upload is not multipart/form-data, or the file is not an image ({', '.join(FORMATS)}).",
    422: "A field is missing, unknown, empty, repeated or faulty, or the image is damaged.",
    500: "The server failed; its log says why.",
    503: "Too many requests are waiting; the header Retry-After says when to try again.",
}
_Image = Annotated[UploadFile, File(description="the content of an image file; its name is not used")]
# FastAPI does not validate defaults. These are None and not `X | None`, since a form has no null.
_Threshold = Annotated[
    float,
    Form(
        allow_inf_nan=False,
        description="only detections that score more; by default score_threshold of /model",
    ),
]
_BOXES = TypeAdapter(Annotated[list[Box], Field(max_length=MAX_BOXES)])
_Boxes = Annotated[
    str,  # the text of JSON, since not every version of FastAPI reads JSON in a form
    Form(
        description="regions to score, as JSON: a list of boxes x1, y1, x2, y2, half-open, in pixels of the "
        "upright image",
        json_schema_extra={
            "minLength": 1,
            "contentMediaType": "application/json",
            "contentSchema": _BOXES.json_schema(),
        },
    ),
]
_PAGES = {"/": "page.html", "/docs": "reference.html"}


class _Turns:
    """Runs the work of requests in threads, so many at once as the limits say, first come, first served."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._free = asyncio.Semaphore(gate.limits.in_flight)
        self._threads = ThreadPoolExecutor(gate.limits.in_flight, "detector")

    async def run(self, receive: Receive, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what ``work`` returns, with the time of waiting; it never starts if the client is gone."""
        start = time.perf_counter()
        await self._turn(receive)
        begin = time.perf_counter()
        try:
            answer = await asyncio.get_running_loop().run_in_executor(self._threads, work)
        finally:
            self._free.release()
        self._gate.took(time.perf_counter() - begin)
        answer["seconds"]["waiting"] = begin - start
        return answer

    async def _turn(self, receive: Receive) -> None:
        turn = asyncio.ensure_future(self._free.acquire())
        gone = asyncio.ensure_future(until_gone(receive))
        try:
            await asyncio.wait((turn, gone), return_when=asyncio.FIRST_COMPLETED)
            if gone.done():
                if turn.done():
                    self._free.release()
                raise ClientGone
        finally:
            gone.cancel()
            if not turn.done():
                turn.cancel()


class _UploadRequest(Request):
    """A request whose form is kept in memory, and has only known fields."""

    fields: frozenset[str] = frozenset()

    async def form(self, **_: Any) -> Any:  # type: ignore[override,unused-ignore]
        if not self.headers.get("content-type", "").lower().startswith("multipart/form-data"):
            raise HTTPException(415, "Send the image as multipart/form-data, in the field 'image'.")
        parser = MultiPartParser(self.headers, self.stream(), max_files=1, max_fields=_FORM_FIELDS)
        # Nothing is written to the disk; the gate has limited the size. Starlette has changed this name.
        parser.spool_max_size = parser.max_file_size = sys.maxsize
        try:
            form = await parser.parse()
        except (MultiPartException, KeyError) as error:
            reason = error.message if isinstance(error, MultiPartException) else "it names no boundary"
            raise HTTPException(400, f"The body is not correct multipart/form-data: {reason}") from None
        unknown = sorted(set(form) - self.fields)
        if unknown:
            known = ", ".join(sorted(self.fields))
            raise HTTPException(422, f"The field {unknown[0]!r:.80} is unknown; known: {known}.")
        for name in sorted(set(form)):
            values = form.getlist(name)
            if len(values) > 1:
                raise HTTPException(422, f"The field {name!r} is given {len(values)} times; give it once.")
            if values == [""]:
                raise HTTPException(422, f"The field {name!r} is empty; give a value or leave it out.")
        return form


class _UploadRoute(APIRoute):
    """A route whose requests are `_UploadRequest`s."""

    def get_route_handler(self) -> Callable[..., Any]:
        handler = super().get_route_handler()
        fields = frozenset(parameter.alias for parameter in self.dependant.body_params)

        async def handle(request: Request) -> Any:
            upload = _UploadRequest(request.scope, request.receive)
            upload.fields = fields
            return await handler(upload)

        return handle


def build_application(service: Service, limits: Limits) -> Gate:
    """Return the ASGI application of a detector or classifier, behind its gate.

    ``GET /`` is the page, ``POST /detect`` and ``POST /classify`` take an image, ``GET /model`` and
    ``GET /health`` describe the server, ``GET /openapi.json`` all of these, and ``GET /docs`` shows that.
    """
    application = FastAPI(
        title="region-detector",
        version=__version__,
        description="Detections of a trained checkpoint, and scores for regions of your own.",
        docs_url=None,
        redoc_url=None,
        separate_input_output_schemas=False,
        responses={400: {"model": Problem, "description": _PROBLEMS[400]}},
    )
    gate = Gate(application, limits)
    _add_error_handlers(application)
    _add_pages(application)
    _add_facts(application, service, gate)
    router = APIRouter(route_class=_UploadRoute, responses=_problems())
    turns = _Turns(gate)
    if service.classifies:
        _add_classification(router, service, turns)
    else:
        _add_detection(router, service, turns)
    application.include_router(router)
    _complete_description(application)
    return gate


def _complete_description(application: FastAPI) -> None:
    """Let the description say what FastAPI does not: which fields a form may have, and which together."""
    form: dict[str, Any]
    for name, form in application.openapi()["components"]["schemas"].items():
        if name.startswith("Body_"):
            form["additionalProperties"] = False
            if {"boxes", "proposals"} <= set(form["properties"]):
                form["not"] = {"required": ["boxes", "proposals"]}


def _problems() -> dict[int | str, dict[str, Any]]:
    found: dict[int | str, dict[str, Any]] = {
        status: {"model": Problem, "description": text} for status, text in _PROBLEMS.items()
    }
    schema = {"type": "integer", "minimum": 1}
    found[503]["headers"] = {"Retry-After": {"description": "in seconds", "schema": schema}}
    return found


def _add_detection(router: APIRouter, service: Service, turns: _Turns) -> None:
    names = list(service.proposals)
    proposals_form = Form(
        description=f"how the regions are made, by default {names[0]}; not together with boxes",
        json_schema_extra={"enum": names},
    )

    @router.post("/detect", summary="Detect objects in an image")
    async def detect(
        request: Request,
        image: _Image,
        boxes: _Boxes = None,  # type: ignore[assignment]
        proposals: Annotated[str, proposals_form] = None,  # type: ignore[assignment]  # noqa: RUF013
        score_threshold: _Threshold = None,  # type: ignore[assignment]
    ) -> Detections:
        """Return all detections above the threshold, by falling score."""
        regions = None if boxes is None else _read_boxes(boxes)
        work = partial(service.detect, await image.read(), proposals, regions, score_threshold)
        return await turns.run(request.receive, work)  # type: ignore[return-value]

    @router.post("/classify", summary="Score regions of an image")
    async def classify(request: Request, image: _Image, boxes: _Boxes) -> RegionScores:
        """Return the scores of all classes for each region; nothing is left out or suppressed."""
        work = partial(service.classify, await image.read(), _read_boxes(boxes))
        return await turns.run(request.receive, work)  # type: ignore[return-value]


def _read_boxes(text: str) -> list[Box]:
    try:
        return _BOXES.validate_json(text)
    except ValidationError as error:
        raise RequestValidationError(
            [{**fault, "loc": ("boxes", *fault["loc"])} for fault in error.errors()]
        ) from None


def _add_classification(router: APIRouter, service: Service, turns: _Turns) -> None:
    @router.post("/detect", summary="Name the classes of an image")
    async def detect(
        request: Request,
        image: _Image,
        score_threshold: _Threshold = None,  # type: ignore[assignment]
    ) -> Scores:
        """Return the score of each class, by falling score."""
        work = partial(service.detect, await image.read(), score_threshold=score_threshold)
        return await turns.run(request.receive, work)  # type: ignore[return-value]


def _add_facts(application: FastAPI, service: Service, gate: Gate) -> None:
    facts = {**service.facts(), "max_upload_bytes": gate.limits.upload_bytes}

    # FastAPI, unlike HTTP, does not let GET imply HEAD.
    @application.head("/model", include_in_schema=False)
    @application.get("/model", summary="Classes, thresholds and limits")
    async def model() -> Model:
        return facts  # type: ignore[return-value]

    @application.head("/health", include_in_schema=False)
    @application.get("/health", summary="Whether the server works, and how busy it is")
    async def health() -> Health:
        return Health(status="ok", inside=gate.inside, limit=gate.most_inside)


def _add_pages(application: FastAPI) -> None:
    for path, file in _PAGES.items():
        content = resources.files("detector.server").joinpath(file).read_bytes()
        headers = {"content-security-policy": _policy(content.decode()), "cache-control": "no-cache"}
        answer = partial(Response, content, media_type="text/html; charset=utf-8", headers=headers)
        application.add_api_route(path, _page(answer), methods=["GET", "HEAD"], include_in_schema=False)


def _page(answer: Callable[[], Response]) -> Callable[[], Any]:
    async def page() -> Response:
        return answer()

    return page


def _policy(page: str) -> str:
    """Return a Content-Security-Policy under which only the page's own script and style work."""
    hashes = {}
    for tag in ("script", "style"):
        parts = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digests = (base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in parts)
        hashes[tag] = " ".join(f"'sha256-{digest}'" for digest in digests)
    return (
        f"default-src 'none'; script-src {hashes['script']}; style-src {hashes['style']}; "
        "img-src 'self' blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    )


def _add_error_handlers(application: FastAPI) -> None:
    """Answer every error in one form: ``{"detail": "a sentence"}``."""

    @application.exception_handler(HTTPException)
    async def http_error(_: Request, error: HTTPException) -> JSONResponse:
        known = {404: "There is nothing at this address; /docs lists what there is."}
        if error.status_code == 405:
            known[405] = f"This address allows only {(error.headers or {}).get('Allow', 'other methods')}."
        detail = known.get(error.status_code, error.detail)
        return JSONResponse({"detail": detail}, error.status_code, error.headers)

    @application.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"detail": "; ".join(map(_sentence, error.errors()[:3]))}, 422)

    @application.exception_handler(InputError)
    async def input_error(_: Request, error: InputError) -> JSONResponse:
        status = 413 if isinstance(error, TooManyPixels) else 415 if isinstance(error, NotAnImage) else 422
        return JSONResponse({"detail": str(error)}, status)

    @application.exception_handler(ClientGone)
    async def gone(_: Request, __: ClientGone) -> Response:
        return Response(status_code=_CLIENT_GONE)  # nobody reads it

    @application.exception_handler(Exception)
    async def failed(_: Request, __: Exception) -> JSONResponse:
        return JSONResponse({"detail": FAILED}, 500)  # the gate gets the error, too, and logs it


def _sentence(fault: dict[str, Any]) -> str:
    place = ".".join(str(part) for part in fault["loc"] if part != "body")
    if fault["type"] == "missing":
        return f"the field {place!r} is missing"
    return f"{place}: {fault['msg']}"

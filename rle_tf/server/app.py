"""The paths that the server answers."""

import asyncio
import json
import logging
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib.resources import files

import tensorflow as tf
from fastapi import FastAPI, HTTPException, Request, Response
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
)
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.requests import ClientDisconnect

from rle_tf.server import Options
from rle_tf.server.batching import ServedModel
from rle_tf.server.tensors import RequestError, read_body, read_tensors, write_tensors

LOG = logging.getLogger(__name__)

_DEFAULT_SIGNATURE = "serving_default"
_PAGE = {"/": ("index.html", "text/html"), "/page.js": ("page.js", "text/javascript"),
         "/page.css": ("page.css", "text/css")}  # fmt: skip
# All that the page may do: run its own files, show pictures of this machine, ask this server.
_PAGE_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
        " img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


class Metrics:
    """What Prometheus is told. Labels are of our making, never a client's."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "rle_tf_requests", "Predict requests.", ["signature", "code"], registry=self.registry
        )
        self.seconds = Histogram(
            "rle_tf_request_seconds",
            "From the headers of a predict request to its answer.",
            ["signature"],
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
            registry=self.registry,
        )
        self.batch = Histogram(
            "rle_tf_batch_images",
            "Images in the call of the model that answered a request.",
            buckets=(1, 2, 4, 8, 16, 32, 64),
            registry=self.registry,
        )
        self.queue = Gauge(
            "rle_tf_queue_requests", "Accepted and not yet answered.", registry=self.registry
        )
        self.bytes = Gauge(
            "rle_tf_queue_bytes", "Bodies of requests under way.", registry=self.registry
        )
        self.rejections = Counter(
            "rle_tf_rejections", "Refused for a limit.", ["limit"], registry=self.registry
        )


class Service:
    """Reads, queues and answers predict requests.

    Each accepted request has a thread, which nearly always waits for the model. Two of them at a
    time parse: that takes memory, up to some thirty times the body of an ill-meant request.
    """

    def __init__(self, model: ServedModel, options: Options) -> None:
        self.model, self.options, self.metrics = model, options, Metrics()
        self.threads = ThreadPoolExecutor(options.queue, "predict")
        self._parsing = threading.Semaphore(2)
        self._accepted = self._held_bytes = 0
        self.metrics.queue.set_function(lambda: self._accepted)
        self.metrics.bytes.set_function(lambda: self._held_bytes)

    async def predict(self, request: Request) -> Response:
        """The answer to a request; HTTPException where there is none."""
        # Known when the request has been parsed; the thread that does it writes here.
        seen = {"signature": "none"}
        code, start = 500, time.perf_counter()
        body = bytearray()
        try:
            await self._read(request, body)
            content = await self._queue(body, seen)
            code = 200
            return Response(content, media_type="application/json")
        except HTTPException as refusal:
            code = refusal.status_code
            raise
        except RequestError as error:
            code = 400
            raise HTTPException(code, str(error)) from None
        except Exception:
            LOG.exception("a request of signature %s failed", seen["signature"])
            raise HTTPException(code, "the server failed at this request; see its log") from None
        finally:
            self._held_bytes -= len(body)
            self.metrics.requests.labels(seen["signature"], code).inc()
            self.metrics.seconds.labels(seen["signature"]).observe(time.perf_counter() - start)

    async def _read(self, request: Request, body: bytearray) -> None:
        """Extends the body, which counts among the bytes held from then on."""
        if request.headers.get("content-encoding", "identity") != "identity":
            raise HTTPException(415, "body: found it compressed; expected plain JSON")
        limit, size, refusal = self.options.body_bytes, 0, None
        try:
            async with asyncio.timeout(self.options.client_seconds):
                async for chunk in request.stream():
                    size += len(chunk)
                    if not refusal and size > limit:
                        sentence = f"body: found more than {limit} bytes; expected at most these"
                        refusal = self._refusal(413, "body_bytes", sentence)
                    elif not refusal and self._held_bytes + len(chunk) > self.options.queue_bytes:
                        sentence = "the server is busy with large requests; try again"
                        refusal = self._refusal(503, "queue_bytes", sentence)
                    if not refusal:
                        body += chunk
                        self._held_bytes += len(chunk)
                    # Most clients look for an answer only when they have sent everything.
                    elif size > 4 * limit:
                        break
        except TimeoutError:
            sentence = f"body: found no end of it in {self.options.client_seconds:g} s"
            refusal = self._refusal(408, "client_seconds", sentence)
        except ClientDisconnect:
            raise HTTPException(400, "body: the client left") from None
        if refusal:
            # What is left of the body is not to be taken for the next request.
            refusal.headers["connection"] = "close"
            raise refusal

    async def _queue(self, body: bytearray, seen: dict[str, str]) -> bytes:
        if self._accepted >= self.options.queue:
            raise self._refusal(
                503, "queue", f"the server is busy with {self._accepted} requests; try again"
            )
        self._accepted += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self.threads, self._answer, body, seen)
        finally:
            self._accepted -= 1

    def _answer(self, body: bytearray, seen: dict[str, str]) -> bytes:
        with self._parsing:
            parsed = read_body(body)
            name = parsed.signature_name or _DEFAULT_SIGNATURE
            signature = self.model.signatures.get(name)
            if signature is None:
                raise RequestError(
                    f"signature_name: found {name!r:.80}; expected one of"
                    f" {', '.join(self.model.signatures)}"
                )
            seen["signature"] = name
            arrays = read_tensors(parsed, signature.inputs, self.options)
            rows = parsed.rows
            del parsed
        try:
            outputs, batch = signature(arrays)
        except tf.errors.InvalidArgumentError as error:
            raise RequestError(_sentence(error.message)) from None
        self.metrics.batch.observe(batch)
        return write_tensors(outputs, rows)

    def _refusal(self, code: int, limit: str, sentence: str) -> HTTPException:
        self.metrics.rejections.labels(limit).inc()
        return HTTPException(code, sentence, {"retry-after": "1"} if code == 503 else {})


def create_app(model: ServedModel, options: Options) -> FastAPI:
    """The application about a loaded model, as TensorFlow Serving would serve it."""
    service = Service(model, options)

    @asynccontextmanager
    async def lifespan(_: FastAPI):
        yield
        service.threads.shutdown()

    app = FastAPI(openapi_url=None, lifespan=lifespan, redirect_slashes=False)
    app.state.draining = False

    @app.exception_handler(StarletteHTTPException)
    async def refuse(request: Request, error: StarletteHTTPException) -> Response:
        sentence = error.detail
        if error.status_code == 404 and sentence == "Not Found":
            sentence = f"found no path {request.url.path!r:.200}; expected /v1/models/{model.name}"
        if error.status_code == 405:
            allowed = (error.headers or {}).get("Allow", "another")
            sentence = f"found the method {request.method!r:.40}; expected {allowed} for this path"
        return _json({"error": sentence}, error.status_code, error.headers)

    def check(name: str, version: str | None) -> None:
        if ":" in f"{name}{version}":  # a verb where a model was expected
            raise HTTPException(405, headers={"Allow": "POST"})
        if name != model.name or version not in (None, str(model.version)):
            asked = f"{name!r:.80}" + ("" if version is None else f", version {version!r:.40}")
            raise HTTPException(
                404, f"found no model {asked}; expected {model.name!r}, version {model.version}"
            )

    @app.post("/v1/models/{name}:{verb}")
    @app.post("/v1/models/{name}/versions/{version}:{verb}")
    async def predict(
        request: Request, name: str, verb: str, version: str | None = None
    ) -> Response:
        check(name, version)
        if verb != "predict":
            raise HTTPException(400, f"found {verb!r:.40}; expected {model.name}:predict")
        if app.state.draining:
            raise HTTPException(503, "the server is ending; try again", {"retry-after": "1"})
        return await service.predict(request)

    @app.get("/v1/models/{name}")
    @app.get("/v1/models/{name}/versions/{version}")
    async def status(name: str, version: str | None = None) -> Response:
        check(name, version)
        state = {
            "version": str(model.version),
            "state": "AVAILABLE",
            "status": {"error_code": "OK", "error_message": ""},
        }
        return _json({"model_version_status": [state]})

    @app.get("/v1/models/{name}/metadata")
    @app.get("/v1/models/{name}/versions/{version}/metadata")
    async def metadata(name: str, version: str | None = None) -> Response:
        check(name, version)
        spec = {"name": model.name, "signature_name": "", "version": str(model.version)}
        definitions = {"signature_def": {"signature_def": model.signature_defs}}
        return _json({"model_spec": spec, "metadata": definitions})

    @app.get("/monitoring/prometheus/metrics")
    async def metrics() -> Response:
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.get("/healthz")
    async def healthz() -> Response:
        state = "draining" if app.state.draining else "ready"
        return _json({"state": state}, 503 if app.state.draining else 200)

    @app.get("/model.json")
    async def model_json() -> Response:
        about = {
            "name": model.name,
            "version": model.version,
            "signatures": list(model.signatures),
            "limits": {"body_bytes": options.body_bytes, "boxes": options.boxes},
        }
        return _json(model.metadata | about)

    for path, (file, media_type) in _PAGE.items():
        content = files("rle_tf.server").joinpath("page", file).read_bytes()
        response = Response(content, media_type=media_type, headers=_PAGE_HEADERS)
        app.add_api_route(path, _always(response), methods=["GET"])
    return app


def _always(response: Response):
    async def answer() -> Response:
        return response

    return answer


def _json(content: dict, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return Response(json.dumps(content), status, headers, "application/json")


# What TensorFlow puts about the reason of a failure.
_NOISE = re.compile(
    r"\{\{[^}]*\}\}|\[\[.*?\]\]|\[Op:[^\]]*\]"
    r"|^(Graph execution error:|Detected at|<stack traces|\s*File ).*",
    re.MULTILINE,
)


def _sentence(message: str) -> str:
    """The graph's own sentence, which follows "rle_tf: ", or the first line of TensorFlow's."""
    if ours := re.search(r"(\[?)rle_tf: (.+)", message):
        # An assertion puts it into brackets, which may occur in it, too.
        return ours[2].removesuffix("]") if ours[1] else ours[2]
    lines = [line.strip() for line in _NOISE.sub("", message).splitlines() if line.strip()]
    return f"the model cannot take this: {lines[0]:.200}" if lines else "the model cannot take this"

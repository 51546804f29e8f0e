"""uvicorn with deadlines for slow clients, and with answers in JSON."""

import asyncio
import json
from http import HTTPStatus
from types import FrameType

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from rle_tf.server import Options


def create_server(app: FastAPI, options: Options) -> uvicorn.Server:
    """A server to be run. When a signal ends it, `app.state.draining` becomes True."""
    return _Server(
        uvicorn.Config(
            app,
            http=_protocol(options.client_seconds),
            ws="none",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
        )
    )


class _Server(uvicorn.Server):
    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.config.app.state.draining = True
        super().handle_exit(sig, frame)


def _protocol(client_seconds: float) -> type[H11Protocol]:
    """HTTP/1.1 over a connection whose client may not stall; reading the body is the app's part."""

    class Protocol(H11Protocol):
        deadline: asyncio.TimerHandle | None = None

        def connection_made(self, transport: asyncio.Transport) -> None:
            super().connection_made(transport)
            self._expect(self._headers_are_late)

        def connection_lost(self, exc: Exception | None) -> None:
            self._expect(None)
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.transport.is_closing() or self.conn.their_state is not h11.IDLE:
                self._expect(None)
            elif self.deadline is None:  # the beginning of a further request
                self._expect(self._headers_are_late)

        def pause_writing(self) -> None:
            super().pause_writing()
            self._expect(self.transport.abort)

        def resume_writing(self) -> None:
            self._expect(None)
            super().resume_writing()

        def send_400_response(self, msg: str) -> None:
            self._refuse(HTTPStatus.BAD_REQUEST, "request: is not HTTP")

        def _expect(self, otherwise) -> None:
            """Calls `otherwise` unless called again in time."""
            if self.deadline:
                self.deadline.cancel()
            self.deadline = otherwise and self.loop.call_later(client_seconds, otherwise)

        def _headers_are_late(self) -> None:
            self._refuse(
                HTTPStatus.REQUEST_TIMEOUT,
                f"request: found no end of its headers in {client_seconds:g} s",
            )

        def _refuse(self, status: HTTPStatus, sentence: str) -> None:
            if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
                body = json.dumps({"error": sentence}).encode()
                headers = [
                    ("content-type", "application/json"),
                    ("content-length", str(len(body))),
                    ("connection", "close"),
                ]
                for event in (
                    h11.Response(status_code=status, headers=headers, reason=status.phrase),
                    h11.Data(data=body),
                    h11.EndOfMessage(),
                ):
                    self.transport.write(self.conn.send(event))
            self.transport.close()

    return Protocol

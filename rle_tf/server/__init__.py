"""`rle-tf serve`: a development server that speaks TensorFlow Serving's REST API, and its page.

For those without Docker. What works against it works against TensorFlow Serving on another port.
"""

import logging
import os
import signal
import socket
from dataclasses import dataclass, fields
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from rle_tf.errors import ConfigError, ModelError


@dataclass(frozen=True)
class Options:
    """What the server takes upon itself; past a limit it answers with an error.

    Attributes:
        queue: Requests that it has accepted and not yet answered; past it 503.
        queue_bytes: Bodies of the requests under way, in total; past it 503.
        body_bytes: The body of a request; past it 413.
        images: Images in a request; past it 400.
        boxes: Boxes in an image; past it 400.
        megapixels: Of all photographs in a request, once decoded; past it 400.
        batch: Crops in one call of the model, from as many requests as arrive together. A larger
            request takes several calls.
        batch_wait_ms: How long the first of a batch waits for others.
        client_seconds: How long a client may take to send its headers, its body, and to take its
            answer; past it 408 or, for the answer, the end of the connection.
    """

    queue: int = 256
    queue_bytes: int = 256 * 2**20
    body_bytes: int = 32 * 2**20
    images: int = 64
    boxes: int = 64
    megapixels: int = 64
    batch: int = 32
    batch_wait_ms: float = 2.0
    client_seconds: float = 30.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if not (value := getattr(self, field.name)) > 0:
                raise ConfigError(f"{field.name}: found {value}; expected a number above 0")
        if self.queue_bytes < self.body_bytes:
            raise ConfigError(
                f"queue_bytes: found {self.queue_bytes}; expected at least body_bytes,"
                f" {self.body_bytes}"
            )


def serve(
    model: Path | str,
    options: Options | None = None,
    *,
    host: str = "127.0.0.1",
    port: int = 8501,
    name: str | None = None,
    console: Console | None = None,
) -> None:
    """Serves an exported model until SIGTERM or Ctrl-C, then answers what it has accepted.

    Says the address on the console when it is ready, after a call of each signature.

    Args:
        model: `saved_models/NAME`, of which it takes the newest version, or
            `saved_models/NAME/VERSION`.
        options: Limits; by default those of `Options()`.
        host: The address to listen on. Others than the loopback let everybody in who reaches it:
            there is no password.
        port: 0 for any that is free. TensorFlow Serving's REST port is 8501.
        name: What requests call the model; by default its folder's name.
        console: Where it writes; by default standard output.

    Raises:
        ModelError: The folder holds no exported model, or the server's packages are missing.
        ConfigError: The address cannot be listened on.
    """
    try:
        from rle_tf.server.app import create_app
        from rle_tf.server.connections import create_server
    except ModuleNotFoundError as error:
        raise ModelError(
            f"serve: found no package {error.name!r}; expected those that"
            " pip install 'rle-tf[serve]' brings"
        ) from error
    from rle_tf.server.batching import load

    options, console = options or Options(), console or Console()
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    # Before the model is loaded, which takes a while; nobody is let in until `listen`.
    listener = _bind(host, port)
    with listener:
        with console.status("loading and warming up"):
            served = load(Path(model), options, name)
            served.warm_up()
            server = create_server(create_app(served, options), options)
        # uvicorn hands the signal that has ended it on to these: the exit code is to be 0.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        listener.listen(2048)
        host, port = listener.getsockname()[:2]
        url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        rest = f"REST: {url}/v1/models/{served.name}:predict; Ctrl-C ends it"
        console.print(
            f"[bold]{escape(served.name)}[/], version {served.version},"
            f" at [bold]{escape(url)}/[/]  [dim]({escape(rest)})[/]",
            soft_wrap=True,
            highlight=False,
        )
        server.run(sockets=[listener])
    console.print("[dim]ended; what had been accepted has been answered[/]")


def _bind(host: str, port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        if os.name == "posix":  # elsewhere the option lets two servers share a port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except (OSError, OverflowError) as error:
        listener.close()
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(
            f"{host}:{port}: cannot be listened on: {reason}; expected an address of this machine"
            " and a free port"
        ) from error
    return listener

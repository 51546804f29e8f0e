"""Batches that other machines make: tf.data service.

A dispatcher hands out sample numbers, workers make the samples, and whoever trains takes batches
as they come: everybody once an epoch, in nearly the order of the numbers.
"""

import logging
import os
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import tensorflow as tf

from rle_tf.errors import ConfigError, DataError, WorkerLost

LOG = logging.getLogger(__name__)

PROTOCOL = "grpc"
# Looked for so often, and lost after so many times that nobody answers.
LOOK_SECONDS, LOOKS = 10.0, 6
# How dispatchers speak of what they never heard of: of one thing or another, as the question was.
_FORGOTTEN = re.compile(
    r"\b(Iteration|Job|Dataset|Task)\b[\w ]* not found|unknown iteration client", re.IGNORECASE
)


def served(batches: tf.data.Dataset, service: str, job: str) -> tf.data.Dataset:
    """A dataset's batches, made by the workers of a service.

    Args:
        batches: Of samples that are functions of their numbers. Workers read what it reads, under
            the same paths.
        service: `grpc://host:port` of a dispatcher.
        job: Those who name the same one share the batches; each is given out once.
    """
    return batches.apply(
        tf.data.experimental.service.distribute(
            # Each number goes to one worker.
            processing_mode=tf.data.experimental.service.ShardingPolicy.DYNAMIC,
            service=service,
            job_name=job,
        )
    )


def check_service(service: str) -> None:
    """Makes sure that a dispatcher answers at `grpc://host:port`.

    Raises:
        ConfigError: if the service is no such address.
        DataError: if nobody answers there.
    """
    protocol, _, place = service.partition("://")
    if protocol != PROTOCOL:
        raise ConfigError(f"data.service: found {service!r}; expected grpc://HOST:PORT")
    _look(place, "data.service")


@contextmanager
def watched_service(service: str, left: str) -> Iterator[None]:
    """Inside, ends the process, with status 75, once the dispatcher has been gone for a minute.

    TensorFlow's client would wait for it forever.

    Args:
        service: `grpc://host:port`.
        left: What the message says that there is to go on from.

    Raises:
        WorkerLost: if a dispatcher is there again that does not know what it had handed out.
    """
    over = threading.Event()

    def watch() -> None:
        missed = 0
        while missed < LOOKS:
            if over.wait(LOOK_SECONDS):
                return
            try:
                _look(service.partition("://")[2], "data.service")
                missed = 0
            except DataError:
                missed += 1
        LOG.error(
            "data.service: %s no longer answers; %s; start a dispatcher and go on with --resume",
            service, left,
        )  # fmt: skip
        os._exit(os.EX_TEMPFAIL)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    except tf.errors.NotFoundError as error:
        if not _FORGOTTEN.search(error.message):
            raise
        raise WorkerLost(
            f"data.service: {service} was started anew and no longer knows of this training; "
            f"{left}; go on with --resume, which --restarts does by itself (with --work-dir a "
            "dispatcher keeps what it knows)"
        ) from error
    finally:
        over.set()


def _look(place: str, entry: str) -> None:
    host, colon, port = place.rpartition(":")
    if not (host and colon and port.isdigit()):
        raise ConfigError(f"{entry}: found {place!r}; expected HOST:PORT")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise DataError(
            f"{entry}: {place}: {error.strerror or error}; expected a running dispatcher (rle-tf "
            "data-service dispatcher)"
        ) from None


def start_dispatcher(
    port: int, work_dir: str | None = None
) -> tf.data.experimental.service.DispatchServer:
    """A running dispatcher.

    Args:
        port: To listen on; 0 for any.
        work_dir: Where it keeps what it has handed out, so that one that is started again there
            goes on.

    Raises:
        DataError: if the port is taken, or the folder cannot be written.
    """
    _check_free(port)
    config = tf.data.experimental.service.DispatcherConfig(
        port=port,
        protocol=PROTOCOL,
        work_dir=work_dir,
        fault_tolerant_mode=work_dir is not None,
    )
    try:
        return tf.data.experimental.service.DispatchServer(config)
    except (tf.errors.OpError, RuntimeError) as error:
        raise DataError(f"--port {port}: {error}; expected one that is free") from None


def _check_free(port: int) -> None:
    # gRPC would share it with whoever listens there, and each would get half of the calls.
    try:
        socket.create_connection(("localhost", port), timeout=1).close()
    except OSError:
        return
    raise DataError(f"--port {port}: somebody listens there; expected one that is free")


def start_worker(
    dispatcher: str, host: str, port: int
) -> tf.data.experimental.service.WorkerServer:
    """A running worker of the dispatcher at `HOST:PORT`, which is reached as `host:port` itself.

    Raises:
        ConfigError: if the dispatcher's is no such address.
        DataError: if nobody answers there, or the port is taken.
    """
    _look(dispatcher, "--dispatcher")
    _check_free(port)
    config = tf.data.experimental.service.WorkerConfig(
        dispatcher_address=dispatcher,
        worker_address=f"{host}:{port or '%port%'}",
        port=port,
        protocol=PROTOCOL,
    )
    try:
        return tf.data.experimental.service.WorkerServer(config)
    except (tf.errors.OpError, RuntimeError) as error:
        raise DataError(f"--port {port}: {error}; expected one that is free") from None

"""Bounded load for a server on this machine: so many clients, each with one request at a time.

    python examples/load.py photo.jpg --url http://127.0.0.1:8501/v1/models/demo:predict \
        --concurrency 200 --seconds 60

Needs httpx. Speaks TensorFlow Serving's REST API, so it measures that, too. Prints how many answers
of which status came, how many a second, and how long they took; ends with 1 where any was no 200.
"""

import argparse
import asyncio
import base64
import json
import statistics
import sys
import time
from collections import Counter
from pathlib import Path

import httpx


async def load(url: str, body: bytes, concurrency: int, seconds: float) -> tuple[Counter, list]:
    """The number of answers by status, or by the exception in place of one, and their seconds."""
    outcomes, durations = Counter(), []
    end = time.monotonic() + seconds

    async def client() -> None:
        # Its own connection, kept open, as that of a client elsewhere would be.
        async with httpx.AsyncClient(timeout=60, trust_env=False) as http:
            while time.monotonic() < end:
                start = time.monotonic()
                try:
                    outcome = (await http.post(url, content=body)).status_code
                except httpx.HTTPError as error:
                    outcome = type(error).__name__
                outcomes[outcome] += 1
                durations.append(time.monotonic() - start)
                if outcome != 200:
                    await asyncio.sleep(1)  # what Retry-After says; a dead server needs no load

    await asyncio.gather(*(client() for _ in range(concurrency)))
    return outcomes, durations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("photo", type=Path, help="a JPEG or PNG")
    parser.add_argument("--url", default="http://127.0.0.1:8501/v1/models/demo:predict")
    parser.add_argument("--signature", default="predict_image")
    parser.add_argument(
        "--box", type=float, nargs=4, action="append", default=[], metavar="PIXEL",
        help="left, top, right, bottom; may be repeated; default: the whole image",
    )  # fmt: skip
    parser.add_argument("--concurrency", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=10)
    arguments = parser.parse_args()
    host = httpx.URL(arguments.url).host
    if host not in ("localhost", "127.0.0.1", "::1"):
        parser.error(f"--url: found the host {host}; expected this machine, such as 127.0.0.1")

    instance = {
        "image_bytes": {"b64": base64.b64encode(arguments.photo.read_bytes()).decode()},
        "boxes_xyxy": arguments.box or [[0, 0, 1e6, 1e6]],  # clipped to the image
    }
    body = json.dumps({"signature_name": arguments.signature, "instances": [instance]}).encode()
    start = time.monotonic()
    outcomes, durations = asyncio.run(
        load(arguments.url, body, arguments.concurrency, arguments.seconds)
    )
    elapsed = time.monotonic() - start
    ranks = statistics.quantiles(durations, n=100) if len(durations) > 1 else durations * 99
    report = {
        "outcomes": {str(key): number for key, number in outcomes.items()},
        "requests_per_second": round(len(durations) / elapsed, 1),
        "seconds_p50": round(ranks[49], 3),
        "seconds_p95": round(ranks[94], 3),
        "seconds_p99": round(ranks[98], 3),
    }
    print(json.dumps(report, indent=1))
    sys.exit(set(outcomes) != {200})


if __name__ == "__main__":
    main()

"""The command line `rle-tf`; what its commands do is in `rle_tf.commands`."""

import logging
import os
from typing import Annotated

import typer
from rich.logging import RichHandler

import rle_tf
from rle_tf.commands import models, training
from rle_tf.console import CONSOLE, fail
from rle_tf.errors import RLEError, WorkerLost

# TensorFlow's notes on the processor are no news to a user. Before it is imported, which each
# command does for itself: `--help` answers at once.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

app = typer.Typer(
    help="Human pose regression with residual log-likelihood estimation.",
    invoke_without_command=True,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
data_service = typer.Typer(
    help="Makes training batches for other machines (tf.data service).", no_args_is_help=True
)
app.add_typer(data_service, name="data-service")

# An example of each, whose first words are its name, in the order of the help.
COMMANDS = (
    ("demo --task 3d", training.demo),
    ("train configs/coco_sample.yaml --data-root ~/coco --out runs/sample", training.train),
    ("records coco_resnet50_rle --data-root ~/coco --out gs://me/coco", training.records),
    ("evaluate runs/sample --set evaluate.boxes=detections", models.evaluate),
    ("calibrate runs/sample", models.calibrate),
    ("compare demo --methods l1,laplace,rle,heatmap --seeds 3", training.compare),
    ("flow runs/demo", models.flow),
    ("models", models.models),
    ("predict photo.jpg --boxes boxes.json", models.predict),
    ("import deeppose_res50_coco_256x192_rle.pth", models.import_),
    ("export runs/demo --format savedmodel --serving", models.export),
    ("benchmark saved_models/demo", models.benchmark),
    ("serve saved_models/demo", models.serve),
)
DATA_SERVICE = (
    ("data-service dispatcher --port 5050", training.dispatcher),
    ("data-service worker --dispatcher 10.0.0.7:5050", training.worker),
)
for example, function in COMMANDS:
    app.command(example.split()[0], epilog=f"[dim]Example:[/dim]  rle-tf {example}")(function)
for example, function in DATA_SERVICE:
    name = example.split()[1]
    data_service.command(name, epilog=f"[dim]Example:[/dim]  rle-tf {example}")(function)


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", is_eager=True)
    ] = False,
) -> None:
    if version:
        CONSOLE.print(f"rle-tf {rle_tf.__version__}")
        raise typer.Exit


def main() -> None:
    """Runs the command line; what is wrong with the input is said in a line, not a traceback."""
    logging.basicConfig(
        level=logging.INFO,
        format="%(message)s",
        handlers=[RichHandler(console=CONSOLE, show_path=False, show_time=False)],
    )
    for library in ("absl", "tensorflow"):
        logging.getLogger(library).setLevel(logging.WARNING)
    try:
        app(standalone_mode=True)
    except WorkerLost as error:
        fail(str(error), os.EX_TEMPFAIL)
    except RLEError as error:
        fail(str(error))
    except OSError as error:  # a folder that cannot be written, a full disk
        fail(f"{error.filename or 'input or output'}: {error.strerror or error}")

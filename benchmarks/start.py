"""What `import rle_tf` and `rle-tf --help` take, against importing TensorFlow and PyTorch.

pip install -e ".[benchmark]"
python -m benchmarks.start
"""

import argparse
import subprocess
import sys

from benchmarks.measure import show
from rle_tf.timing import bind, in_turns

TURNS = 9


def call(*arguments: str):
    command = [sys.executable, *arguments]
    return lambda: subprocess.run(command, check=True, capture_output=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cores", type=int, default=2)
    bind(parser.parse_args().cores)
    sides = {
        "python -c pass": call("-c", "pass"),
        "import rle_tf": call("-c", "import rle_tf"),
        "rle-tf --help": call("-m", "rle_tf", "--help"),
        "import tensorflow": call("-c", "import tensorflow"),
        "import torch": call("-c", "import torch"),
    }
    packages = ("tensorflow", "torch", "typer")
    show("A new process", in_turns(sides, TURNS), "import tensorflow", ("s", 1.0), packages)


if __name__ == "__main__":
    main()

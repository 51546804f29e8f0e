"""How fast training images come from records, against the photographs that they were packed of.

    python benchmarks/records.py configs/coco_sample.yaml --set data.source.root=PATH/TO/coco

Both readers take turns in one process; the table has the medians and their range.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from rle_tf.config import RunConfig, load_config
from rle_tf.data.records import write_records

TURNS, BATCHES, WARM_UP = 7, 40, 10


def batches(config: RunConfig) -> Iterator:
    dataset = config.open_training().batches(
        config.input_format,
        config.data.augmentation,
        batch_size=config.train.batch_size,
        seed=config.seed,
    )
    return iter(dataset)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("recipe")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides")
    parser.add_argument("--shards", type=int, default=8)
    options = parser.parse_args()
    config = load_config(options.recipe, options.overrides)
    with tempfile.TemporaryDirectory() as folder:
        source = config.open_source("train")
        view = config.data.augmentation
        index = write_records(
            source, config.input_format, view, f"{folder}/records", shards=options.shards
        )
        packed = load_config(options.recipe, [*options.overrides, f"data.records={folder}/records"])
        readers = {"photographs": batches(config), "records": batches(packed)}
        speeds = {name: [] for name in readers}
        for turn in range(TURNS + 1):
            for name, reader in readers.items():
                for _ in range(WARM_UP):  # what was fetched ahead while the other one ran
                    next(reader)
                start = time.perf_counter()
                for _ in range(BATCHES):
                    next(reader)
                if turn:
                    images = BATCHES * config.train.batch_size
                    speeds[name].append(images / (time.perf_counter() - start))
        size = sum(shard.bytes for shard in index.shards) / len(source.records) / 1024
    table = Table("reader", "images a second", "range", title=f"{options.recipe}, {size:.0f} KiB")
    for name, found in speeds.items():
        table.add_row(
            name, f"{statistics.median(found):.0f}", f"{min(found):.0f} to {max(found):.0f}"
        )
    Console().print(table)
    ratios = [b / a for a, b in zip(*speeds.values(), strict=True)]
    Console().print(f"records / photographs: {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    main()

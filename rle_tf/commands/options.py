"""What several commands take, and what they make of it."""

from pathlib import Path
from typing import Annotated

import typer

from rle_tf.errors import ModelError

# The recipes lie inside an installed package and beside it in a checkout.
_PACKAGE = Path(__file__).parents[1]
RECIPES = next(
    path for path in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if path.is_dir()
)

Recipe = Annotated[
    Path,
    typer.Argument(
        metavar="CONFIG", help="A YAML recipe, or the name of one that comes with rle-tf."
    ),
]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a training run.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override a key: --set train.batch_size=64"),
]
DataRoot = Annotated[
    Path | None,
    typer.Option(help="Folder of the dataset, in place of the recipe's data.source.root."),
]


def load_recipe(recipe: Path, data_root: Path | None, overrides: list[str] | None):
    from rle_tf.config import load_config

    return load_config(recipe_path(recipe), (overrides or []) + root_override(data_root))


def recipe_path(recipe: Path) -> Path:
    """The path of a recipe, or of the one that comes with the package under this name."""
    packaged = RECIPES / f"{recipe}.yaml"
    return packaged if not recipe.exists() and packaged.is_file() else recipe


def root_override(data_root: Path | None) -> list[str]:
    # Absolute: the run's config is read from other folders, too.
    return [f"data.source.root={str(data_root.expanduser().resolve())!r}"] if data_root else []


def open_run(run: Path, data_root: Path | None, overrides: list[str] | None):
    """The folder of a training run, its config with changes, and its regressor."""
    from rle_tf.run_folder import RunFolder, load_regressor

    folder = RunFolder(run)
    if not folder.config.is_file():
        raise ModelError(f"{folder.config}: no such file; expected the folder of a training run")
    config = load_recipe(folder.config, data_root, overrides)
    return folder, config, load_regressor(folder.regressor)

"""Methods under one budget."""

import math
from pathlib import Path

import pytest

from rle_tf.comparison import METHODS, Row, compare, markdown, variant
from rle_tf.config import load_config
from rle_tf.errors import ConfigError

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.fixture
def config():
    return load_config(CONFIGS / "demo.yaml", ["loss.flow_hidden=16"])


@pytest.mark.parametrize("method", METHODS)
def test_a_variant_differs_in_what_belongs_to_its_method(config, method):
    found = variant(config, method, 3)
    assert found.seed == 3 and found.name == f"demo-{method}-3"
    assert found.data == config.data and found.train == config.train
    assert found.loss.kind == METHODS[method]["loss"]["kind"]
    assert getattr(found.loss, "flow_hidden", 16) == 16
    kept = {"head", "deconvolutions"}
    assert found.model.model_dump(exclude=kept) == config.model.model_dump(exclude=kept)
    # Features at an eighth of the crop.
    with_maps = "model" in METHODS[method]
    assert found.model.deconvolutions == (1 if with_maps else 0)
    assert found.model.head == METHODS[method].get("model", {"head": "soft_argmax"})["head"]


def test_a_heatmap_model_of_a_recipe_that_teaches_maps(config):
    config = load_config(
        CONFIGS / "demo.yaml",
        ["train.map_weight=1.0", "model.map_sigma=true", "model.sigma_dropout=0.5",
         "model.map_window=1.2"],
    )  # fmt: skip
    heatmap, l1 = (variant(config, method, 0) for method in ("heatmap", "l1"))
    assert heatmap.train.map_weight == 0
    assert not heatmap.model.map_sigma and not heatmap.model.sigma_dropout
    assert l1.train.map_weight == 1 and l1.model.map_window == 1.2


def test_an_hrnet_has_fine_maps_already(config):
    overrides = ["model={backbone: hrnet_w32, head: pooled}", "data.image_size=[64, 64]"]
    config = load_config(CONFIGS / "demo.yaml", overrides)
    assert variant(config, "integral", 0).model.deconvolutions == 0


def test_what_cannot_be_compared(config, tmp_path):
    with pytest.raises(ConfigError, match="method 'l3'; expected some of l1, l2, gaussian"):
        compare(config, ["l1", "l3"], [0], tmp_path / "none")
    with pytest.raises(ConfigError, match=r"methods: found \['l1', 'l1'\]; expected some, each o"):
        compare(config, ["l1", "l1"], [0], tmp_path / "none")
    of_sigma = load_config(CONFIGS / "pose_small_seventh.yaml")
    with pytest.raises(ConfigError, match="model.trained: found sigma in .*seventh; expected all"):
        variant(of_sigma, "rle", 0)
    lifter = load_config(CONFIGS / "h36m_lifting_rle.yaml")
    with pytest.raises(ConfigError, match="method 'heatmap' has maps; expected a recipe of model"):
        compare(lifter, ["l1", "heatmap"], [0], tmp_path / "none")
    deep = load_config(
        CONFIGS / "synthetic3d.yaml",
        [f"data.source.root={tmp_path / 'people'}", "data.source.train_people=4",
         "data.source.val_people=2", "data.source.rendered_size=[64, 64]"],
    )  # fmt: skip
    with pytest.raises(ConfigError, match="method 'heatmap': maps have no depth"):
        compare(deep, ["l1", "heatmap"], [0], tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_run_of_another_budget_is_not_compared(tmp_path):
    people = [f"data.source.root={tmp_path / 'people'}", "data.source.train_people=4",
              "data.source.val_people=2", "data.source.rendered_size=[64, 64]"]  # fmt: skip
    config = load_config(CONFIGS / "demo.yaml", people)
    (tmp_path / "out/l1-0").mkdir(parents=True)
    variant(config, "l1", 0).save(tmp_path / "out/l1-0/config.yaml")
    longer = load_config(CONFIGS / "demo.yaml", [*people, "train.epochs=99"])
    with pytest.raises(ConfigError, match="train.epochs was 18 and is 99; expected the same"):
        compare(longer, ["l1"], [0], tmp_path / "out")


def test_peaks_are_as_wide_as_simple_baseline_s(config):
    def sigma(*overrides: str) -> float:
        return variant(load_config(CONFIGS / "demo.yaml", overrides), "heatmap", 0).loss.sigma_cells

    assert sigma("data.image_size=[256, 192]") == 2  # maps of 64x48
    assert sigma("data.image_size=[128, 96]") == 1
    assert sigma("data.image_size=[64, 32]") == 1
    heatmaps = ("model.head=heatmap", "loss={kind: heatmap, sigma_cells: 3.0}")
    assert sigma(*heatmaps) == 3


def test_the_table_has_means_and_deviations():
    rows = [
        Row("l1", {"AP": [0.5, 0.6], "PCK@0.1": [0.7, 0.7]}, [math.nan] * 2, [], 1_500_000,
            250_000_000, 1.0),
        Row("rle", {"AP": [0.7, 0.8], "PCK@0.1": [0.8, 0.9]}, [0.5, 0.6], [], 1_500_000,
            250_000_000, 1.25, 0.99),
    ]  # fmt: skip
    head, _, l1, rle = markdown(rows).splitlines()
    assert head == (
        "| method | AP | PCK@0.1 | confidence and OKS | parameters | GFLOPs | step / l1's "
        "| latency / l1's |"
    )
    assert l1 == "| l1 | 0.550 ± 0.071 | 0.700 ± 0.000 | - | 1.5 M | 0.25 | 1.00 | - |"
    assert rle.startswith("| rle | 0.750 ± 0.071 | 0.850 ± 0.071 | 0.550 ± 0.071 |")

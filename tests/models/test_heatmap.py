import keras
import numpy as np
import pytest

from rle_tf.geometry import KNOWN_LOG_SIGMA
from rle_tf.models.heatmap import deconvolve, peaks
from rle_tf.models.regressor import build_regressor
from rle_tf.skeletons import COCO17


def decoded(maps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`peaks` of (B, h, w, K) as a model."""
    image = keras.Input(maps.shape[1:])
    mu, log_sigma = keras.Model(image, peaks(image))(maps.astype("float32"))
    return mu.numpy(), log_sigma.numpy()


def test_peaks_are_those_of_a_search_through_the_cells():
    rng = np.random.default_rng(0)
    maps = rng.uniform(-0.2, 1.2, (5, 7, 9, 4))
    mu, log_sigma = decoded(maps)
    for row in range(5):
        for joint in range(4):
            cells = maps[row, ..., joint]
            y, x = np.unravel_index(cells.argmax(), cells.shape)
            wanted = np.array([x, y], float)
            if 0 < x < 8:
                wanted[0] += 0.25 * np.sign(cells[y, x + 1] - cells[y, x - 1])
            if 0 < y < 6:
                wanted[1] += 0.25 * np.sign(cells[y + 1, x] - cells[y - 1, x])
            wanted = (wanted + 0.5) / (9, 7) - 0.5
            np.testing.assert_allclose(mu[row, joint], wanted, atol=1e-6)
            sigma = max(1 - cells.max(), 1e-4)
            np.testing.assert_allclose(np.exp(log_sigma[row, joint]), sigma, rtol=1e-3)


def test_a_joint_comes_back_from_its_heatmap_within_a_quarter_of_a_cell():
    rng = np.random.default_rng(1)
    keypoints = rng.uniform(-0.4, 0.4, (50, 1, 2))
    x, y = np.moveaxis((keypoints[:, 0] + 0.5) * (48, 64) - 0.5, -1, 0)
    along_x = np.exp(-np.square(np.arange(48) - x[:, None]) / 8)
    along_y = np.exp(-np.square(np.arange(64) - y[:, None]) / 8)
    maps = along_y[:, :, None, None] * along_x[:, None, :, None]
    mu, _ = decoded(maps)
    assert np.abs((mu - keypoints) * (48, 64)).max() <= 0.2501


@pytest.mark.parametrize("value", [0.0, 0.7, 3.0, -2.0])
def test_an_even_map_is_its_middle(value):
    mu, log_sigma = decoded(np.full((1, 4, 6, 2), value))
    np.testing.assert_allclose(mu, 0, atol=1e-6)
    assert np.isfinite(log_sigma).all() and (log_sigma <= 0).all()
    assert (log_sigma > KNOWN_LOG_SIGMA).all()


def test_deconvolutions_double_the_map():
    image = keras.Input((4, 3, 8))
    assert deconvolve(image, 3).shape == (None, 32, 24, 256)
    assert deconvolve(image, 0).shape == (None, 4, 3, 8)


def test_simple_baseline_is_the_papers_size():
    """Table 5 of the paper: 34.0 M parameters, maps of 64x48."""
    model = build_regressor("resnet50", COCO17, head="heatmap", deconvolutions=3)
    assert model.get_layer("score_maps").output.shape == (None, 64, 48, 17)
    parameters = sum(np.prod(variable.shape) for variable in model.trainable_variables)
    assert round(parameters / 1e6, 1) == 34.0

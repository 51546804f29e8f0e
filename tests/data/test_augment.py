"""Augmentation: what each function may do to a person, alone and inside `tf.data`."""

from statistics import NormalDist

import numpy as np
import pytest
import tensorflow as tf
from pydantic import ValidationError

from rle_tf import geometry
from rle_tf.data.augment import (
    DRAWS,
    JOINT_OCCLUDER,
    OCCLUSION_TRIES,
    VIEW_DRAWS,
    WHOLE_SHIFT,
    Augmentation,
    augment,
    colour,
    flip,
    half_body,
    occlude,
    occlude_joint,
    occlusion_box,
    reach,
    rotation,
    scale,
)
from rle_tf.data.crops import encode_target
from rle_tf.skeletons import COCO17, H36M18, SKELETONS, Skeleton

SIZE = (256, 192)
JOINT = {name: index for index, name in enumerate(COCO17.joints)}
UPPER = np.isin(np.arange(17), COCO17.upper_body)
EVERYBODY = np.ones(17, bool)
CENTRE, BOX = np.float32([110, 120]), np.float32([150, 200])
NO_HALF, NO_TURN, NO_FLIP = 0.999, 0.999, 0.999

# Somebody upright, as a camera in front sees them: their left is on the right.
STANDING = np.zeros((17, 2), np.float32)
for _name, _x, _y in (
    ("nose", 0, 40), ("eye", 4, 36), ("ear", 9, 38), ("shoulder", 22, 65), ("elbow", 30, 95),
    ("wrist", 33, 120), ("hip", 14, 125), ("knee", 15, 165), ("ankle", 16, 205),
):  # fmt: skip
    for _side, _sign in (("left_", 1), ("right_", -1)):
        STANDING[JOINT.get(_side + _name, JOINT["nose"])] = 110 + _sign * _x, _y


def draws(half=NO_HALF, which=0.0, size=0.5, turn=NO_TURN, angle=0.5, mirrored=NO_FLIP):
    return np.float32([half, which, size, turn, angle, mirrored])


def uniform(count: int) -> tf.Tensor:
    return tf.random.stateless_uniform((count, DRAWS), (1, 2))


# ---- flip


@pytest.mark.parametrize("skeleton", SKELETONS.values(), ids=SKELETONS)
@pytest.mark.parametrize("dims", [2, 3])
def test_flipping_twice_changes_nothing(skeleton, dims):
    joints = len(skeleton.joints)
    keypoints = tf.random.stateless_uniform((joints, dims), (0, dims), 0, 200)
    labelled = tf.random.stateless_uniform((joints,), (3, 4)) < 0.5
    person = keypoints, labelled, tf.constant(CENTRE)
    for _ in range(2):
        person = flip(*person, 200, skeleton.flip_permutation)
    np.testing.assert_allclose(person[0], keypoints, atol=1e-4)
    np.testing.assert_array_equal(person[1], labelled)
    np.testing.assert_allclose(person[2], CENTRE, atol=1e-4)


def test_flipping_mirrors_x_and_exchanges_left_and_right():
    labelled = EVERYBODY.copy()
    labelled[JOINT["left_wrist"]] = False
    keypoints = np.concatenate([STANDING, np.arange(17, dtype=np.float32)[:, None]], axis=1)
    found, seen, centre = flip(keypoints, labelled, CENTRE, 300, COCO17.flip_permutation)
    left, right = JOINT["left_wrist"], JOINT["right_wrist"]
    # The last column of pixels becomes the first; depth stays with its joint.
    np.testing.assert_allclose(found[right], [299 - (110 + 33), 120, left])
    np.testing.assert_allclose(found[JOINT["nose"]], [299 - 110, 40, JOINT["nose"]])
    np.testing.assert_allclose(centre, [299 - 110, 120])
    assert np.flatnonzero(~seen.numpy()).tolist() == [right]


# ---- scale and rotation


def test_scales_fill_their_range():
    factors = [
        scale(tf.constant(BOX), (0.75, 1.25), None, draw) / BOX for draw in uniform(200)[:, 2]
    ]
    assert (np.ptp(factors, axis=1) < 1e-6).all()  # the aspect stays
    assert 0.75 <= np.min(factors) < 0.76 and 1.24 < np.max(factors) < 1.25
    assert np.mean(factors) == pytest.approx(1, abs=0.03)


def test_rotations_are_as_often_and_as_large_as_said():
    numbers = uniform(4000)
    angles = rotation(40.0, None, 0.3, numbers[:, 3], numbers[:, 4]).numpy()
    turned = angles[angles != 0]
    assert len(turned) / len(angles) == pytest.approx(0.3, abs=0.03)
    assert -40 <= turned.min() < -39 and 39 < turned.max() <= 40
    assert turned.mean() == pytest.approx(0, abs=2.5)


@pytest.mark.parametrize(("probability", "share"), [(0.0, 0), (1.0, 1)])
def test_rotation_never_and_always(probability, share):
    numbers = uniform(500)
    angles = rotation(40.0, None, probability, numbers[:, 3], numbers[:, 4])
    assert np.mean(angles != 0) == share


# The normal densities of the 3D recipe. What is drawn, from the least to the most.
LEVELS = np.concatenate([[0], np.linspace(0.001, 0.999, 999), [1 - 2**-24]]).astype("float32")
NORMAL = np.array([NormalDist().inv_cdf(float(p)) for p in LEVELS[1:]])


def test_normal_scales_are_clipped_to_their_range():
    factors = scale(tf.constant(BOX), (0.7, 1.3), 0.3, LEVELS[:, None]).numpy() / BOX
    np.testing.assert_allclose(factors[:, 0], factors[:, 1], rtol=1e-6)
    expected = np.clip(1 + 0.3 * NORMAL, 0.7, 1.3)
    np.testing.assert_allclose(factors[1:, 0], expected, rtol=1e-4)
    assert factors[0, 0] == pytest.approx(0.7) and factors[-1, 0] == pytest.approx(1.3)
    # One deviation to each side is kept.
    assert np.mean(factors[:, 0] < 0.7001) == pytest.approx(0.159, abs=0.002)


def test_normal_rotations_are_clipped_to_their_limit():
    angles = rotation(60.0, 30.0, 0.6, np.zeros_like(LEVELS), LEVELS).numpy()
    np.testing.assert_allclose(angles[1:], np.clip(30 * NORMAL, -60, 60), atol=1e-2)
    assert angles[0] == -60 and angles[-1] == 60
    numbers = uniform(2000)
    angles = rotation(60.0, 30.0, 0.6, numbers[:, 3], numbers[:, 4]).numpy()
    assert np.mean(angles != 0) == pytest.approx(0.6, abs=0.04)
    assert angles[angles != 0].std() == pytest.approx(28.6, abs=1.5)  # 30 without the clipping
    never = rotation(60.0, 30.0, 0.0, np.zeros_like(LEVELS), LEVELS)
    np.testing.assert_array_equal(never, 0)


# ---- half body


def half(labelled, draw, keypoints=STANDING, centre=CENTRE, size=BOX):
    found = half_body(keypoints, labelled, centre, size, COCO17, 1.5, tf.constant(draw))
    return found[0].numpy(), found[1].numpy()


@pytest.mark.parametrize(("draw", "members"), [(0.2, UPPER), (0.8, ~UPPER)])
def test_a_half_is_looked_at(draw, members):
    centre, size = half(EVERYBODY, draw)
    joints = STANDING[members]
    np.testing.assert_allclose(centre, joints.mean(axis=0), rtol=1e-5)
    assert (np.abs(joints - centre) <= size / 2).all()
    assert not (np.abs(STANDING - centre) <= size / 2).all()  # the other half is cut
    assert size[0] / size[1] == pytest.approx(BOX[0] / BOX[1])
    # 1.5 times the smallest box of that aspect around the joints.
    extent = np.ptp(joints, axis=0)
    assert max(extent[0] / size[0], extent[1] / size[1]) == pytest.approx(1 / 1.5)


def test_a_half_that_is_wide_sets_the_width():
    lying = STANDING[:, ::-1].copy()
    _, size = half(EVERYBODY, 0.8, lying)
    assert size[0] == pytest.approx(1.5 * (205 - 125))
    assert size[0] / size[1] == pytest.approx(BOX[0] / BOX[1])


def test_halves_are_equally_likely():
    centres = [half(EVERYBODY, float(draw))[0][1] for draw in uniform(150)[:, 1]]
    assert np.mean(np.array(centres) < 100) == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize(("draw", "few"), [(0.2, UPPER), (0.8, ~UPPER)])
def test_the_other_half_is_taken_where_the_drawn_one_has_too_few_joints(draw, few):
    labelled = ~few
    labelled[np.flatnonzero(few)[:2]] = True
    centre, _ = half(labelled, draw)
    np.testing.assert_allclose(centre, STANDING[~few].mean(axis=0), rtol=1e-5)


def test_the_box_stays_where_neither_half_has_enough_joints():
    labelled = np.isin(np.arange(17), [0, 1, 15, 16])
    for draw in (0.2, 0.8):
        centre, size = half(labelled, draw)
        np.testing.assert_array_equal(centre, CENTRE)
        np.testing.assert_array_equal(size, BOX)


def test_unlabelled_joints_do_not_move_the_half():
    labelled = EVERYBODY.copy()
    labelled[JOINT["left_wrist"]] = False
    keypoints = STANDING.copy()
    centre, size = half(labelled, 0.2, keypoints)
    keypoints[JOINT["left_wrist"]] = np.nan
    for found, expected in zip(half(labelled, 0.2, keypoints), (centre, size), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_joints_on_top_of_one_another_give_a_box():
    _, size = half(EVERYBODY, 0.2, np.full((17, 2), 50, np.float32))
    assert size[0] == 1.5 and np.isfinite(size).all()


# ---- all of it


RECIPE = Augmentation()


def view(numbers, augmentation=RECIPE, labelled=EVERYBODY):
    found = augment(
        tf.constant(STANDING),
        tf.constant(labelled),
        tf.constant(CENTRE),
        tf.constant(BOX),
        tf.constant(300),
        COCO17,
        augmentation,
        tf.constant(numbers),
    )
    return [each.numpy() for each in found]


def test_depths_stay_with_their_joints():
    keypoints = np.random.default_rng(0).uniform(0, 200, (18, 3)).astype("float32")
    keypoints[5, 2] = np.nan
    turned_round = Augmentation(rotation_probability=1.0, scale_std=0.3, rotation_std_deg=30.0)
    seen = set()
    for numbers in uniform(20):
        found, _, _, _, rotation_deg, flipped = augment(
            tf.constant(keypoints),
            tf.ones(18, bool),
            tf.constant(CENTRE),
            tf.constant(BOX),
            tf.constant(300),
            H36M18,
            turned_round,
            numbers,
        )
        order = H36M18.flip_permutation if flipped else np.arange(18)
        np.testing.assert_array_equal(found[:, 2], keypoints[order, 2])
        assert rotation_deg != 0
        seen.add(bool(flipped))
    assert seen == {True, False}


def test_no_augmentation_changes_nothing():
    still = Augmentation(
        flip_probability=0,
        scale_range=(1.0, 1.0),
        rotation_probability=0,
        half_body_probability=0,
    )
    for numbers in uniform(20):
        keypoints, labelled, centre, size, rotation_deg, flipped = view(numbers, still)
        np.testing.assert_array_equal(keypoints, STANDING)
        np.testing.assert_array_equal(labelled, EVERYBODY)
        np.testing.assert_array_equal(centre, CENTRE)
        np.testing.assert_array_equal(size, BOX)
        assert rotation_deg == 0 and not flipped


def test_the_paper_s_shares():
    views = [view(numbers) for numbers in uniform(250)]
    assert np.mean([flipped for *_, flipped in views]) == pytest.approx(0.5, abs=0.08)
    assert np.mean([turned != 0 for *_, turned, _ in views]) == pytest.approx(0.5, abs=0.08)
    halved = [abs(centre[1] - CENTRE[1]) > 1 for _, _, centre, *_ in views]
    assert np.mean(halved) == pytest.approx(0.3, abs=0.08)


def test_the_choices_are_drawn_apart():
    flipped = view(draws(mirrored=0.1))
    assert flipped[5] and flipped[4] == 0
    np.testing.assert_allclose(flipped[2], [299 - 110, 120])
    np.testing.assert_array_equal(flipped[3], BOX)
    turned = view(draws(turn=0.1, angle=0.75))
    assert turned[4] == pytest.approx(22.5) and not turned[5]
    larger = view(draws(size=0.9))
    np.testing.assert_allclose(larger[3], BOX * 1.2, rtol=1e-5)
    halved = view(draws(half=0.1, which=0.9, size=0.9))
    _, size = half(EVERYBODY, 0.9)
    np.testing.assert_allclose(halved[3], size * 1.2, rtol=1e-5)


@pytest.mark.parametrize(("count", "halved"), [(3, False), (4, True)])
def test_only_people_with_enough_labelled_joints_are_halved(count, halved):
    labelled = np.arange(17) < count  # of the head, so that the upper half has three
    _, _, centre, *_ = view(draws(half=0.0), labelled=labelled)
    assert (centre[1] != CENTRE[1]) == halved


# ---- colour


def test_each_channel_is_multiplied_by_a_factor_of_its_own():
    image = tf.reshape(tf.range(60.0), (4, 5, 3)) + 100
    factors = []
    for numbers in uniform(300):
        ratio = (colour(image, 0.2, numbers) / image).numpy()
        np.testing.assert_allclose(ratio, np.broadcast_to(ratio[0, 0], ratio.shape), rtol=1e-5)
        factors.append(ratio[0, 0])
    factors = np.array(factors)
    assert (factors.min(axis=0) >= 0.8).all() and (factors.min(axis=0) < 0.81).all()
    assert (factors.max(axis=0) <= 1.2).all() and (factors.max(axis=0) > 1.19).all()
    np.testing.assert_allclose(factors.mean(axis=0), 1, atol=0.03)
    np.testing.assert_allclose(np.corrcoef(factors.T), np.eye(3), atol=0.2)


def test_colours_stay_in_their_range_and_without_strength_as_they_are():
    image = tf.random.stateless_uniform((8, 9, 3), (0, 1), 0, 255)
    for numbers in uniform(30):
        np.testing.assert_array_equal(colour(image, 0.0, numbers), image)
        found = colour(image, 0.9, numbers).numpy()
        assert found.min() >= 0 and found.max() <= 255
    brightest = colour(image, 0.9, tf.fill([DRAWS], 0.999)).numpy()
    assert (brightest[image > 150] == 255).all()


# ---- occlusion

PERSON, PHOTOGRAPH = np.float32([60, 40, 160, 240]), np.int32([320, 280])


def rectangle(numbers, box=PERSON, image_wh=PHOTOGRAPH, largest=0.7):
    return occlusion_box(box, image_wh, largest, numbers).numpy()


def tries(*rectangles) -> np.ndarray:
    """Draws whose rectangles are (share, ratio, x, y); the last one again and again."""
    rectangles = [*rectangles, *[rectangles[-1]] * (OCCLUSION_TRIES - len(rectangles))]
    numbers = np.zeros(DRAWS, np.float32)
    first = VIEW_DRAWS + 3
    numbers[first : first + 4 * OCCLUSION_TRIES] = np.ravel(rectangles)
    return numbers


def test_rectangles_are_as_large_and_as_long_as_said():
    boxes = np.array([rectangle(numbers) for numbers in uniform(300)])
    assert (boxes == np.floor(boxes)).all()
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    assert (boxes[:, :2] >= 0).all() and (boxes[:, 2:] <= PHOTOGRAPH).all()
    share = width * height / (100 * 200)
    assert share.max() <= 0.7 and share.max() > 0.6 and share.min() < 0.02
    assert share.mean() == pytest.approx(0.35, abs=0.05)
    # Each side was rounded down to whole pixels.
    assert (height + 1 > 0.3 * width).all() and (0.3 * height < width + 1).all()
    large = share > 0.05
    ratio = (height / width)[large]
    assert ratio.min() < 0.5 and ratio.max() > 2.5
    # Inside the person's box but for sides that are longer than it, which reach over both edges.
    for axis, extent in enumerate((width, height)):
        low, high = PERSON[[axis, axis + 2]]
        fits = extent < high - low - 2
        assert fits.any()
        assert (boxes[fits, axis] >= low).all() and (boxes[fits, axis + 2] < high).all()
        assert (boxes[~fits, axis] <= low).all() and (boxes[~fits, axis + 2] >= high - 2).all()


def test_the_first_rectangle_inside_the_image_is_taken():
    person = np.float32([0, 0, 100, 100])
    # Wider than the box, from a place left of it; and one in the middle.
    outside, inside = (0.999, 0.0, 0.5, 0.5), (0.4, 0.26, 0.5, 0.5)
    alone = rectangle(tries(inside), person)
    assert (alone[2:] > alone[:2]).all()
    np.testing.assert_array_equal(rectangle(tries(outside, inside), person), alone)
    np.testing.assert_array_equal(rectangle(tries(*[outside] * 7, inside), person), alone)
    other = rectangle(tries(inside, (0.1, 0.26, 0.1, 0.9)), person)
    np.testing.assert_array_equal(other, alone)
    np.testing.assert_array_equal(rectangle(tries(outside), person), 0)


def test_rectangles_are_the_same_in_a_dataset():
    numbers = uniform(40)
    mapped = tf.data.Dataset.from_tensor_slices(numbers).map(
        lambda row: occlusion_box(tf.constant(PERSON), tf.constant(PHOTOGRAPH), 0.7, row)
    )
    for row, inside in zip(numbers, mapped, strict=True):
        np.testing.assert_array_equal(inside, rectangle(row))


VIEWS = {
    "upright": (0.0, False),
    "turned": (30.0, False),
    "flipped": (0.0, True),
    "turned and flipped": (-50.0, True),
}


@pytest.mark.parametrize("name", VIEWS)
def test_noise_hides_the_rectangle_and_nothing_else(name):
    turned, flipped = VIEWS[name]
    centre = tf.constant((PERSON[:2] + PERSON[2:]) / 2)
    if flipped:
        centre = geometry.transform_points(geometry.mirror(PHOTOGRAPH[0]), centre)
    matrix = geometry.crop_affine(centre, tf.constant([165.0, 220.0]), turned, SIZE)
    if flipped:
        matrix = geometry.compose(matrix, geometry.mirror(PHOTOGRAPH[0]))
    crop = tf.fill((*SIZE, 3), -1.0)  # which no noise is
    numbers = tries((0.2, 0.4, 0.2, 0.3))
    box = rectangle(numbers)
    found = occlude(crop, matrix, PERSON, PHOTOGRAPH, 0.7, numbers, tf.constant([3, 4], tf.int64))
    hidden = (found.numpy() != -1).all(axis=-1)
    np.testing.assert_array_equal((found.numpy() != -1).any(axis=-1), hidden)
    assert found.dtype == tf.float32 and found.shape == crop.shape

    # Whole pixels: the rectangle begins half a pixel before the centre of the first.
    low, high = box[:2] - 0.5, box[2:] - 0.5
    corners = np.array([low, (high[0], low[1]), high, (low[0], high[1])])
    middle = (low + high) / 2
    for shrunk, expected in ((0.95, True), (1.05, False)):
        edge = (middle + (corners - middle) * shrunk).astype("float32")
        sides = [edge + (np.roll(edge, -1, axis=0) - edge) * t for t in np.linspace(0, 1, 9)]
        places = geometry.transform_points(matrix, np.float32(sides).reshape(-1, 2))
        x, y = np.rint(places).astype(int).T
        assert (hidden[y, x] == expected).all()
    rows, columns = np.nonzero(hidden)
    place = geometry.transform_points(matrix, middle.astype("float32"))
    # Upright, a row or column too many on one side moves the mean by half a pixel.
    np.testing.assert_allclose((columns.mean(), rows.mean()), place, atol=0.1 if turned else 0.51)
    area = np.prod(box[2:] - box[:2]) * (192 / 165) ** 2
    assert hidden.sum() == pytest.approx(area, rel=0.005 if turned else 0.03)

    noise = found.numpy()[hidden]
    assert noise.min() >= 0 and noise.max() < 255
    assert noise.mean() == pytest.approx(127.5, abs=3) and noise.std() == pytest.approx(73.6, abs=3)
    np.testing.assert_allclose(np.corrcoef(noise.T), np.eye(3), atol=0.05)


def test_in_the_image_itself_whole_pixels_are_hidden():
    crop = tf.fill((280, 320, 3), -1.0)
    for numbers in uniform(10):
        found = occlude(crop, tf.eye(2, 3), PERSON, PHOTOGRAPH, 0.7, numbers, tf.constant([0, 1]))
        left, top, right, bottom = rectangle(numbers).astype(int)
        expected = np.zeros((280, 320), bool)
        expected[top:bottom, left:right] = True
        np.testing.assert_array_equal((found.numpy() != -1).all(axis=-1), expected)


def test_noise_follows_its_seed_and_is_the_same_in_a_dataset():
    crop, matrix = tf.fill((64, 48, 3), -1.0), tf.constant([[0.25, 0, -5], [0, 0.25, 0]])
    numbers = tries((0.5, 0.3, 0.5, 0.5))
    seeds = np.int64([[0, 5], [0, 6], [1, 5], [0, 5]])

    def one(seed):
        return occlude(
            crop, matrix, tf.constant(PERSON), tf.constant(PHOTOGRAPH), 0.7, numbers, seed
        )

    mapped = list(tf.data.Dataset.from_tensor_slices(seeds).map(one))
    for seed, inside in zip(seeds, mapped, strict=True):
        np.testing.assert_array_equal(inside, one(tf.constant(seed)))
    np.testing.assert_array_equal(mapped[0], mapped[3])
    hidden = mapped[0].numpy() != -1
    assert hidden.any() and not hidden.all()
    for other in mapped[1:3]:
        np.testing.assert_array_equal(other.numpy() != -1, hidden)
        assert (other.numpy()[hidden] != mapped[0].numpy()[hidden]).mean() > 0.99


def test_where_no_rectangle_is_inside_nothing_is_hidden():
    crop = tf.random.stateless_uniform((64, 48, 3), (0, 1), 0, 255)
    found = occlude(
        crop,
        tf.eye(2, 3),
        np.float32([0, 0, 60, 60]),
        np.int32([8, 8]),
        1.0,
        tries((0.9, 0.5, 0.5, 0.5)),
        tf.constant([0, 1], tf.int64),
    )
    np.testing.assert_array_equal(found, crop)


def test_a_skeleton_without_halves_is_not_halved():
    hand = Skeleton("hand", ("a", "b", "c", "d", "e"), (), (), ())
    keypoints = np.float32([[20, 20], [80, 20], [20, 80], [80, 80], [50, 50]])
    draws = np.zeros(DRAWS, np.float32)  # half body wherever it can be
    draws[5] = 0.9
    view = Augmentation(scale_range=(1.0, 1.0), rotation_probability=0.0)
    person = keypoints, np.ones(5, bool), np.float32([50, 50]), np.float32([80, 80])
    found = augment(*map(tf.constant, person), 100, hand, view, draws)
    for value, wanted in zip(found[:4], person, strict=True):
        np.testing.assert_array_equal(value, wanted)
    low, high = reach(*map(tf.constant, person), hand, view)
    np.testing.assert_allclose([low, high], [[10, 10], [90, 90]], atol=1e-4)


# ---- squares over joints


# A crop that is the image itself.
AS_IT_IS = np.float32([[1, 0, 0], [0, 1, 0]]), np.int32([96, 128])


def square(*numbers: float) -> np.ndarray:
    """Random numbers of a joint, a side, a kind, a grey and a shift in y and in x."""
    return np.float32([*np.zeros(DRAWS - 7), 0.0, *numbers])


# Of those numbers, whether a square hides anything, and its side.
_HIDES = [DRAWS - 7, DRAWS - 5]


@pytest.mark.parametrize("side", [0.0, 0.5, 0.99])
def test_a_square_hides_the_joint_that_is_drawn(side):
    crop = tf.fill((128, 96, 3), -1.0)
    places = np.float32([[200, 5], [30.0, 40], [70, 100], [50, 60]])
    labelled = np.array([True, True, False, True])  # the first is outside
    for joint, (x, y) in ((0.2, places[1]), (0.7, places[3])):
        found, moved = occlude_joint(
            crop, *AS_IT_IS, places, labelled, 1.0, 0.0, square(joint, side, 0.5, 0.4, 0, 0), (0, 1)
        )
        np.testing.assert_array_equal(moved, 0)
        hidden = (found.numpy() != -1).all(axis=-1)
        np.testing.assert_allclose(found.numpy()[hidden], 0.4 * 255, rtol=1e-5)
        rows, columns = np.nonzero(hidden)
        assert (columns.mean(), rows.mean()) == pytest.approx((x, y), abs=0.5)
        low, high = JOINT_OCCLUDER
        assert np.sqrt(hidden.sum()) == pytest.approx(96 * (low + (high - low) * side), abs=1)


def test_whole_crops_are_hidden_among_squares_alone():
    with pytest.raises(ValidationError, match="whole_occlusion is a share of joint_occlusion's"):
        Augmentation(whole_occlusion=0.1)


@pytest.mark.parametrize("kind", [0.0, 0.4, 0.7, 0.99])
def test_some_squares_hide_everything(kind):
    crop = tf.random.stateless_uniform((128, 96, 3), (0, 1), 0, 255)
    labelled, seed = np.array([True]), tf.constant([0, 1])

    def found(side: float, view=AS_IT_IS) -> np.ndarray:
        draws = square(0.5, side, kind, 0.4, 0.5, 0.5)
        places = np.float32([[2, 3]])
        return occlude_joint(crop, *view, places, labelled, 1.0, 0.1, draws, seed)[0].numpy()

    everything = found(0.05)
    assert (everything != crop.numpy()).mean() > 0.99
    # Nor is what was there elsewhere in it.
    assert (everything != np.roll(crop, (64, 48), (0, 1))).mean() > 0.99
    assert (found(0.1) != crop.numpy()).mean() < 0.1
    # Of a photograph that fills half of the crop, that half.
    right = np.float32([[1, 0, 48], [0, 1, 0]]), np.int32([48, 128])
    differs = (found(0.05, right) != crop.numpy()).any(axis=-1)
    assert differs[:, 48:].mean() > 0.99 and not differs[:, :48].any()


def test_of_a_pose_that_is_hidden_altogether_nothing_is_known():
    crop, places = tf.zeros((128, 96, 3)), np.float32([[2, 3]])
    draws = tf.random.stateless_uniform((200, DRAWS), (1, 2)).numpy()
    draws[:, _HIDES] = 0.0, 0.05  # hides, and all of it

    def moved(numbers):
        return occlude_joint(
            crop, *AS_IT_IS, places, np.array([True]), 0.5, 0.1, numbers, tf.constant([0, 1])
        )[1]

    found = np.stack([moved(numbers) for numbers in draws])
    limit = WHOLE_SHIFT * np.float32([96, 128])
    assert (np.abs(found) <= limit).all()
    np.testing.assert_allclose(found.std(axis=0), limit / np.sqrt(3), rtol=0.1)
    assert (np.abs(found.mean(axis=0)) < 0.15 * limit).all()
    for row, value in ((0, 0.6), (1, 0.2)):  # not hidden, and not all of it
        other = draws[0].copy()
        other[_HIDES[row]] = value
        np.testing.assert_array_equal(moved(other), 0)


def test_covers_are_noise_blotches_a_grey_and_another_part_of_the_crop():
    crop = tf.random.stateless_uniform((64, 48, 3), (0, 1), 0, 255)
    places, labelled = np.float32([[24, 32]]), np.array([True])

    def covered(kind, seed=(0, 1)):
        draws = square(0.5, 0.9, kind, 0.3, 0.5, 0.25)
        return occlude_joint(crop, *AS_IT_IS, places, labelled, 1.0, 0.0, draws, tf.constant(seed))[
            0
        ].numpy()

    noise, blotches, grey, part = (covered(kind) for kind in (0.1, 0.3, 0.5, 0.9))
    hidden = (grey != crop.numpy()).any(axis=-1)
    for other in (noise, blotches, part):
        np.testing.assert_array_equal((other != crop.numpy()).any(axis=-1), hidden)
    assert noise[hidden].std() == pytest.approx(73.6, rel=0.1)
    assert np.corrcoef(noise[hidden].ravel(), crop.numpy()[hidden].ravel())[0, 1] < 0.2
    assert (covered(0.1, seed=(0, 2))[hidden] != noise[hidden]).mean() > 0.99
    # Neighbours of noise have nothing in common, those of blotches nearly everything.
    rows, columns = (slice(edges.min(), edges.max() + 1) for edges in np.nonzero(hidden))
    for cover, least, most in ((noise, -0.2, 0.2), (blotches, 0.9, 1.0)):
        patch = cover[rows, columns]
        alike = np.corrcoef(patch[:, 1:].ravel(), patch[:, :-1].ravel())[0, 1]
        assert least < alike < most
    np.testing.assert_array_equal(part[hidden], np.roll(crop, (32, 12), axis=(0, 1))[hidden])


@pytest.mark.parametrize("whole_share", (0.0, 0.4))
def test_squares_are_as_often_as_said_and_the_same_in_a_dataset(whole_share):
    crop = tf.random.stateless_uniform((32, 32, 3), (0, 2), 0, 255)
    labelled = np.ones(2, bool)
    places = np.float32([[10, 10], [20, 20]])
    draws = tf.random.stateless_uniform((400, DRAWS), (1, 2))

    def one(numbers):
        shares = 0.3, whole_share
        return occlude_joint(
            crop, *AS_IT_IS, places, labelled, *shares, numbers, tf.constant([0, 1], tf.int64)
        )

    mapped, moves = map(
        np.stack, zip(*tf.data.Dataset.from_tensor_slices(draws).map(one), strict=True)
    )
    assert moves.any(axis=1).mean() == pytest.approx(0.3 * whole_share, abs=0.06)
    assert (mapped != crop.numpy()).any(axis=(1, 2, 3)).mean() == pytest.approx(0.3, abs=0.06)
    eager = [one(numbers) for numbers in draws[:20]]
    np.testing.assert_array_equal(mapped[:20], [found for found, _ in eager])
    np.testing.assert_array_equal(moves[:20], [moved for _, moved in eager])
    for nobody in (np.zeros(2, bool), np.ones(2, bool)):
        found, moved = occlude_joint(
            crop, *AS_IT_IS, places - 100, nobody, 1.0, 0.1, draws[0] * 0, tf.constant([0, 1])
        )
        np.testing.assert_array_equal(found, crop)
        np.testing.assert_array_equal(moved, 0)


# ---- in a dataset


def test_each_function_gives_the_same_in_a_dataset():
    def everything(numbers):
        person = tf.constant(STANDING), tf.constant(EVERYBODY), tf.constant(CENTRE)
        box = tf.constant(CENTRE), tf.constant(BOX)
        return (
            *flip(*person, tf.constant(300), COCO17.flip_permutation),
            scale(box[1], (0.75, 1.25), None, numbers[2]),
            scale(box[1], (0.7, 1.3), 0.3, numbers[2]),
            rotation(45.0, None, 0.5, numbers[3], numbers[4]),
            rotation(60.0, 30.0, 0.5, numbers[3], numbers[4]),
            colour(tf.reshape(tf.range(60.0), (4, 5, 3)), 0.2, numbers),
            *half_body(person[0], person[1], *box, COCO17, 1.5, numbers[1]),
            *augment(*person, box[1], tf.constant(300), COCO17, Augmentation(), numbers),
        )

    numbers = uniform(30)
    mapped = tf.data.Dataset.from_tensor_slices(numbers).map(everything)
    for row, found in zip(numbers, mapped, strict=True):
        for inside, eager in zip(found, everything(row), strict=True):
            np.testing.assert_allclose(inside, eager, rtol=1e-6, atol=1e-5)


def test_targets_are_the_reference_s(golden):
    sample = golden("coco_samples")
    # The numbers that draw what the reference drew.
    sizes = (sample["augment_scale"] - 0.75) / 0.5
    angles = (sample["augment_rotation_deg"] / 45 + 1) / 2
    for row, crop in enumerate(sample["crop_box_xyxy"]):
        keypoints, labelled = np.split(sample["keypoints_xyv"][row].astype(np.float32), [2], axis=1)
        mirrored = sample["augment_flip"][row]
        centre = (crop[:2] + crop[2:]) / 2
        width = 0
        if mirrored:
            # The image's width shows in the mirrored centre, which the matrix maps to the middle.
            linear, offset = np.split(sample["affine_2x3"][row], [2], axis=1)
            middle = np.linalg.solve(linear, [[96], [128]] - offset)
            width = round(float(middle[0, 0] + centre[0] + 1))
        keypoints, labelled, centre, size, rotation_deg, flipped = augment(
            tf.constant(keypoints),
            tf.constant(labelled[:, 0] > 0),
            tf.constant(centre),
            tf.constant(crop[2:] - crop[:2]),
            tf.constant(width),
            COCO17,
            Augmentation(),
            tf.constant(
                draws(
                    size=sizes[row],
                    turn=0.0,
                    angle=angles[row],
                    mirrored=0.0 if mirrored else NO_FLIP,
                )
            ),
        )
        matrix = geometry.crop_affine(centre, size, rotation_deg, SIZE)
        np.testing.assert_allclose(matrix, sample["affine_2x3"][row], atol=1e-4)
        target = encode_target(keypoints, labelled, matrix, SIZE)
        np.testing.assert_array_equal(target["weight"], sample["target_weight"][row])
        weighted = sample["target_weight"][row] > 0
        assert weighted.any() and bool(flipped) == mirrored
        np.testing.assert_allclose(
            target["keypoints"].numpy()[weighted], sample["target"][row][weighted], atol=1e-4
        )


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"scale_range": (1.25, 0.75)}, r"scale_range \[1.25, 0.75\] must be positive and ascend"),
        ({"scale_range": (0.0, 1.0)}, r"scale_range \[0.0, 1.0\] must be positive"),
        ({"flip_probability": 1.5}, "less than or equal to 1"),
        ({"half_body_margin": 0.0}, "greater than 0"),
        ({"rotation_degrees": 3.0}, "Extra inputs are not permitted"),
    ],
)
def test_augmentation_that_makes_no_sense_is_refused(change, found):
    with pytest.raises(ValidationError, match=found):
        Augmentation(**change)

import numpy as np
import pytest
from PIL import Image

from rle_tf.drawing import SIDE_COLOURS, contact_sheet, draw_poses
from rle_tf.errors import DataError
from rle_tf.skeletons import COCO17, LSP14, Skeleton

GREY = 110
DOT = Skeleton("dot", ("nose",), (), (), ())


def grey(width=200, height=160):
    return np.full((height, width, 3), GREY, np.uint8)


def spread_pose(width, height, skeleton=COCO17):
    """All joints on a coarse grid, far enough apart not to cover one another."""
    columns = 5
    index = np.arange(len(skeleton.joints))
    x = (index % columns + 0.5) / columns * width
    y = (index // columns + 0.5) / (-(-len(index) // columns)) * height
    return np.stack([x, y], axis=-1)[None]


def pixels(image):
    return np.asarray(image).astype(int)


def test_every_joint_has_the_colour_of_its_side():
    for skeleton in (COCO17, LSP14):
        keypoints_px = spread_pose(200, 160, skeleton)
        drawn = pixels(draw_poses(grey(), keypoints_px, np.full_like(keypoints_px, 6), skeleton))
        for joint, (x, y) in enumerate(np.rint(keypoints_px[0]).astype(int)):
            assert tuple(drawn[y, x]) == SIDE_COLOURS[skeleton.side(joint)], joint
    assert len(set(SIDE_COLOURS.values())) == 3


def test_bones_take_the_side_of_their_joints():
    keypoints_px = np.full((1, 17, 2), np.nan)
    keypoints_px[0, 5], keypoints_px[0, 7] = (150, 20), (150, 120)  # left upper arm
    keypoints_px[0, 6] = 50, 20  # right shoulder
    drawn = pixels(draw_poses(grey(), keypoints_px, None, COCO17))
    assert tuple(drawn[70, 150]) == SIDE_COLOURS["left"]
    assert tuple(drawn[20, 100]) == SIDE_COLOURS["middle"]
    keypoints_px[0, 0], keypoints_px[0, 2] = (100, 60), (40, 60)  # nose and right eye
    drawn = pixels(draw_poses(grey(), keypoints_px, None, COCO17))
    assert tuple(drawn[60, 70]) == SIDE_COLOURS["right"]
    keypoints_px[0, [0, 2, 7]] = np.nan
    without = pixels(draw_poses(grey(), keypoints_px, None, COCO17))
    assert (without[40:] == GREY).all()
    assert tuple(without[20, 100]) == SIDE_COLOURS["middle"]


@pytest.mark.parametrize("centre", [(100.0, 80.0), (100.5, 80.25)])
def test_the_outer_ellipse_spans_two_sigma(centre):
    sigma_px = np.array([[[30.0, 12.0]]])
    drawn = draw_poses(grey(), np.array([[centre]]), sigma_px, DOT)
    changed = (pixels(drawn) != GREY).any(axis=-1)
    columns, rows = (np.flatnonzero(changed.any(axis=axis)) for axis in (0, 1))
    # The first and last pixels touched: their centres are within a pixel of the ellipse's ends.
    assert abs(columns[0] - (centre[0] - 60)) <= 1 and abs(columns[-1] - (centre[0] + 60)) <= 1
    assert abs(rows[0] - (centre[1] - 24)) <= 1 and abs(rows[-1] - (centre[1] + 24)) <= 1
    y, x = np.nonzero(changed)
    inside = ((x - centre[0]) / 61) ** 2 + ((y - centre[1]) / 25) ** 2
    assert inside.max() <= 1


def test_one_sigma_is_stronger_than_two_and_both_let_the_photograph_through():
    sigma_px = np.array([[[24.0, 24.0]]])
    light = pixels(draw_poses(grey(), np.array([[[100.0, 80.0]]]), sigma_px, DOT))[80, :, 0]
    one, two, edge = light[100 + 20], light[100 + 36], light[100 + 46 : 100 + 50].max()
    full = SIDE_COLOURS["middle"][0]
    assert GREY < two < one < full
    assert one < edge < full
    assert (one - GREY) < 0.6 * (full - GREY)
    # The step between them is at one sigma.
    assert light[100 + 22] == one and light[100 + 26] == two


def test_edges_are_soft():
    keypoints_px = np.full((1, 17, 2), np.nan)
    keypoints_px[0, 5], keypoints_px[0, 7] = (20, 20), (180, 131)
    drawn = pixels(draw_poses(grey(), keypoints_px, None, COCO17))
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) > 20


def test_the_input_is_not_changed_and_nobody_changes_nothing():
    photograph = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    before = photograph.copy()
    as_image = Image.fromarray(photograph)
    keypoints_px = spread_pose(60, 40)
    for image in (photograph, as_image):
        drawn = draw_poses(image, keypoints_px, np.full_like(keypoints_px, 3), COCO17)
        assert drawn.size == (60, 40) and drawn.mode == "RGB"
        assert (np.asarray(drawn) != before).any()
        assert (photograph == before).all() and (np.asarray(as_image) == before).all()
        nobody = draw_poses(image, np.zeros((0, 17, 2)), np.zeros((0, 17, 2)), COCO17)
        assert (np.asarray(nobody) == before).all()
        assert nobody is not image


@pytest.mark.parametrize("mode", ["L", "CMYK", "RGBA", "P", "1"])
def test_images_of_any_mode_are_taken(mode):
    image = Image.fromarray(grey()).convert(mode)
    drawn = draw_poses(image, spread_pose(200, 160), None, COCO17)
    assert drawn.mode == "RGB" and image.mode == mode


def test_joints_that_are_not_finite_are_left_out():
    keypoints_px = np.full((2, 17, 2), np.nan)
    keypoints_px[1, 3, 0] = 50.0
    keypoints_px[1, 4] = np.inf, 20.0
    untouched = draw_poses(grey(), keypoints_px, np.ones_like(keypoints_px), COCO17)
    assert (pixels(untouched) == GREY).all()


def test_a_sigma_that_is_not_finite_and_positive_draws_no_ellipse():
    keypoints_px = np.array([[[100.0, 80.0]]])
    plain = pixels(draw_poses(grey(), keypoints_px, None, DOT))
    assert (plain != GREY).any()
    for bad in (np.nan, np.inf, 0.0, -4.0):
        sigma_px = np.array([[[20.0, bad]]])
        assert (pixels(draw_poses(grey(), keypoints_px, sigma_px, DOT)) == plain).all()


def test_far_joints_and_absurd_sigmas_do_no_harm():
    keypoints_px = spread_pose(200, 160)
    keypoints_px[0, 5] = -1e300, 80
    keypoints_px[0, 10] = 350, 400
    keypoints_px[0, 15] = 1e9, -1e9
    sigma_px = np.full_like(keypoints_px, 4.0)
    sigma_px[0, 0] = 1e300, 1e-300
    sigma_px[0, 10] = 300, 300
    drawn = pixels(draw_poses(grey(), keypoints_px, sigma_px, COCO17))
    x, y = np.rint(keypoints_px[0, 6]).astype(int)
    assert tuple(drawn[y, x]) == SIDE_COLOURS["right"]
    # The right wrist is outside, the ellipse around it reaches in.
    alone = np.full_like(keypoints_px, np.nan)
    alone[0, 10] = keypoints_px[0, 10]
    reaching = pixels(draw_poses(grey(), alone, sigma_px, COCO17))
    assert (reaching[159, 199] != GREY).any()
    assert (pixels(draw_poses(grey(), alone, None, COCO17)) == GREY).all()


def test_unsure_joints_are_left_out():
    keypoints_px = spread_pose(200, 160)
    confidence = np.ones((1, 17))
    confidence[0, 3], confidence[0, 4] = 0.2, np.nan
    drawn = pixels(
        draw_poses(grey(), keypoints_px, None, COCO17, confidence=confidence, min_confidence=0.5)
    )
    places = np.rint(keypoints_px[0]).astype(int)
    assert [(drawn[y, x] == GREY).all() for x, y in places[3:6]] == [True, True, False]
    everyone = pixels(draw_poses(grey(), keypoints_px, None, COCO17, confidence=confidence))
    x, y = places[3]
    assert tuple(everyone[y, x]) == SIDE_COLOURS["left"]


def test_boxes_are_outlined():
    nobody = np.full((2, 17, 2), np.nan)
    boxes_xyxy = [[20, 30, 150, 120], [np.nan, 0, 10, 10]]
    drawn = pixels(draw_poses(grey(), nobody, None, COCO17, boxes_xyxy=boxes_xyxy))
    for x, y in ((20, 75), (150, 75), (85, 30), (85, 120)):
        assert (drawn[y, x] != GREY).all()
    assert (drawn[40:110, 30:140] == GREY).all()
    assert (drawn[:25] == GREY).all() and (drawn[126:] == GREY).all()


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (96, 96)])
def test_tiny_images(size):
    keypoints_px = spread_pose(*size)
    drawn = draw_poses(grey(*size), keypoints_px, np.full_like(keypoints_px, 0.5), COCO17)
    assert drawn.size == size
    assert (pixels(drawn) != GREY).any()


def test_lines_grow_with_the_image_and_the_person():
    def share_of_pixels(width, height, scale):
        keypoints_px = scale * spread_pose(width, height)
        drawn = draw_poses(grey(width, height), keypoints_px, None, COCO17)
        return (pixels(drawn) != GREY).any(axis=-1).mean()

    small, large = share_of_pixels(400, 300, 1), share_of_pixels(4000, 3000, 1)
    assert large == pytest.approx(small, rel=0.25)
    # A person in the background has thinner lines, which still survive scaling down to 1000 px.
    keypoints_px = np.full((1, 17, 2), np.nan)
    keypoints_px[0, 5], keypoints_px[0, 7] = (2000, 1500), (2000, 1700)
    image = draw_poses(grey(4000, 3000), keypoints_px, None, COCO17).resize((1000, 750))
    assert np.abs(pixels(image)[400, 490:510] - GREY).max() > 60


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image": np.zeros((4, 4, 3), np.float32)}, r"image of float32 \(4, 4, 3\)"),
        ({"image": np.zeros((4, 4), np.uint8)}, r"uint8 \(4, 4\), expected uint8 \(H, W, 3\)"),
        ({"keypoints_px": np.zeros((1, 14, 2))}, r"keypoints_px of shape \(1, 14, 2\), .*17, 2"),
        ({"keypoints_px": np.zeros((17, 2))}, r"keypoints_px of shape \(17, 2\)"),
        ({"sigma_px": np.zeros((1, 17, 1))}, r"sigma_px of shape \(1, 17, 1\)"),
        ({"confidence": np.zeros((1, 17, 1))}, r"confidence of shape .*expected \(1, 17\)"),
        ({"boxes_xyxy": np.zeros(4)}, r"boxes_xyxy of shape \(4,\), expected \(1, 4\)"),
    ],
)
def test_wrong_shapes_are_named(arguments, message):
    good = {"image": grey(), "keypoints_px": np.zeros((1, 17, 2)), "sigma_px": None}
    with pytest.raises(DataError, match=message):
        draw_poses(skeleton=COCO17, **(good | arguments))


def test_a_real_photograph(coco_sample):
    path = sorted((coco_sample / "val2017").glob("*.jpg"))[0]
    image = Image.open(path)
    keypoints_px = spread_pose(*image.size)
    drawn = draw_poses(image, keypoints_px, np.full_like(keypoints_px, 10), COCO17)
    x, y = np.rint(keypoints_px[0, 0]).astype(int)
    assert tuple(pixels(drawn)[y, x]) == SIDE_COLOURS["middle"]


def test_contact_sheet_has_equal_cells_in_reading_order():
    colours = [(200, 0, 0), (0, 200, 0), (0, 0, 200), (90, 90, 0), (0, 90, 90)]
    images = [Image.new("RGB", (100, 80), colour) for colour in colours]
    sheet = contact_sheet(images, 3)
    array = pixels(sheet)
    corners = []
    for colour in colours:
        y, x = np.nonzero((array == colour).all(axis=-1))
        assert (np.ptp(x) + 1, np.ptp(y) + 1, len(x)) == (100, 80, 8000)
        corners.append((x[0], y[0]))
    left, top = zip(*corners, strict=True)
    assert left[0] == left[3] < left[1] == left[4] < left[2]
    assert top[0] == top[1] == top[2] < top[3] == top[4]
    assert left[1] - left[0] == left[2] - left[1]
    assert (array == 255).all(axis=-1).sum() == sheet.width * sheet.height - 5 * 8000


def test_contact_sheet_centres_smaller_images_and_takes_other_modes():
    sheet = pixels(contact_sheet([Image.new("RGB", (90, 60)), Image.new("L", (30, 20))], 2))
    y, x = np.nonzero((sheet == 0).all(axis=-1))
    gap = x.min()
    second = x >= 90 + 2 * gap
    assert second.sum() == 600
    assert x[second].min() == 90 + 2 * gap + 30 and y[second].min() == gap + 20


def test_contact_sheet_has_captions_below_that_stay_in_their_cells():
    images = [Image.new("RGB", (100, 80), "white")] * 2
    plain = contact_sheet(images, 2)
    labelled = contact_sheet(images, 2, ["a caption " * 30, ""])
    assert labelled.width == plain.width and labelled.height > plain.height
    ink = (pixels(labelled) < 128).any(axis=-1)
    gap = (plain.height - 80) // 2
    y, x = np.nonzero(ink)
    assert ink.sum() > 50
    assert y.min() >= gap + 80 and y.max() < labelled.height - gap // 2
    assert gap - 1 <= x.min() and x.max() <= gap + 100


def test_contact_sheet_of_fewer_images_than_columns_is_as_wide_as_they_are():
    image = Image.new("RGB", (50, 40))
    assert contact_sheet([image], 6).size == contact_sheet([image], 1).size


def test_contact_sheet_refuses_what_cannot_be_laid_out():
    image = Image.new("RGB", (50, 40))
    with pytest.raises(DataError, match="found 0 images and 2 columns"):
        contact_sheet([], 2)
    with pytest.raises(DataError, match="found 1 images and 0 columns"):
        contact_sheet([image], 0)
    with pytest.raises(DataError, match="found 2 labels for 1 images"):
        contact_sheet([image], 1, ["a", "b"])

import numpy as np
import pytest
from PIL import Image

from rle_tf.drawing import SIDE_COLOURS, contact_sheet, draw_poses, draw_views
from rle_tf.errors import DataError
from rle_tf.skeletons import COCO17, H36M18, LSP14, Skeleton

GREY = 110
DOT = Skeleton("dot", ("nose",), (), (), ())
ARMS = Skeleton("arms", ("pelvis", "left_wrist", "right_wrist"), ((1, 2),), ((0, 1), (0, 2)), ())
ARMS_MM = np.array([[123, 456, 5000], [523, 156, 5300], [-77, 756, 4500]], float)


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


# Views of 3D poses, on canvases of 240 pixels where a pixel is a centimetre


def colour_at(image, x, y):
    return tuple(pixels(image)[round(y), round(x)])


def near_colour(image, colour):
    """Columns and rows of the pixels that have a colour."""
    y, x = np.nonzero((pixels(image) == colour).all(axis=-1))
    return x, y


def test_the_viewer_walks_to_the_camera_s_right():
    yaws_deg = (0, 90, 180, -90, 360, 30)
    images = draw_views(ARMS_MM, ARMS, 240, yaws_deg=yaws_deg)
    assert [(image.size, image.mode) for image in images] == [((240, 240), "RGB")] * 6
    relative_px = (ARMS_MM - ARMS_MM[0]) / 10
    for image, yaw_deg in zip(images, yaws_deg, strict=True):
        angle = np.deg2rad(yaw_deg)
        across = relative_px[:, 0] * np.cos(angle) + relative_px[:, 2] * np.sin(angle)
        for joint, side in enumerate(("middle", "left", "right")):
            found = colour_at(image, 119.5 + across[joint], 119.5 + relative_px[joint, 1])
            assert found == SIDE_COLOURS[side], (yaw_deg, side)
    left_x = [near_colour(image, SIDE_COLOURS["left"])[0].max() for image in images]
    assert left_x[0] > left_x[1] > 135 and left_x[2] < 125 and left_x[3] < 125


def test_a_view_does_not_depend_on_where_the_person_is():
    here, there = (draw_views(ARMS_MM + shift, ARMS, 240) for shift in (0, (3000, -500, 900)))
    assert len(here) == 2
    for one, other in zip(here, there, strict=True):
        assert (pixels(one) == pixels(other)).all()


def test_people_have_one_scale_unless_they_do_not_fit():
    reach_px = []
    for size in (0.5, 1, 4, 40):
        image = draw_views(ARMS_MM * size, ARMS, 240, yaws_deg=[0])[0]
        x, y = near_colour(image, SIDE_COLOURS["left"])
        assert x.max() < 238 and y.min() > 20
        reach_px.append(x.max() - 119.5)
    assert reach_px[1] - reach_px[0] == pytest.approx(20, abs=1.5)
    # What is too large fills the same part of the canvas, whatever its size.
    assert reach_px[2] == pytest.approx(reach_px[3], abs=1)
    assert reach_px[1] < reach_px[2] < 4 * reach_px[0]
    # A reference that does not fit counts too.
    reference_mm = ARMS_MM + 3 * (ARMS_MM - ARMS_MM[0])
    wide = draw_views(ARMS_MM, ARMS, 240, reference_mm=reference_mm, yaws_deg=[0])[0]
    assert near_colour(wide, SIDE_COLOURS["left"])[0].max() < 119.5 + 0.6 * reach_px[1]


def test_what_is_near_covers_what_is_far():
    crossed = np.array([[0, 0, 0], [300, 300, 100], [300, 300, -100]], float)
    front, back = draw_views(crossed, ARMS, 240, yaws_deg=(0, 180))
    # The pixels whose centres are on the bones, half-way.
    assert colour_at(front, 134, 119) == SIDE_COLOURS["right"]
    assert colour_at(back, 105, 119) == SIDE_COLOURS["left"]


def test_ellipses_turn_with_the_view():
    joints_mm = np.full((1, 3), 50.0)
    plain = draw_views(joints_mm, DOT, 240, yaws_deg=(0, 90, 45))
    sigma_mm = np.array([[100, 50, 300]])
    images = draw_views(joints_mm, DOT, 240, sigma_mm=sigma_mm, yaws_deg=(0, 90, 45))
    expected = 10.0, 30.0, np.hypot(10, 30) / np.sqrt(2)
    for image, without, sigma_px in zip(images, plain, expected, strict=True):
        changed = (pixels(image) != pixels(without)).any(axis=-1)
        columns, rows = (np.flatnonzero(changed.any(axis=axis)) for axis in (0, 1))
        assert np.ptp(columns) == pytest.approx(4 * sigma_px, abs=2)
        assert np.ptp(rows) == pytest.approx(4 * 5, abs=2)
    for bad in (np.nan, -300, 0):
        broken = draw_views(joints_mm, DOT, 240, sigma_mm=[[100, 50, bad]], yaws_deg=(0, 90, 45))
        assert [pixels(one).tolist() for one in broken] == [pixels(one).tolist() for one in plain]


def test_the_reference_is_grey_beneath_the_pose():
    plain = draw_views(ARMS_MM, ARMS, 240, yaws_deg=[0])[0]
    shifted = ARMS_MM + (0, 50, 0)
    image = draw_views(ARMS_MM, ARMS, 240, reference_mm=shifted, yaws_deg=[0])[0]
    red, green, blue = colour_at(image, 119.5 + 40, 119.5 - 30 + 5 - 2.5)
    assert max(red, green, blue) - min(red, green, blue) < 20 and red > 140
    covered = draw_views(ARMS_MM, ARMS, 240, reference_mm=ARMS_MM, yaws_deg=[0])[0]
    x, y = near_colour(plain, SIDE_COLOURS["left"])
    assert (pixels(covered)[y, x] == SIDE_COLOURS["left"]).all()


def test_joints_of_a_view_that_are_not_finite_are_left_out():
    joints_mm = ARMS_MM.copy()
    joints_mm[1, 2] = np.nan
    for image in draw_views(joints_mm, ARMS, 240, reference_mm=joints_mm, yaws_deg=(0, 90)):
        assert len(near_colour(image, SIDE_COLOURS["right"])[0])
        assert not len(near_colour(image, SIDE_COLOURS["left"])[0])
    # Without the root the axis is through the middle of the others.
    joints_mm = ARMS_MM.copy()
    joints_mm[0] = np.inf
    image = draw_views(joints_mm, ARMS, 240, yaws_deg=[0])[0]
    assert colour_at(image, 119.5 + 30, 119.5 - 30) == SIDE_COLOURS["left"]
    assert colour_at(image, 119.5 - 30, 119.5 + 30) == SIDE_COLOURS["right"]
    nobody = draw_views(np.full((3, 3), np.nan), ARMS, 240, sigma_mm=np.ones((3, 3)))
    for image in nobody:
        for colour in SIDE_COLOURS.values():
            assert not len(near_colour(image, colour)[0])


def test_everything_of_a_view_can_be_seen():
    ground = colour_at(draw_views(ARMS_MM, ARMS, 240, yaws_deg=[0])[0], 238, 30)
    for colour in SIDE_COLOURS.values():
        assert np.abs(np.subtract(colour, ground)).max() > 90


def test_views_are_captioned_by_where_they_are_from():
    yaws_deg = (0, 45, -45, 90, 180)
    dot = np.zeros((1, 3))
    captions = [
        pixels(image)[:24].tolist() for image in draw_views(dot, DOT, 240, yaws_deg=yaws_deg)
    ]
    assert all(one != other for i, one in enumerate(captions) for other in captions[:i])
    again = draw_views(dot, DOT, 240, yaws_deg=[360, -315, 315, -270, -180])
    assert [pixels(image)[:24].tolist() for image in again] == captions


@pytest.mark.parametrize("size_px", [1, 2, 17, 640])
def test_views_of_any_size_and_of_absurd_poses(size_px):
    joints_mm = np.random.default_rng(0).normal(0, 400, (18, 3))
    joints_mm[3], joints_mm[4] = 1e300, -1e300
    images = draw_views(
        joints_mm, H36M18, size_px, sigma_mm=np.full((18, 3), 1e300), reference_mm=-joints_mm
    )
    assert [image.size for image in images] == [(size_px, size_px)] * 2
    assert draw_views(joints_mm, H36M18, size_px, yaws_deg=[]) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"joints_mm": np.zeros((1, 18, 3))}, r"joints_mm of shape \(1, 18, 3\), .*\(18, 3\)"),
        ({"joints_mm": np.zeros((17, 3))}, r"draw_views: found joints_mm of shape \(17, 3\)"),
        ({"sigma_mm": np.zeros((18, 2))}, r"sigma_mm of shape \(18, 2\), expected \(18, 3\)"),
        ({"reference_mm": np.zeros((17, 3))}, r"reference_mm of shape \(17, 3\)"),
        ({"size_px": 0}, "found a size of 0 px"),
        ({"yaws_deg": (0, np.nan)}, r"yaws of \[0, nan\] deg, expected .*finite"),
    ],
)
def test_views_of_what_is_no_pose_are_refused(arguments, message):
    good = {"joints_mm": np.zeros((18, 3)), "size_px": 100}
    with pytest.raises(DataError, match=message):
        draw_views(skeleton=H36M18, **(good | arguments))


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

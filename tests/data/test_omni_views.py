"""Depth, normals, classes and skeletons: the painted pictures of the published sets read back as the published values."""

import json
import pickle

import numpy as np
import pytest
from omni_parts import colours, file_bytes, is_file, packed, photo, reason, write_json, write_lines
from PIL import Image

from lumina_jax.conversation import tokenize
from lumina_jax.data.omni import captions, depth, normals, pictures, pose, segments
from lumina_jax.data.omni.coco_file import members
from lumina_jax.data.sources import open_source
from lumina_jax.data.sources.images import ImageFile
from lumina_jax.pictures import annotations, dense_maps, metrics
from lumina_jax.vocab import IMAGE_SYMBOL

SIZE = (64, 48)


def metres(nearest=0.4, farthest=90.0) -> np.ndarray:
    return np.exp(np.random.default_rng(0).uniform(np.log(nearest), np.log(farthest), SIZE[::-1]))


def facing(shape=SIZE[::-1]) -> np.ndarray:
    """Unit vectors (right, up, towards the viewer) as a camera can see them."""
    vectors = np.random.default_rng(0).normal(size=(*shape, 3))
    vectors[..., 2] = np.abs(vectors[..., 2]) + 0.05
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def published_depth(path, values: np.ndarray, mode=np.uint16):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(mode)).save(path)


def published_normals(path, vectors: np.ndarray):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.rint((vectors + 1) / 2 * 255).astype(np.uint8)).save(path)


def check_view(source, index, request, photo_path, vocab):
    """The answer to ``request`` about the photo is a picture of the same size; tokens and labels equal the original's."""
    record = source[index]
    assert record.turns == [(f"{request} {IMAGE_SYMBOL}", IMAGE_SYMBOL)] and is_file(record.images[0], photo_path)
    assert len(record.images) == 2 and record.images[0].size == record.images[1].size
    grids = [np.full((2, 4), number) for number in range(2)]
    tokens, learn = tokenize(record.turns, grids, vocab)
    want, labels = packed(record.turns, grids, vocab)
    assert tokens.tolist() == want and np.where(learn, tokens, -100).tolist() == labels
    return colours(record.images[1])


def check_swap(spec, captions_path, index, caption, photo_path, answer, vocab):
    """With captions the painted picture is in the request and the photo is the answer."""
    (turn,), images = (swapped := open_source(f"{spec}captions={captions_path}")[index]).turns, swapped.images
    request = "Generate an image according to the provided image, and according to the following caption:\n"
    assert turn == (f"{request}{caption} {IMAGE_SYMBOL}", IMAGE_SYMBOL)
    assert np.array_equal(colours(images[0]), answer) and is_file(images[1], photo_path)
    tokens, learn = tokenize(swapped.turns, [np.zeros((2, 2), int), np.ones((2, 2), int)], vocab)
    assert (tokens[learn] == 5).sum() == 4 and not (tokens[learn] == 4).any()


# Depth


@pytest.fixture
def vkitti2(tmp_path):
    """A folder with both archives unpacked, and the depth of its first frame."""
    clip = tmp_path / "Scene01" / "15-deg-left" / "frames"
    truth = np.rint(metres() * 100) / 100
    truth[:4] = 655.35  # the sky
    for number in range(5):
        photo(clip / "rgb" / "Camera_0" / f"rgb_{number:05d}.jpg", SIZE, number)
    published_depth(clip / "depth" / "Camera_0" / "depth_00000.png", np.rint(truth * 100))
    published_depth(clip / "depth" / "Camera_0" / "depth_00001.png", np.ones((8, 8)))
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(clip / "depth" / "Camera_0" / "depth_00003.png")
    (clip / "depth" / "Camera_0" / "depth_00004.png").write_bytes(b"no picture")
    (tmp_path / "Scene01" / "15-deg-left" / "intrinsic.txt").write_text("frame cameraID ...")
    return tmp_path, truth


def test_virtual_kitti_2(vkitti2, vocab):
    root, truth = vkitti2
    source = open_source(f"vkitti2:{root}")
    photo_path = root / "Scene01/15-deg-left/frames/rgb/Camera_0/rgb_00000.jpg"
    picture = check_view(source, 0, "Depth estimation.", photo_path, vocab)
    decoded, within = dense_maps.decode_depth(picture, depth.NEAR, depth.FAR), np.clip(truth, depth.NEAR, depth.FAR)
    assert (np.abs(decoded - within) / within).max() <= dense_maps.depth_error(depth.NEAR, depth.FAR) * 1.001
    assert metrics.delta(within, decoded, 1.02) == 1 and (picture[:4] == 0).all()
    reasons = {
        1: "64x48 pixels, its depth 8x8",
        2: "depth_00002.png: No such file",
        3: "one channel of whole numbers",
        4: "depth_00004.png: no depth map",
    }
    assert len(source) == 5
    for index, why in reasons.items():
        assert why in (message := reason(source, index)) and f"{index:05d}" in message
    assert len(open_source(f"vkitti2:{root}@match=*_0000[01].jpg")) == 2
    assert pickle.loads(pickle.dumps(source))[0].turns == source[0].turns


def test_virtual_kitti_2_in_the_folders_of_its_archives(tmp_path, vocab):
    tail, truth = "Scene20/fog/frames", np.full(SIZE[::-1], 7.0)
    photo_path = photo(tmp_path / "vkitti_2.0.3_rgb" / tail / "rgb" / "Camera_1" / "rgb_00012.jpg", SIZE)
    published_depth(tmp_path / "vkitti_2.0.3_depth" / tail / "depth" / "Camera_1" / "depth_00012.png", 100 * truth)
    picture = check_view(open_source(f"vkitti2:{tmp_path}"), 0, "Depth estimation.", photo_path, vocab)
    assert metrics.abs_rel(truth, dense_maps.decode_depth(picture, depth.NEAR, depth.FAR)) < 0.01


def test_captions_swap_photo_and_picture_of_any_set_of_views(vkitti2, tmp_path, vocab):
    root, _ = vkitti2
    name = "Scene01/15-deg-left/frames/rgb/Camera_0/rgb_0000{}.jpg"
    lines = [{"image": name.format(3), "caption": "x"}, {"file_name": name.format(0), "text": "a <|image|> street"}]
    captions = write_lines(tmp_path / "captions.jsonl", [*lines, {"image": name.format(2), "caption": "y"}])
    answer = colours(open_source(f"vkitti2:{root}")[0].images[1])
    caption = "a <\ufdd0|image|> street"  # the symbol of an image in a caption is text
    check_swap(f"vkitti2:{root}@", captions, 0, caption, root / name.format(0), answer, vocab)
    swapped = open_source(f"vkitti2:{root}@captions={captions}")
    assert swapped.fingerprint != open_source(f"vkitti2:{root}").fingerprint
    write_lines(tmp_path / "few.jsonl", lines[:1])
    assert "few.jsonl has no caption of Scene01" in reason(
        open_source(f"vkitti2:{root}@captions={tmp_path}/few.jsonl"), 0
    )
    write_lines(tmp_path / "half.jsonl", [lines[0], json.dumps(lines[1])[:-2]])
    half = open_source(f"vkitti2:{root}@captions={tmp_path}/half.jsonl")
    assert "1 of its lines cannot be read, the first: " in reason(half, 0)
    write_lines(tmp_path / "bad.jsonl", ["{"])
    with pytest.raises(ValueError, match=r"bad\.jsonl, byte 0"):
        open_source(f"vkitti2:{root}@captions={tmp_path}/bad.jsonl")


@pytest.mark.parametrize("key", [captions._key, lambda _: 7])
def test_each_photo_has_its_own_caption_even_if_keys_collide(tmp_path, monkeypatch, key):
    monkeypatch.setattr(captions, "_key", key)
    names = [f"clip/{number}.jpg" for number in range(40)]
    path = write_lines(tmp_path / "c.jsonl", [{"image": name, "caption": f"of {name}"} for name in names])
    opened = captions.open_captions(str(path))
    assert [opened.of(name) for name in names] == [f"of {name}" for name in names]
    with pytest.raises(ValueError, match=r"no caption of clip/40\.jpg"):
        opened.of("clip/40.jpg")


def dpt(values: np.ndarray) -> bytes:
    """A depth map as Sintel's sdk writes it."""
    height, width = values.shape
    head = np.array([202021.25], "<f4").tobytes() + np.array([width, height], "<i4").tobytes()
    return head + values.astype("<f4").tobytes()


def test_sintel(tmp_path, vocab):
    truth = metres(0.6, 70).astype(np.float32)
    contents = [dpt(truth), dpt(truth)[:-1], b"HEIP" + dpt(truth)[4:], dpt(truth)[:6]]
    (tmp_path / "training" / "depth" / "alley_1").mkdir(parents=True)
    for number, content in enumerate(contents, start=1):
        for render in ("final", "clean"):
            photo(tmp_path / "training" / render / "alley_1" / f"frame_{number:04d}.png", SIZE, number)
        (tmp_path / "training" / "depth" / "alley_1" / f"frame_{number:04d}.dpt").write_bytes(content)
    source = open_source(f"sintel:{tmp_path}")
    assert len(source) == 4
    photo_path = tmp_path / "training/final/alley_1/frame_0001.png"
    picture = check_view(source, 0, "Depth estimation.", photo_path, vocab)
    decoded = dense_maps.decode_depth(picture, depth.NEAR, depth.FAR)
    assert (np.abs(decoded - truth) / truth).max() <= dense_maps.depth_error(depth.NEAR, depth.FAR) * 1.001
    assert "12299 bytes, but a depth map of 64x48 takes 12300" in reason(source, 1)
    assert "frame_0003.dpt is no .dpt file" in reason(source, 2) and "frame_0004.dpt is no" in reason(source, 3)
    clean = open_source(f"sintel:{tmp_path}@pass=clean")
    check_view(clean, 0, "Depth estimation.", tmp_path / "training/clean/alley_1/frame_0001.png", vocab)
    with pytest.raises(ValueError, match="choose final or clean"):
        open_source(f"sintel:{tmp_path}@pass=albedo")


# Normals


def check_normals(picture, truth):
    """The picture holds the published normals, at most 0.45 degrees off, which is one rounding to 8 bits."""
    decoded = dense_maps.decode_normals(picture)
    assert metrics.angular_error(truth, decoded) < 0.3
    visible = np.linalg.norm(truth, axis=-1) > 0
    assert (np.linalg.norm(decoded, axis=-1) > 0).tolist() == visible.tolist()
    cosines = np.clip((decoded * truth).sum(axis=-1)[visible], -1, 1)
    assert np.degrees(np.arccos(cosines)).max() < 0.45


def test_nyuv2_with_ladicky_s_normals(tmp_path, vocab):
    truth = facing()
    photo_path = photo(tmp_path / "nyu_train_rgb" / "nyu_rgb_0003.png", SIZE)
    published_normals(tmp_path / "nyu_normals_gt" / "train" / "00003.png", truth * (-1, 1, 1))
    published_normals(tmp_path / "nyu_normals_gt" / "train" / "00004.png", truth * (-1, 1, 1))
    published_normals(tmp_path / "nyu_normals_gt" / "test" / "00001.png", truth)
    source = open_source(f"nyuv2:{tmp_path}")
    assert len(source) == 2
    check_normals(check_view(source, 0, "Surface normal estimation.", photo_path, vocab), truth)
    assert "nyu_train_rgb/nyu_rgb_0004.png nor" in reason(source, 1)
    with pytest.raises(
        ValueError, match=r"no file like nyu_normals_gt/train/00001\.png or train/000001_img\.png and \*/9"
    ):
        open_source(f"nyuv2:{tmp_path}@match=*/9*")


def test_nyuv2_s_photos_from_its_labeled_file(tmp_path):
    h5py = pytest.importorskip("h5py")
    photos = np.random.default_rng(0).integers(0, 256, (2, 3, 64, 48), np.uint8)
    with h5py.File(tmp_path / "nyu_depth_v2_labeled.mat", "w", userblock_size=512) as file:
        file["images"], file["depths"] = photos, np.ones((2, 64, 48), np.float32)
    for number in (2, 3):
        published_normals(tmp_path / "nyu_normals_gt" / "train" / f"{number:05d}.png", facing() * (-1, 1, 1))
    source = open_source(f"nyuv2:{tmp_path}")
    assert np.array_equal(colours(source[0].images[0]), photos[1].transpose(2, 1, 0))
    assert "has 2 photos, none with number 3" in reason(source, 1)


@pytest.mark.parametrize(("name", "kind"), [("nyuv2", "norm"), ("scannet", "normal")])
def test_normals_in_dsine_s_packages(tmp_path, vocab, name, kind):
    truth = facing()
    truth[:5] = 0
    stored = truth * (-1, 1, 1)
    stored[:5] = -1  # pixels without a normal are black
    group = "train" if name == "nyuv2" else "scene0532_00"
    photo_path = photo(tmp_path / group / "000000_img.png", SIZE)
    published_normals(tmp_path / group / f"000000_{kind}.png", stored)
    photo(tmp_path / group / "000010_img.png", SIZE)
    source = open_source(f"{name}:{tmp_path}")
    check_normals(check_view(source, 0, "Surface normal estimation.", photo_path, vocab), truth)
    assert "000010_normal.png or" in reason(source, 1) and "no such file" in reason(source, 1)


def test_scannet_with_framenet_s_normals(tmp_path, vocab):
    truth = facing()
    scene = tmp_path / "scannet-frames" / "scene0016_02"
    photo_path = photo(scene / "frame-000000-color.png", SIZE)
    published_normals(scene / "frame-000000-normal.png", truth * (1, -1, -1))
    for kind in ("orient-X", "orient-Y", "orient-mask", "orient"):
        photo(scene / f"frame-000000-{kind}.png", SIZE)
    photo(scene / "frame-000010-color.png", SIZE)
    published_normals(scene / "frame-000010-normal.png", truth)
    photo(scene / "frame-000020-color.png", SIZE)
    (scene / "frame-000020-normal.png").write_bytes(file_bytes(Image.new("RGB", SIZE))[:40])
    source = open_source(f"scannet:{tmp_path}")
    assert len(source) == 3
    check_normals(check_view(source, 0, "Surface normal estimation.", photo_path, vocab), truth)
    assert "point away from the viewer" in reason(source, 1) and "frame-000010-normal.png" in reason(source, 1)
    assert "frame-000020-normal.png" in reason(source, 2)


def test_flipping_an_axis_is_lossless():
    levels = np.arange(256, dtype=np.uint8)
    stored = np.stack([levels, np.full(256, 128, np.uint8), np.full(256, 160, np.uint8)], axis=-1)[None]
    file = normals.paint(ImageFile("x", file_bytes(Image.fromarray(stored))), normals.LEFT_UP_VIEWER)
    again = normals.paint(file, normals.LEFT_UP_VIEWER)
    visible = np.linalg.norm(stored / 255.0 * 2 - 1, axis=-1) >= dense_maps.LEAST_LENGTH
    assert np.array_equal(pictures.colours(again)[visible], stored[visible]) and visible.sum() > 100


# Semantic maps


@pytest.mark.parametrize(("labels", "classes"), [("ade20k", 150), ("coco", 133), ("cityscapes", 19)])
def test_oneformer_s_maps_over_any_images(tmp_path, vocab, labels, classes):
    truth = np.random.default_rng(0).integers(0, classes, SIZE[::-1])
    truth[0, :classes] = np.arange(classes)[: SIZE[0]]
    truth[-1] = 255
    photo_path = photo(tmp_path / "images" / "a" / "one.jpg", SIZE)
    published_depth(tmp_path / "maps" / "a" / "one.png", truth, np.uint8)
    for number, name in enumerate(("two", "three", "four")):
        photo(tmp_path / "images" / f"{name}.png", SIZE, number)
    wrong = truth.copy()
    wrong[3, 3] = classes
    published_depth(tmp_path / "maps" / "three.png", wrong, np.uint8)
    Image.fromarray(np.zeros((48, 64, 3), np.uint8)).save(tmp_path / "maps" / "four.png")
    spec = f"oneformer:{tmp_path}/maps@images={tmp_path}/images,labels={labels}"
    source = open_source(spec)
    assert len(source) == 4
    picture = check_view(source, 0, "Semantic segmentation.", photo_path, vocab)
    decoded = segments.read(picture, classes)
    assert np.array_equal(decoded, truth) and (picture[-1] == 0).all()
    counts = metrics.confusion(truth[:-1], decoded[:-1], classes)
    assert metrics.mean_iou(counts) == metrics.pixel_accuracy(counts) == 1
    assert "one channel of whole numbers" in reason(source, 1) and "four.png" in reason(source, 1)
    assert f"three.png holds class {classes}" in reason(source, 2)
    assert "two.png: no such file" in reason(source, 3)
    captions = write_lines(tmp_path / "captions.jsonl", [{"image": "a/one.jpg", "caption": "noise"}])
    check_swap(f"{spec},", captions, 0, "noise", photo_path, picture, vocab)


def test_resizing_a_map_makes_no_other_classes(tmp_path):
    truth = np.kron(np.random.default_rng(0).integers(0, 150, (6, 8)), np.ones((8, 8), int))
    photo_path = photo(tmp_path / "images" / "a.png", SIZE)
    published_depth(tmp_path / "maps" / "a.png", truth, np.uint8)
    source = open_source(f"oneformer:{tmp_path}/maps@images={photo_path.parent}")
    picture = source[0].images[1].resize((96, 72), resample=Image.Resampling.BICUBIC)
    assert set(np.unique(segments.read(colours(picture), 150))) <= set(np.unique(truth))


def test_oneformer_without_images_or_with_unknown_labels_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="MAPS@images=DIR"):
        open_source(f"oneformer:{tmp_path}")
    photo(tmp_path / "a.png")
    with pytest.raises(ValueError, match="choose ade20k, coco, cityscapes"):
        open_source(f"oneformer:{tmp_path}@images={tmp_path},labels=voc")


# Skeletons


def person(number: int, image: int, points: np.ndarray, visible: np.ndarray, **changed) -> dict:
    """A person as COCO annotates it."""
    values = np.concatenate([points, visible[:, None]], axis=1) * (visible[:, None] > 0)
    x, y = points.min(axis=0)
    width, height = np.ptp(points, axis=0)
    box = [float(x), float(y), float(width) + 1, float(height) + 1]
    fields = {"id": number, "image_id": image, "category_id": 1, "iscrowd": 0, "area": box[2] * box[3], "bbox": box}
    return fields | {
        "segmentation": [[0.5, 1.5, 2.5, 3.5, 4.5, 5.5]],
        "keypoints": [int(value) for value in values.ravel()],
        "num_keypoints": int((visible > 0).sum()),
        **changed,
    }


@pytest.fixture
def coco(tmp_path):
    """A folder like COCO's, and the people of its first image."""
    size, grid = (320, 240), np.stack(np.meshgrid(np.arange(5) * 25, np.arange(4) * 24), axis=-1).reshape(-1, 2)[:17]
    points = [grid + np.array(corner) for corner in ((10, 12), (170, 130))]
    visible = [np.full(17, 2), np.random.default_rng(0).integers(0, 3, 17)]
    people = [person(900 + n, 5, points[n], visible[n]) for n in range(2)]
    nobody = person(902, 5, points[0], np.zeros(17, int), iscrowd=1, segmentation={"counts": [1, 2], "size": [3, 4]})
    names = {5: "000000000005.jpg", 7: "000000000007.jpg", 9: "lost.jpg", 11: "000000000011.jpg", 13: "empty.jpg"}
    for number in (5, 7, 11):
        photo(tmp_path / "train2017" / names[number], size, number)
    images = [
        {"license": 3, "file_name": name, "height": size[1], "width": size[0], "id": number}
        for number, name in reversed(names.items())
    ]
    wrong = [
        person(903, 7, points[0], visible[0], keypoints=[1, 2, 2]),
        person(904, 9, points[0], visible[0]),
        person(905, 11, points[0], visible[0], bbox=[1, 2, 0, 5]),
        person(906, 404, points[0], visible[0]),
    ]
    skeleton = {"supercategory": "person", "id": 1, "name": "person", "keypoints": ["nose"], "skeleton": [[16, 14]]}
    file = {"info": {"description": "COCO 2017 \u00e9 [{"}, "licenses": [], "images": images}
    unseen = person(907, 13, points[0], np.zeros(17, int))  # without a labelled joint: her image is no record
    file |= {"annotations": [wrong[0], people[1], nobody, unseen, *wrong[1:], people[0]], "categories": [skeleton]}
    write_json(tmp_path / "annotations" / "person_keypoints_train2017.json", file)
    captions = [{"image_id": 5, "id": n, "caption": caption} for n, caption in enumerate(("Two people. ", "Second"))]
    write_json(tmp_path / "annotations" / "captions_train2017.json", {"images": images, "annotations": captions})
    return tmp_path, [people[1], people[0]]


def test_coco_keypoints_as_skeletons(coco, vocab):
    root, people = coco
    source = open_source(f"coco-pose:{root}")
    assert len(source) == 5
    good = next(index for index in range(4) if not failed(source, index))
    photo_path = root / "train2017" / "000000000005.jpg"
    picture = check_view(source, good, "Human pose estimation.", photo_path, vocab)
    decoded = annotations.read_joints(picture, 17)
    keypoints = np.array([person["keypoints"] for person in people], float).reshape(2, 17, 3)
    truth = np.where(keypoints[..., 2:] > 0, keypoints[..., :2] + 0.5, np.nan)  # pixel centres
    assert np.isfinite(truth).sum() > 40
    for joint, dots in enumerate(decoded):
        points = truth[:, joint][np.isfinite(truth[:, joint, 0])]
        assert len(dots) == len(points) == metrics.correct_keypoints(points, np.full(len(points), 0.5), dots)
    reasons = {reason(source, index) for index in range(5) if index != good}
    for why in (
        "annotation 903: 'keypoints' are not 51 numbers",
        "lost.jpg: No such file",
        "annotation 905: 'bbox' is [1, 2, 0, 5]",
        "annotation 906 is of image 404, which is not listed",
    ):
        assert any(why in message for message in reasons)
    assert sum("person_keypoints_train2017.json, image" in message for message in reasons) == 3
    captions = root / "annotations" / "captions_train2017.json"
    check_swap(f"coco-pose:{root}@", captions, good, "Two people.", photo_path, picture, vocab)


def failed(source, index) -> bool:
    try:
        source[index]
    except (ValueError, OSError):
        return True
    return False


def test_every_joint_has_its_own_colour():
    hues = annotations.joint_colours(len(pose.JOINTS))
    assert len(pose.JOINTS) == 17 and len(np.unique(hues, axis=0)) == 17
    assert {joint for bone in pose.BONES for joint in bone} == set(range(17))


@pytest.mark.parametrize(
    "damage", [lambda text: text[:-5], lambda text: text.replace('"images"', "images"), lambda _: "[]"]
)
def test_a_damaged_annotation_file_is_an_error(coco, damage):
    path = coco[0] / "annotations" / "person_keypoints_train2017.json"
    path.write_text(damage(path.read_text()))
    with pytest.raises(ValueError, match=r"person_keypoints_train2017\.json is no complete JSON object"):
        open_source(f"coco-pose:{coco[0]}")


def test_the_spans_of_members_are_byte_spans_of_the_file(tmp_path):
    file = {
        "a": "\u00e9\u20ac [",
        "images": [{"id": 1, "x": "\u00e9}"}, 7, [1, [2]]],
        "b": {"images": [9]},
        "c": [],
        "images2": 1,
    }
    for text in (json.dumps(file), json.dumps(file, ensure_ascii=False, indent=1)):
        content = text.encode()
        spans = [(start, end) for _, start, end, _ in members(content, ("images", "c"))]
        assert [json.loads(content[start:end]) for start, end in spans] == file["images"]

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import os
import sys
import threading
import warnings
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ipca_sklearn.datasets import (
    _magnetic_tile,
    _textures,
    fetch_magnetic_tile,
    load_magnetic_tile,
    load_mvtec_ad,
    load_test_images,
    make_textures,
)
from ipca_sklearn.datasets._defects import DEFECTS
from ipca_sklearn.datasets._folders import list_images
from ipca_sklearn.datasets._materials import MATERIALS

MATERIAL_NAMES = sorted(MATERIALS)
DEFECT_NAMES = sorted(DEFECTS)


def image_bytes(suffix=".png"):
    buffer = io.BytesIO()
    Image.new("L", (4, 3), 128).save(buffer, format=Image.registered_extensions()[suffix.lower()])
    return buffer.getvalue()


def write_image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image_bytes(path.suffix))


@pytest.fixture
def mvtec_root(tmp_path):
    for name in (
        "train/good/001.png",
        "train/good/000.PNG",
        "test/good/000.png",
        "test/cut/000.png",
        "test/cut/001.jpg",
        "test/bent/000.png",
        "ground_truth/cut/000_mask.png",
        "ground_truth/cut/001_mask.png",
        "ground_truth/bent/000_mask.png",
    ):
        write_image(tmp_path / "bolt" / name)
    return tmp_path


TILE_NAMES = tuple(
    f"{folder}/Imgs/{stem}{suffix}"
    for folder, stems in {
        "MT_Free": ("exp1_num_1", "exp2_num_2", "exp3_num_3"),
        "MT_Crack": ("exp1_num_4", "exp2_num_5"),
        "MT_Fray": ("exp5_num_6",),
    }.items()
    for stem in stems
    for suffix in (".jpg", ".png")
)
TILE_COUNTS = {"MT_Free": 3, "MT_Crack": 2, "MT_Fray": 1}


@pytest.fixture
def tile_root(tmp_path):
    for name in TILE_NAMES:
        write_image(tmp_path / name)
    return tmp_path


# Folders


def test_mvtec_lists_train_and_test_with_labels_and_masks(mvtec_root):
    bolt = load_mvtec_ad(mvtec_root, "bolt")
    folder = mvtec_root / "bolt"
    assert bolt.train_paths == [folder / "train/good/000.PNG", folder / "train/good/001.png"]
    assert [p.relative_to(folder / "test").as_posix() for p in bolt.test_paths] == [
        "good/000.png",
        "bent/000.png",
        "cut/000.png",
        "cut/001.jpg",
    ]
    np.testing.assert_array_equal(bolt.test_labels, [1, -1, -1, -1])
    assert bolt.test_labels.dtype.kind == "i"
    assert bolt.defect_types.tolist() == ["good", "bent", "cut", "cut"]
    assert bolt.mask_paths[0] is None
    assert bolt.mask_paths[3] == folder / "ground_truth/cut/001_mask.png"
    assert "CC BY-NC-SA" in bolt.DESCR


def test_loaders_take_a_string_and_a_path_alike(mvtec_root):
    from_string, from_path = load_mvtec_ad(str(mvtec_root), "bolt"), load_mvtec_ad(mvtec_root, "bolt")
    assert from_string.train_paths == from_path.train_paths
    assert from_string.test_paths == from_path.test_paths
    assert all(isinstance(path, Path) for path in from_string.test_paths)


@pytest.mark.parametrize("load", [lambda root: load_mvtec_ad(root, "bolt"), load_magnetic_tile])
def test_missing_root_names_the_folder_and_the_layout(load, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no_such_folder.*does not exist.*holds .*(train/good|MT_Free)"):
        load(tmp_path / "no_such_folder")


def test_root_that_is_a_file_says_so(tmp_path):
    write_image(tmp_path / "a.png")
    with pytest.raises(NotADirectoryError, match=r"a\.png.*is a file"):
        load_magnetic_tile(tmp_path / "a.png")


@pytest.mark.parametrize("category", ["screw", "", "bolt/.", ".."])
def test_missing_category_lists_those_that_are_there(mvtec_root, category):
    write_image(mvtec_root / "nut" / "train" / "good" / "0.png")
    with pytest.raises(FileNotFoundError, match="the categories there are bolt, nut"):
        load_mvtec_ad(mvtec_root, category)


def test_root_that_is_a_category_is_told_to_go_up(mvtec_root):
    with pytest.raises(FileNotFoundError, match="parent folder and category='bolt'"):
        load_mvtec_ad(mvtec_root / "bolt", "bolt")


def test_anomalous_image_without_mask_is_named(mvtec_root):
    (mvtec_root / "bolt/ground_truth/cut/001_mask.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"001\.jpg has no mask.*001_mask\.png"):
        load_mvtec_ad(mvtec_root, "bolt")


def test_category_without_training_images_names_the_folder(mvtec_root):
    for path in (mvtec_root / "bolt/train/good").iterdir():
        path.unlink()
    with pytest.raises(FileNotFoundError, match=r"no normal training image found.*good has no images"):
        load_mvtec_ad(mvtec_root, "bolt")


def test_test_images_are_found_in_the_home_folder(mvtec_root, monkeypatch):
    monkeypatch.setenv("HOME", str(mvtec_root))
    (category,) = (path.name for path in mvtec_root.iterdir() if path.is_dir())
    found = load_test_images(f"~/{category}")
    assert found.test_paths == load_mvtec_ad(mvtec_root, category).test_paths


def test_category_without_test_images_names_the_folder(tmp_path):
    write_image(tmp_path / "bolt/train/good/0.png")
    with pytest.raises(FileNotFoundError, match=r"no test image found under .*test"):
        load_mvtec_ad(tmp_path, "bolt")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"])
def test_every_suffix_is_found_in_either_case(mvtec_root, suffix):
    write_image(mvtec_root / f"bolt/train/good/low{suffix}")
    write_image(mvtec_root / f"bolt/train/good/UP{suffix.upper()}")
    names = {path.name for path in load_mvtec_ad(mvtec_root, "bolt").train_paths}
    assert {f"low{suffix}", f"UP{suffix.upper()}"} <= names


def test_hidden_and_other_files_are_left_out(mvtec_root):
    before = load_mvtec_ad(mvtec_root, "bolt").train_paths
    for name in ("._000.png", "Thumbs.db", "notes.txt"):
        (mvtec_root / "bolt/train/good" / name).write_bytes(b"")
    assert load_mvtec_ad(mvtec_root, "bolt").train_paths == before


def test_a_link_to_an_absent_image_is_not_passed_over(mvtec_root):
    link = mvtec_root / "bolt/train/good/link.png"
    link.symlink_to(mvtec_root / "absent.png")
    assert link in load_mvtec_ad(mvtec_root, "bolt").train_paths


def test_magnetic_tile_holds_out_the_prefix_and_tests_every_defect(tile_root):
    tiles = load_magnetic_tile(tile_root)
    assert [p.name for p in tiles.train_paths] == ["exp2_num_2.jpg", "exp3_num_3.jpg"]
    assert [p.name for p in tiles.test_paths] == [
        "exp1_num_1.jpg",
        "exp1_num_4.jpg",
        "exp2_num_5.jpg",
        "exp5_num_6.jpg",
    ]
    np.testing.assert_array_equal(tiles.test_labels, [1, -1, -1, -1])
    assert tiles.defect_types.tolist() == ["good", "crack", "crack", "fray"]
    assert tiles.mask_paths == [None, *(p.with_suffix(".png") for p in tiles.test_paths[1:])]


def test_each_prefix_parts_the_normals_without_loss(tile_root):
    for prefix in ("exp1", "exp2", "exp3"):
        tiles = load_magnetic_tile(tile_root, test_prefix=prefix)
        held_out = [p for p, label in zip(tiles.test_paths, tiles.test_labels, strict=True) if label == 1]
        assert sorted(tiles.train_paths + held_out) == sorted((tile_root / "MT_Free/Imgs").glob("*.jpg"))


@pytest.mark.parametrize(("prefix", "count"), [("exp9", "none"), ("exp", "all"), ("", "all")])
def test_prefix_that_splits_nothing_lists_the_prefixes(tile_root, prefix, count):
    with pytest.raises(ValueError, match=rf"test_prefix='{prefix}' matches {count} of the 3.*exp1, exp2, exp3"):
        load_magnetic_tile(tile_root, test_prefix=prefix)


def test_defective_tile_without_mask_is_named(tile_root):
    (tile_root / "MT_Fray/Imgs/exp5_num_6.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"exp5_num_6\.jpg has no mask"):
        load_magnetic_tile(tile_root)


def test_normals_alone_are_refused(tmp_path):
    for name in TILE_NAMES:
        if name.startswith("MT_Free"):
            write_image(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="no defective image found"):
        load_magnetic_tile(tmp_path)


# Real data


@pytest.fixture
def data_folder():
    folder = os.environ.get("IPCA_SKLEARN_DATA")
    if not folder:
        pytest.skip("IPCA_SKLEARN_DATA is unset: it names a folder that holds magnetic_tile/ and mvtec/")
    return Path(folder)


def test_the_published_tiles_split_as_in_the_paper(data_folder):
    tiles = load_magnetic_tile(data_folder / "magnetic_tile")
    assert len(tiles.train_paths) == 795
    assert Counter(tiles.defect_types.tolist()) == {
        "good": 952 - 795,
        **{
            name.removeprefix("MT_").lower(): n
            for name, n in _magnetic_tile._EXPECTED_COUNTS.items()
            if name != "MT_Free"
        },
    }


def test_the_published_tiles_pass_the_check_of_the_download(data_folder):
    root = data_folder / "magnetic_tile"
    assert _magnetic_tile._count_problems(root) + _magnetic_tile._file_problems(root) == []


def test_the_masks_on_disk_fit_their_images(data_folder):
    leather = load_mvtec_ad(data_folder / "mvtec", "leather")
    assert len(leather.test_paths) == len(leather.mask_paths) == len(leather.test_labels)
    for path, mask_path, label in zip(leather.test_paths, leather.mask_paths, leather.test_labels, strict=True):
        assert (mask_path is None) == (label == 1)
        if mask_path is not None:
            with Image.open(path) as image, Image.open(mask_path) as mask:
                assert image.size == mask.size
                assert mask.getextrema()[1] > 0


# Download


def make_archive(names=TILE_NAMES, **changed):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("Magnetic-tile-defect-datasets.-master/README.md", "read me")
        for name in names:
            content = changed.get(Path(name).name.replace(".", "_"), image_bytes(Path(name).suffix))
            archive.writestr(f"Magnetic-tile-defect-datasets.-master/{name}", content)
    return buffer.getvalue()


@pytest.fixture
def serve(tmp_path, monkeypatch):
    """A function that serves bytes as the archive and returns base_url; the counts are those of the small set."""
    monkeypatch.setattr(_magnetic_tile, "_EXPECTED_COUNTS", TILE_COUNTS)
    folder = tmp_path / "server"
    (folder / "repo/archive").mkdir(parents=True)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    handler = functools.partial(Quiet, directory=folder)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()

    def publish(content=None):
        if content is not None:
            (folder / "repo/archive/master.zip").write_bytes(content)
        return f"http://127.0.0.1:{server.server_address[1]}/repo"

    yield publish
    server.shutdown()
    server.server_close()


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


def assert_nothing_left(home):
    assert list(home.iterdir()) == []


def test_fetch_downloads_and_loads_the_set(serve, home):
    tiles = fetch_magnetic_tile(home, base_url=serve(make_archive()))
    assert len(tiles.train_paths) == 2
    assert len(tiles.test_paths) == 4
    assert [path.name for path in home.iterdir()] == ["magnetic_tile"]
    assert tiles.train_paths[0].read_bytes() == image_bytes(".jpg")


def test_second_fetch_needs_no_server(serve, home):
    first = fetch_magnetic_tile(home, base_url=serve(make_archive()))
    second = fetch_magnetic_tile(home, base_url="http://127.0.0.1:9/nobody", download_if_missing=False)
    assert second.train_paths == first.train_paths


def test_default_home_is_that_of_scikit_learn(serve, home, monkeypatch):
    monkeypatch.setenv("SCIKIT_LEARN_DATA", str(home))
    tiles = fetch_magnetic_tile(base_url=serve(make_archive()), test_prefix="exp2")
    assert tiles.train_paths[0].is_relative_to(home / "magnetic_tile")
    assert [path.name for path in tiles.train_paths] == ["exp1_num_1.jpg", "exp3_num_3.jpg"]


def test_right_checksum_is_accepted(serve, home):
    content = make_archive()
    sha256 = hashlib.sha256(content).hexdigest()
    assert len(fetch_magnetic_tile(home, base_url=serve(content), sha256=sha256).train_paths) == 2


def test_wrong_checksum_leaves_nothing(serve, home):
    with pytest.raises(ValueError, match=r"master\.zip does not have the checksum sha256='0000"):
        fetch_magnetic_tile(home, base_url=serve(make_archive()), sha256="0" * 64)
    assert_nothing_left(home)


def test_truncated_archive_leaves_nothing(serve, home):
    content = make_archive()
    with pytest.raises(ValueError, match="is not a whole zip archive"):
        fetch_magnetic_tile(home, base_url=serve(content[: len(content) // 2]))
    assert_nothing_left(home)


def test_damaged_member_leaves_nothing(serve, home):
    jpeg = image_bytes(".jpg")
    with pytest.raises(ValueError, match="is not a whole zip archive: Bad CRC"):
        fetch_magnetic_tile(home, base_url=serve(make_archive().replace(jpeg, jpeg[::-1], 1)))
    assert_nothing_left(home)


def test_server_without_the_archive_names_the_address(serve, home):
    with pytest.raises(OSError, match=r"could not download http://127.*/repo/archive/v9\.zip: 404"):
        fetch_magnetic_tile(home, base_url=serve(), ref="v9")
    assert_nothing_left(home)


def test_missing_image_is_counted(serve, home):
    names = [name for name in TILE_NAMES if "exp5_num_6" not in name]
    with pytest.raises(ValueError, match="MT_Fray holds 0 images instead of 1"):
        fetch_magnetic_tile(home, base_url=serve(make_archive(names)))
    assert_nothing_left(home)


def test_missing_mask_is_named(serve, home):
    names = [name for name in TILE_NAMES if not name.endswith("exp2_num_5.png")]
    with pytest.raises(ValueError, match=r"1 images in MT_Crack have no mask, the first is exp2_num_5\.jpg"):
        fetch_magnetic_tile(home, base_url=serve(make_archive(names)))
    assert_nothing_left(home)


def test_file_that_is_no_image_is_named(serve, home):
    with pytest.raises(ValueError, match=r"MT_Crack/Imgs/exp1_num_4\.jpg is not an image"):
        fetch_magnetic_tile(home, base_url=serve(make_archive(exp1_num_4_jpg=b"<html>")))
    assert_nothing_left(home)


@pytest.mark.parametrize("member", ["../../evil.jpg", "MT_Free/../../../evil.jpg", "MT_Free\\..\\..\\evil.jpg"])
def test_member_that_would_leave_the_folder_is_refused(serve, home, tmp_path, member):
    """Why this is not pooch.Unzip, which writes such a member under another name, and archives of any size."""
    with pytest.raises(ValueError, match=r"evil\.jpg.* would leave the folder"):
        fetch_magnetic_tile(home, base_url=serve(make_archive([*TILE_NAMES, member])))
    assert_nothing_left(home)
    assert not list(tmp_path.rglob("evil.jpg"))


def test_missing_set_without_download_names_the_folder(home):
    with pytest.raises(FileNotFoundError, match=r"home.magnetic_tile and download_if_missing=False"):
        fetch_magnetic_tile(home, download_if_missing=False)


def test_missing_pooch_says_what_to_install(home, monkeypatch):
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(ImportError, match="pip install pooch"):
        fetch_magnetic_tile(home)


def test_folder_with_half_a_set_is_not_taken_for_the_whole(serve, home):
    url = serve(make_archive())
    fetch_magnetic_tile(home, base_url=url).train_paths[0].unlink()
    with pytest.raises(ValueError, match=r"MT_Free holds 2 images instead of 3.*Delete that folder"):
        fetch_magnetic_tile(home, base_url=url)


def test_interrupt_while_unpacking_leaves_nothing(serve, home, monkeypatch):
    def interrupt(archive, folder):
        raise KeyboardInterrupt

    monkeypatch.setattr(_magnetic_tile, "_unpack", interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch_magnetic_tile(home, base_url=serve(make_archive()))
    assert_nothing_left(home)


# Drawn surfaces


@pytest.mark.parametrize("material", MATERIAL_NAMES)
def test_textures_have_the_promised_shapes(material):
    data = make_textures(3, 5, material=material, size=48)
    assert data.train_images.shape == (3, 48, 48, 3)
    assert data.test_images.shape == (5, 48, 48, 3)
    assert data.train_images.dtype == data.test_images.dtype == np.uint8
    assert data.test_masks.shape == (5, 48, 48)
    assert data.test_masks.dtype == bool
    assert (data.test_labels == 1).sum() == 3
    np.testing.assert_array_equal(data.test_labels == 1, data.defect_types == "good")
    np.testing.assert_array_equal(data.test_labels == -1, data.test_masks.any(axis=(1, 2)))
    assert data.material == material


@pytest.mark.parametrize("material", MATERIAL_NAMES)
@pytest.mark.parametrize("kind", DEFECT_NAMES)
def test_mask_is_exactly_where_the_image_changed(material, kind):
    entropy = (5, 1, 2)
    clean, empty = _textures._draw(material, 128, entropy, None)
    damaged, mask = _textures._draw(material, 128, entropy, kind)
    assert not empty.any()
    np.testing.assert_array_equal((clean != damaged).any(axis=-1), mask)
    change = np.abs(clean.astype(int) - damaged).max(axis=-1)[mask]
    assert change.min() >= _textures._MIN_CHANGE
    assert 6 <= mask.sum() < mask.size / 4


@settings(max_examples=25, deadline=None)
@given(
    material=st.sampled_from(MATERIAL_NAMES),
    kind=st.sampled_from(DEFECT_NAMES),
    size=st.integers(32, 72),
    seed=st.integers(0, 2**31),
)
def test_any_seed_and_size_damages_the_mask_and_nothing_else(material, kind, size, seed):
    clean, _ = _textures._draw(material, size, (seed, 1, 0), None)
    damaged, mask = _textures._draw(material, size, (seed, 1, 0), kind)
    np.testing.assert_array_equal((clean != damaged).any(axis=-1), mask)
    assert mask.sum() >= 6


@pytest.mark.parametrize("material", MATERIAL_NAMES)
def test_same_seed_repeats_bit_by_bit_and_another_differs(material):
    one, same, other = (make_textures(2, 4, material=material, size=40, random_state=s) for s in (7, 7, 8))
    for key in ("train_images", "test_images", "test_masks", "test_labels", "defect_types"):
        np.testing.assert_array_equal(one[key], same[key])
    assert (one.train_images != other.train_images).any()
    assert (one.test_masks != other.test_masks).any()


def test_image_does_not_depend_on_how_many_are_drawn():
    few, many = make_textures(2, 3, size=40), make_textures(5, 9, size=40)
    np.testing.assert_array_equal(few.train_images, many.train_images[:2])
    np.testing.assert_array_equal(few.test_images, many.test_images[:3])
    np.testing.assert_array_equal(few.test_masks, many.test_masks[:3])


def test_random_state_may_be_an_instance_or_none():
    first, repeat = (make_textures(1, 0, size=32, random_state=np.random.RandomState(3)) for _ in range(2))
    np.testing.assert_array_equal(first.train_images, repeat.train_images)
    stream = np.random.RandomState(3)
    make_textures(1, 0, size=32, random_state=stream)
    assert (make_textures(1, 0, size=32, random_state=stream).train_images != first.train_images).any()
    drawn = [make_textures(1, 0, size=32, random_state=None).train_images for _ in range(2)]
    assert (drawn[0] != drawn[1]).any()


def test_an_int_seed_leaves_the_global_generator_alone():
    before = np.random.get_state()[1].copy()  # noqa: NPY002 - the legacy state is what is looked at
    make_textures(1, 1, size=32)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


@pytest.mark.parametrize("material", MATERIAL_NAMES)
def test_normal_images_differ_from_each_other_but_share_their_look(material):
    images = make_textures(6, 0, material=material, size=96).train_images.astype(float)
    means, spreads = images.mean(axis=(1, 2, 3)), images.std(axis=(1, 2, 3))
    assert np.abs(images[0] - images[1]).mean() > 1
    assert np.ptp(means) < 0.25 * means.mean()
    assert spreads.max() < 2 * spreads.min()


def test_only_the_part_stays_in_its_place():
    def agreement(material):
        grey = make_textures(6, 0, material=material, size=96).train_images.mean(axis=-1)
        flat = grey.reshape(6, -1)
        return np.corrcoef(flat)[np.triu_indices(6, 1)].mean()

    assert agreement("part") > 0.9
    assert max(agreement(name) for name in MATERIAL_NAMES if name != "part") < 0.5


def test_defects_on_the_part_spare_the_table():
    for i in range(8):
        damaged, mask = _textures._draw("part", 96, (i, 1, 0), "stain")
        assert not mask[:4].any()
        assert damaged[:4].mean() < 60


def test_defects_come_in_turn_and_only_those_asked_for():
    data = make_textures(0, 8, size=32, defects=["hole", "crack"])
    assert data.defect_types.tolist() == ["good", "hole", "good", "crack"] * 2
    assert set(make_textures(0, 4, size=32, defects="blob").defect_types) == {"good", "blob"}
    assert set(make_textures(0, 2 * len(DEFECTS), size=32).defect_types) == {"good", *DEFECTS}


@pytest.mark.parametrize("kind", DEFECT_NAMES)
def test_defects_vary_in_size_and_strength(kind):
    areas, contrasts = [], []
    for i in range(12):
        clean, _ = _textures._draw("metal", 96, (i, 1, 0), None)
        damaged, mask = _textures._draw("metal", 96, (i, 1, 0), kind)
        areas.append(mask.sum())
        contrasts.append(np.abs(damaged.astype(float) - clean)[mask].mean())
    assert max(areas) > 1.5 * min(areas)
    assert max(contrasts) > 1.5 * min(contrasts)
    assert max(contrasts) > 12


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"material": "Leathr"}, r"material='Leathr' is unknown; did you mean 'leather'\? the names are fabric"),
        ({"defects": ["hole", "scrach"]}, r"defects='scrach' is unknown; did you mean 'scratch'\?"),
        ({"defects": "zzz"}, r"defects='zzz' is unknown; the names are all, blob"),
        ({"defects": []}, "defects is empty"),
        ({"size": 31}, "'size' parameter"),
        ({"n_train": -1}, "'n_train' parameter"),
        ({"random_state": "today"}, "'random_state' parameter"),
    ],
)
def test_wrong_arguments_are_explained(wrong, message):
    with pytest.raises(ValueError, match=message):
        make_textures(**{"n_train": 1, "n_test": 2, "size": 32, **wrong})


def listed(folder, **options):
    return [str(path.relative_to(folder)) for path in list_images(folder, **options)]


def fill(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")


def test_images_of_formats_that_are_not_read_are_counted_and_other_files_are_not(tmp_path):
    fill(tmp_path, "a.png", "b.PPM", "c.gif", "d.GIF", "deep/e.avif", "f.jp2", "notes.txt", "Thumbs.db", ".hidden.gif")
    with pytest.warns(UserWarning, match=r"not read, and that are passed over: 2 \.gif, 1 \.jp2\. Convert") as caught:
        assert listed(tmp_path) == ["a.png", "b.PPM"]
    assert len(caught) == 1
    with pytest.warns(UserWarning, match=r"1 \.avif, 2 \.gif, 1 \.jp2"):
        listed(tmp_path, recursive=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fill(tmp_path / "clean", "a.png", "a.jpg")
        assert listed(tmp_path / "clean", suffixes=(".jpg",)) == ["a.jpg"]


def test_linked_folders_are_listed_once_and_a_word_says_so(tmp_path):
    fill(
        tmp_path, "root/a/1.png", "root/b/2.png", "root/.hidden/3.png", "other/4.png", "other/deep/5.png", "beside.png"
    )
    root = tmp_path / "root"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (root / "linked").symlink_to(tmp_path / "other")
        assert listed(root, recursive=True) == ["a/1.png", "b/2.png", "linked/4.png", "linked/deep/5.png"]
    (root / "0_first").symlink_to(root / "b")  # sorted before what it links to
    (root / "a" / "loop").symlink_to(root)
    (root / "a" / "up").symlink_to(tmp_path)
    (root / "again").symlink_to(tmp_path / "other" / "deep")
    (tmp_path / "other" / "back").symlink_to(tmp_path / "other")
    with pytest.warns(UserWarning, match="listed once: passed over are .*0_first.* and 2 more") as caught:
        found = listed(root, recursive=True)
    assert len(caught) == 1
    assert sorted(found) == ["a/1.png", "again/5.png", "b/2.png", "linked/4.png"]


def test_a_link_that_leads_to_itself_ends(tmp_path):
    (tmp_path / "self").symlink_to("self")
    fill(tmp_path, "1.png")
    assert listed(tmp_path, recursive=True) == ["1.png"]

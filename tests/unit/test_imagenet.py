"""ImageNet folders in every layout, damaged images, and crops that depend on the batch's seed alone."""

from __future__ import annotations

import os
import resource
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import imagenet_folders as make
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Generator

from bench.errors import UserError
from datamodules import imagenet_layout
from datamodules.imagefiles import ImageFiles, UnreadableError, decode, list_folder
from datamodules.imagenet import Crops, ImageNetDataModule

FEW_CORES = pytest.mark.filterwarnings("ignore:This DataLoader will create")
LABELS = {"n01440764": 0, "n02105855": 230, "n15075141": 999}


def module(root: Path, **options: object) -> ImageNetDataModule:
    return ImageNetDataModule(str(root), partial=True, **{"num_workers": 0, **options})  # type: ignore[arg-type]


def contents(root: Path) -> set[tuple[bytes, int]]:
    """Bytes and label of every evaluated image."""
    part = module(root).split("test")
    return {(part.path(row).read_bytes(), int(part.labels[row])) for row in range(len(part))}


EXPECTED = {(content, LABELS[wnid]) for _, wnid, content in make.val_images()}


def columns(root: Path) -> None:
    (root / "val.txt").write_text("".join(f"{n} {w}\n" for n, w, _ in reversed(make.val_images())))


def kaggle(root: Path) -> None:
    lines = [f"{n.removesuffix('.JPEG')},{w} 85 1 499 272" for n, w, _ in reversed(make.val_images())]
    (root / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *lines]))


def in_order(root: Path) -> None:
    (root / "imagenet_2012_validation_synset_labels.txt").write_text("".join(f"{w}\n" for _, w, _ in make.val_images()))


def test_class_folders_get_the_numbers_of_the_thousand_classes(tmp_path):
    root = make.val_folders(make.train_folders(tmp_path))
    assert contents(root) == EXPECTED
    train = module(root).split("train")
    assert sorted(set(train.labels.tolist())) == sorted(LABELS.values())
    assert all(LABELS[train.path(row).parent.name] == train.labels[row] for row in range(len(train)))


@pytest.mark.parametrize("mapping", [make.kit, columns, kaggle, in_order])
def test_flat_validation_images_with_each_kind_of_list(tmp_path, mapping):
    root = make.val_flat(make.train_folders(tmp_path))
    mapping(root)
    assert contents(root) == EXPECTED


def test_archives_are_extracted_once(tmp_path, monkeypatch, capsys):
    table = make.archives(tmp_path / "set", tmp_path / "scratch")
    for place in ("torchvision.datasets.imagenet.ARCHIVE_META", "datamodules.imagenet_layout.ARCHIVE_META"):
        monkeypatch.setattr(place, table)
    assert contents(tmp_path / "set") == EXPECTED
    assert capsys.readouterr().out.count("extracting") == 2
    assert contents(tmp_path / "set") == EXPECTED
    assert "extracting" not in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "set").iterdir()} == {
        "train", "val", ".extract-train.lock", ".extract-val.lock", *(name for name, _ in table.values())}  # fmt: skip


def test_a_damaged_archive_leaves_no_folder(tmp_path, monkeypatch):
    table = make.archives(tmp_path / "set", tmp_path / "scratch")
    for place in ("torchvision.datasets.imagenet.ARCHIVE_META", "datamodules.imagenet_layout.ARCHIVE_META"):
        monkeypatch.setattr(place, table)
    archive = tmp_path / "set/ILSVRC2012_img_train.tar"
    archive.write_bytes(archive.read_bytes()[:5000])
    with pytest.raises(UserError, match="could not be extracted"):
        module(tmp_path / "set").setup()
    assert not (tmp_path / "set/train").exists() and not (tmp_path / "set/.extract-train").exists()


def nothing(root: Path) -> None:
    pass


def no_val(root: Path) -> None:
    make.train_folders(root)


def strange_class(root: Path) -> None:
    make.val_folders(make.train_folders(root))
    (root / "train/n99999999").mkdir()


def no_list(root: Path) -> None:
    make.val_flat(make.train_folders(root))


def kit_without_meta(root: Path) -> None:
    no_list(root)
    make.kit(root)
    (root / "meta.mat").unlink()


def broken_meta(root: Path) -> None:
    no_list(root)
    make.kit(root)
    (root / "meta.mat").write_bytes(b"MATLAB 5.0" + bytes(200))


def short_list(root: Path) -> None:
    no_list(root)
    (root / "val.txt").write_text("n01440764\n")


def gap_in_list(root: Path) -> None:
    no_list(root)
    (root / "val.txt").write_text("ILSVRC2012_val_00000001.JPEG n01440764\n")


def nonsense_list(root: Path) -> None:
    no_list(root)
    (root / "val.txt").write_text("ILSVRC2012_val_00000001.JPEG 7\n")


def train_flat(root: Path) -> None:
    make.val_flat(root)
    (root / "val").rename(root / "train")


def tar_without_kit(root: Path) -> None:
    (root / "ILSVRC2012_img_train.tar").write_bytes(b"")


@pytest.mark.parametrize(
    ("prepare", "words"),
    [
        (nothing, ["found in", "nothing", "--data.root", "BENCH_DATA_DIR"]),
        (no_val, ["there is no", "val", "found in", "train"]),
        (strange_class, ["1 of 4 folders", "n99999999", "n01440764", "n15075141"]),
        (no_list, ["6 images", "val.txt", "ground_truth"]),
        (kit_without_meta, ["meta.mat"]),
        (broken_meta, ["meta.mat", "damaged"]),
        (short_list, ["1 lines", "6 images"]),
        (gap_in_list, ["5 of 6 images", "00000002"]),
        (nonsense_list, ["line 1", "wnid"]),
        (train_flat, ["6 images in no class folder"]),
        (tar_without_kit, ["devkit"]),
    ],
)
def test_a_set_that_is_not_whole_says_what_is_there(tmp_path, prepare, words):
    prepare(tmp_path)
    with pytest.raises(UserError) as refused:
        module(tmp_path).setup()
    message = str(refused.value)
    assert "\n" not in message and not [word for word in words if word not in message], message


def test_a_partial_set_is_refused_with_what_was_found_and_taken_on_request(tmp_path):
    root = make.val_folders(make.train_folders(tmp_path))
    with pytest.raises(UserError, match=r"train: found 12 images of 3 classes, and the set has 1,281,167 of 1,000"):
        ImageNetDataModule(str(root), num_workers=0).setup()
    assert module(root).limited


def test_classes_that_are_evaluated_and_have_no_training_image_are_said(tmp_path, capsys):
    root = make.val_folders(make.train_folders(tmp_path))
    module(root).setup()
    assert "note" not in capsys.readouterr().out
    for wnid in make.WNIDS[1:]:
        shutil.rmtree(root / "train" / wnid)
    module(root).setup()
    said = capsys.readouterr().out
    assert f"{root / 'val'}: 2 of its classes have no training image" in said
    assert said.rstrip().endswith(", ".join(make.WNIDS[1:]))


def damage(root: Path) -> tuple[Path, Path]:
    empty, cut = root / "train/n01440764/n01440764_0.JPEG", root / "val/n02105855/ILSVRC2012_val_00000001.JPEG"
    empty.write_bytes(b"")
    cut.write_bytes(cut.read_bytes()[:-400])
    return empty, cut


@pytest.mark.parametrize("check", ["quick", "full"])
def test_empty_and_truncated_files_are_named_before_they_are_read(tmp_path, check):
    root = make.val_folders(make.train_folders(tmp_path))
    empty, cut = damage(root)
    with pytest.raises(UserError, match=rf"1 of 6 images cannot be used: {cut}: .*truncated"):
        module(root, check=check).setup()
    cut.write_bytes(make.jpeg(5))
    data = module(root, check=check)
    data.setup()  # an evaluation reads no training images
    with pytest.raises(UserError, match=rf"1 of 12 images cannot be used: {empty}: .*\(0 bytes"):
        data.check_training_files()


def test_held_out_images_are_looked_at_before_a_training_and_where_they_are_evaluated(tmp_path):
    root = make.val_folders(make.train_folders(tmp_path))
    data = module(root, val_split=4)
    data.split("val").path(0).write_bytes(b"")
    with pytest.raises(UserError, match="1 of 4 images cannot be used"):
        data.check_training_files()
    with pytest.raises(UserError, match="1 of 4 images cannot be used"):
        module(root, val_split=4, eval_split="val").setup()


def test_many_bad_files_are_counted_and_three_are_named(tmp_path):
    root = make.val_folders(make.train_folders(tmp_path))
    for image in (root / "train").rglob("*.JPEG"):
        image.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"12 of 12 images .*; and 9 more; "):
        module(root).check_training_files()


def test_grey_cmyk_and_misnamed_images_are_shown_as_rgb_and_counted(tmp_path, capsys):
    root = make.val_folders(make.train_folders(tmp_path))
    folder = root / "train/n01440764"
    (folder / "n01440764_0.JPEG").write_bytes(make.jpeg(1, "L"))
    (folder / "n01440764_1.JPEG").write_bytes(make.jpeg(2, "CMYK"))
    Image.new("RGBA", (9, 9)).save(folder / "n01440764_2.JPEG", "PNG")
    data = module(root, check="full")
    data.check_training_files()
    data.check_training_files()
    assert capsys.readouterr().out.replace("1 CMYK, 1 L", "1 L, 1 CMYK").splitlines() == [
        "imagenet: 6 test images decoded (6 RGB); all are shown as RGB",
        "imagenet: 12 train images decoded (9 RGB, 1 L, 1 CMYK, 1 RGBA); all are shown as RGB",
    ]
    images, labels = data.split("train").fetch(torch.arange(3), training=False)
    assert [image.mode for image in images] == ["RGB"] * 3 and labels.tolist() == [0, 0, 0]


def test_an_image_that_is_lost_during_training_is_replaced_and_named_and_stops_an_evaluation(tmp_path, capsys):
    root = make.val_folders(make.train_folders(tmp_path))
    data = module(root, batch_size=12)
    train = data.split("train")
    lost = train.path(3)
    lost.write_bytes(lost.read_bytes()[:300])
    for _ in range(2):
        images, labels = train.fetch(torch.tensor([3, 5, 6]), training=True)
        assert labels.tolist() == [train.labels[row] for row in (5, 5, 6)]
        assert images[0].tobytes() == images[1].tobytes() != images[2].tobytes()
    err = capsys.readouterr().err
    assert err.count(str(lost)) == 1, "named once"
    assert train.replacements == 2 and data.limited
    with pytest.raises(UnreadableError, match=str(lost)):
        train.fetch(torch.tensor([3]), training=False)
    with pytest.raises(UnreadableError, match=str(lost)):
        train.fetch(torch.tensor([3]), training=True)


def test_a_training_does_not_go_on_with_copies_of_a_few_images(tmp_path, capsys):
    data = module(make.val_folders(make.train_folders(tmp_path)))
    train = data.split("train")
    for row in range(11):
        train.path(row).write_bytes(b"")
    for row in range(10):
        train.fetch(torch.tensor([row, 11]), training=True)
    with pytest.raises(UnreadableError, match="10 others could not be read either"):
        train.fetch(torch.tensor([10, 11]), training=True)
    assert capsys.readouterr().err.count("stands in") == 10


@FEW_CORES
def test_what_loader_processes_replace_is_known_here(tmp_path):
    data = module(make.val_folders(make.train_folders(tmp_path)), batch_size=12, num_workers=1)
    data.split("train").path(3).write_bytes(b"")
    next(iter(data.train_dataloader()))
    assert data.split("train").replacements == 1


def test_what_another_process_replaces_is_known_here_at_the_next_checkpoint(tmp_path):
    data = module(make.val_folders(make.train_folders(tmp_path)))
    data.setup()
    data.partial = False
    replaced = torch.tensor(0)
    strategy = SimpleNamespace(root_device=torch.device("cpu"), reduce=lambda here, reduce_op: here + replaced)
    data.trainer = SimpleNamespace(strategy=strategy)
    for number, limited in ((0, False), (3, True)):
        replaced.fill_(number)
        assert data.state_dict() == {}
        assert data.limited_training is limited
    assert data.split("train").replacements == 0


def test_a_class_folder_that_cannot_be_read_is_one_line(tmp_path, monkeypatch):
    root = make.val_folders(make.train_folders(tmp_path))

    def refused(folder, _):
        raise PermissionError(13, "Permission denied", str(folder))

    monkeypatch.setattr(imagenet_layout, "list_folder", refused)
    with pytest.raises(UserError, match=r"train/?.*: cannot be read \(Permission denied\)"):
        module(root).setup()


@FEW_CORES
def test_a_loader_process_hands_on_the_one_line(tmp_path):
    root = make.val_folders(make.train_folders(tmp_path))
    data = module(root, num_workers=1)
    lost = data.split("test").path(0)
    lost.unlink()
    with pytest.raises(UnreadableError) as refused:
        list(data.test_dataloader())
    assert str(refused.value).startswith(f"{lost}: cannot be read") and "\n" not in str(refused.value)


def test_random_crops_depend_on_the_seed_of_the_batch_and_leave_the_generators_alone(tmp_path):
    image = decode_bytes(make.jpeg(3, size=(300, 280)), tmp_path)
    crops = Crops((0.5,) * 3, (0.25,) * 3, color_jitter=True)

    def draw(seed: int) -> torch.Tensor:
        return crops([image, image], Generator().manual_seed(seed))

    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = draw(4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(draw(4), one) and not torch.equal(draw(5), one)
    assert not torch.equal(one[0], one[1]), "each image has its own draw"


def decode_bytes(content: bytes, folder: Path) -> Image.Image:
    (folder / "image.JPEG").write_bytes(content)
    return decode(folder / "image.JPEG")


def test_evaluation_is_the_centre_of_the_resized_image(tmp_path):
    # 512 x 256 is not resized; its centre 224 x 224 begins at column 144 and row 16.
    image = decode_bytes(make.jpeg(3, size=(512, 256)), tmp_path)
    [got] = Crops((0.0,) * 3, (1.0,) * 3)([image])
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(256, 512, 3)
    assert torch.equal((got * 255).round().to(torch.uint8), pixels[16:240, 144:368].permute(2, 0, 1))


@pytest.mark.parametrize(("resize", "interpolation"), [(224, "bilinear"), (256, "bicubic"), (300, "bilinear")])
def test_evaluation_resizes_as_it_is_told(tmp_path, resize, interpolation):
    image = decode_bytes(make.jpeg(3, size=(400, 300)), tmp_path)
    shorter = image.resize((resize * 4 // 3, resize), getattr(Image.Resampling, interpolation.upper()))
    left, top = round((shorter.size[0] - 224) / 2), round((shorter.size[1] - 224) / 2)
    expected = np.asarray(shorter.crop((left, top, left + 224, top + 224)))
    [got] = Crops((0.0,) * 3, (1.0,) * 3, resize=resize, interpolation=interpolation)([image])
    assert np.array_equal((got * 255).round().to(torch.uint8).permute(1, 2, 0).numpy(), expected)


def test_evaluation_images_are_the_papers_unless_told(tmp_path):
    ours, other = (ImageNetDataModule(root=tmp_path, **options).pipeline().test.transforms[0]
                   for options in ({}, {"eval_resize": 230, "eval_interpolation": "bicubic"}))  # fmt: skip
    assert (ours.size, ours.interpolation.value) == ([256], "bilinear")
    assert (other.size, other.interpolation.value) == ([230], "bicubic")
    with pytest.raises(UserError, match="eval_resize 223"):
        ImageNetDataModule(root=tmp_path, eval_resize=223)


def test_images_are_normalised_as_told(tmp_path):
    own = ImageNetDataModule(root=tmp_path, mean=[0.1, 0.2, 0.3], std=[0.4, 0.5, 0.6]).pipeline()
    black = own.normalise(torch.zeros(1, 3, 2, 2, dtype=torch.uint8))
    assert black[0, :, 0, 0].tolist() == pytest.approx([-0.25, -0.4, -0.5])


def test_the_fingerprint_is_of_contents_and_labels_wherever_they_are(tmp_path):
    flat, tree = make.val_flat(make.train_folders(tmp_path / "a")), make.val_flat(make.train_folders(tmp_path / "b"))
    columns(flat), in_order(tree)
    assert module(flat).fingerprint() == module(tree).fingerprint()
    folders = make.val_folders(make.train_folders(tmp_path / "c"))
    assert module(folders).fingerprint() == module(tree).fingerprint()
    assert module(folders, subset=2).fingerprint() == module(tree, subset=2).fingerprint()
    (tree / "val/ILSVRC2012_val_00000002.JPEG").write_bytes(make.jpeg(77))
    assert module(flat).fingerprint() != module(tree).fingerprint()


def test_subsets_keep_the_right_files(tmp_path):
    files = ImageFiles.build(tmp_path, [("a", 1, ["x.jpg", "ü.jpg"]), ("b", 2, ["z.png"]), ("c", 3, [])])
    part = files.take(torch.tensor([2, 1])).take(torch.tensor([1, 0]))
    assert [part.path(row) for row in range(2)] == [tmp_path / "a/ü.jpg", tmp_path / "b/z.png"]
    assert part.labels.tolist() == [1, 2]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_listing_of_the_whole_set_needs_little_memory_and_no_file_handles(tmp_path, monkeypatch):
    """1.28 million names (hard links to a few files, as a file system limits the links of one) in 1,000 folders."""
    wnids = imagenet_layout.standard_wnids()
    count = int(os.environ.get("IMAGENET_FILES", ImageNetDataModule.num_train))
    per_class, extra = divmod(count, len(wnids))
    content = make.jpeg(1, size=(16, 12))
    for number, wnid in enumerate(wnids):
        folder = tmp_path / "train" / wnid
        folder.mkdir(parents=True)
        first = folder / f"{wnid}_0.JPEG"
        first.write_bytes(content)
        for index in range(1, per_class + (number < extra)):
            os.link(first, folder / f"{wnid}_{index}.JPEG")
    before, handles = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, len(os.listdir("/proc/self/fd"))
    clock = time.perf_counter()
    files = imagenet_layout.read_split(tmp_path, "train", wnids)
    listed, clock = time.perf_counter() - clock, time.perf_counter()
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    files.check("quick")
    checked = time.perf_counter() - clock
    kept = (files.names.nbytes + 8 * 3 * len(files)) / 2**20
    print(f"{len(files):,} files: listed in {listed:.1f} s, checked in {checked:.1f} s; {kept:.0f} MiB kept, "
          f"peak {peak:.0f} MiB more; {len(os.listdir('/proc/self/fd')) - handles} more file handles")  # fmt: skip
    assert len(files) == count and len(set(files.labels.tolist())) == 1000
    assert len(os.listdir("/proc/self/fd")) == handles
    assert peak < 400
    assert len(list_folder(tmp_path / "train" / next(iter(wnids)), [".jpeg"])) == per_class + (extra > 0)

"""Where ImageNet's images are and what class each is of: folders, archives, and validation images in one folder."""

from __future__ import annotations

import os
import re
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

from timm.data import ImageNetInfo
from torchvision.datasets import ImageNet
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.datasets.imagenet import ARCHIVE_META

from bench.errors import UserError, in_one_line
from bench.files import lock
from datamodules.imagefiles import ImageFiles, list_folder

WNID = re.compile(r"n\d{8}")
GROUND_TRUTH = "ILSVRC2012_validation_ground_truth.txt"
# Lists of the validation images' classes that are in use: the development kit's, TensorFlow's, Kaggle's, and any other
# text file of the two columns image and wnid.
MAPPINGS = (GROUND_TRUTH, f"data/{GROUND_TRUTH}", f"ILSVRC2012_devkit_t12/data/{GROUND_TRUTH}",
            "imagenet_2012_validation_synset_labels.txt", "LOC_val_solution.csv", "val_map.txt", "val.txt")  # fmt: skip


def standard_wnids() -> dict[str, int]:
    """The 1,000 synsets of ILSVRC2012 and their class numbers, which are their sorted order."""
    return {wnid: number for number, wnid in enumerate(ImageNetInfo("imagenet-1k").label_names())}


def read_split(root: Path, name: str, wnids: dict[str, int]) -> ImageFiles:
    """Lists one split. Extracts its archive first if the folder is missing.

    Args:
        root: folder of the data set.
        name: ``train`` or ``val``.
        wnids: class number of each synset.

    Returns:
        The files, training images by class and name, validation images by name.

    Raises:
        UserError: nothing is there, a folder is not of the 1,000 classes or cannot be read, or validation images have
            no classes.
    """
    folder = root / name
    if not folder.is_dir():
        extract(root, name)
    try:
        return _read_folder(root, name, wnids)
    except OSError as error:
        raise UserError(f"{error.filename or folder}: cannot be read ({error.strerror or error})") from error


def _read_folder(root: Path, name: str, wnids: dict[str, int]) -> ImageFiles:
    folder = root / name
    with os.scandir(folder) as entries:
        found = sorted(entry.name for entry in entries if entry.is_dir())
    unknown = [entry for entry in found if entry not in wnids]
    if unknown:
        raise UserError(
            f"{folder}: {len(unknown)} of {len(found)} folders are not one of ImageNet's 1,000 classes, such as "
            f"{unknown[0]}/; they are named by wnid, from {next(iter(wnids))} to {list(wnids)[-1]}"
        )
    flat = list_folder(folder, IMG_EXTENSIONS)
    if found and flat:
        raise UserError(
            f"{folder}: holds {len(found)} class folders and {len(flat)} images beside them; keep one of the two"
        )
    if not flat:
        listed = ((wnid, list_folder(folder / wnid, IMG_EXTENSIONS)) for wnid in found)
        if name == "train":
            return ImageFiles.build(root, ((f"{name}/{wnid}", wnids[wnid], images) for wnid, images in listed))
        # In the order of a flat folder: a test set is the same, and has the same fingerprint, however it is laid out.
        by_name = sorted((image, wnid) for wnid, images in listed for image in images)
        return ImageFiles.build(root, ((f"{name}/{wnid}", wnids[wnid], [image]) for image, wnid in by_name))
    if name == "train":
        raise UserError(
            f"{folder}: holds {len(flat)} images in no class folder; training images are in {folder}/<wnid>/"
        )
    classes = _flat_classes(root, flat, wnids)
    return ImageFiles.build(root, ((name, label, [image]) for image, label in zip(flat, classes, strict=True)))


def extract(root: Path, name: str) -> None:
    """Unpacks ``ILSVRC2012_img_<name>.tar`` by torchvision, which checks MD5 sums, and moves the folder into place.

    Raises:
        UserError: it is not there, damaged, or the disk is full; no half-extracted folder stays behind.
    """
    archives = {kind: root / ARCHIVE_META[kind][0] for kind in (name, "devkit")}
    there = [path.name for path in archives.values() if path.is_file()]
    if archives[name].name not in there:
        content = ", ".join(sorted(p.name for p in root.iterdir())[:5]) if root.is_dir() else ""
        raise UserError(
            f"imagenet: there is no {root / name} and no {archives[name].name} (found in {root}: "
            f"{content or 'nothing'}); give the folder of train/ and val/ with --data.root, or as "
            "$BENCH_DATA_DIR/imagenet"
        )
    if len(there) < len(archives):
        raise UserError(
            f"imagenet: {root} has {there[0]} and needs {archives['devkit'].name} beside it, for the classes"
        )
    with lock(root / f".extract-{name}.lock", wait=True):
        if (root / name).is_dir():  # another process has done it while this one waited
            return
        work = root / f".extract-{name}"
        shutil.rmtree(work, ignore_errors=True)
        print(f"imagenet: extracting {archives[name]} once; this takes a while", flush=True)
        try:
            work.mkdir()
            for path in archives.values():
                (work / path.name).symlink_to(path.resolve())
            ImageNet(work, name)
            os.replace(work / name, root / name)
        except (OSError, RuntimeError, EOFError, KeyError, ValueError, tarfile.TarError) as error:
            reason = in_one_line(error)
            raise UserError(f"imagenet: {archives[name]} could not be extracted ({reason})") from error
        finally:
            shutil.rmtree(work, ignore_errors=True)


def _flat_classes(root: Path, images: list[str], wnids: dict[str, int]) -> list[int]:
    candidates = [folder / file for file in MAPPINGS for folder in (root, root / "val")]
    mapping = next((path for path in candidates if path.is_file()), None)
    if mapping is None:
        raise UserError(
            f"{root / 'val'}: {len(images)} images in no class folder, and no list of their classes beside them; put "
            f"{GROUND_TRUTH} and meta.mat of the development kit, or a text file val.txt of lines 'image wnid', "
            f"in {root}"
        )
    try:
        lines = [line for line in mapping.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"{mapping}: cannot be read ({error})") from error
    if mapping.name == GROUND_TRUTH:
        by_number = _kit_numbers(mapping)
        try:
            ordered = [by_number[int(line)] for line in lines]
        except (ValueError, KeyError) as error:
            raise UserError(f"{mapping}: {error} is not a class number of the development kit") from error
    else:
        listed = list(_columns(mapping, lines))
        by_image = {Path(image).stem: wnid for image, wnid in listed if image}
        if by_image:
            missing = [image for image in images if Path(image).stem not in by_image]
            if missing:
                raise UserError(
                    f"{mapping}: has no class for {len(missing)} of {len(images)} images, such as {missing[0]}"
                )
            ordered = [by_image[Path(image).stem] for image in images]
        else:
            ordered = [wnid for _, wnid in listed]
    if len(ordered) != len(images):
        raise UserError(f"{mapping}: has {len(ordered):,} lines, and {root / 'val'} has {len(images):,} images")
    unknown = [wnid for wnid in ordered if wnid not in wnids]
    if unknown:
        raise UserError(f"{mapping}: {unknown[0]} is not one of ImageNet's 1,000 classes")
    return [wnids[wnid] for wnid in ordered]


def _columns(mapping: Path, lines: list[str]) -> Iterator[tuple[str, str]]:
    """Yields image and wnid of each line; the image is empty if the lines are in the images' order."""
    for number, line in enumerate(lines, 1):
        words = re.split(r"[\s,]+", line.strip())
        if words[:1] == ["ImageId"]:  # Kaggle's heading
            continue
        if len(words) == 1 and WNID.fullmatch(words[0]):
            yield "", words[0]
        elif len(words) >= 2 and WNID.fullmatch(words[1]):
            yield words[0], words[1]
        else:
            raise UserError(f"{mapping}, line {number}: {line[:60]!r} is not a wnid, nor an image and its wnid")


def _kit_numbers(mapping: Path) -> dict[int, str]:
    """Wnids by the development kit's own numbers, which are not the sorted order."""
    import scipy.io

    path = mapping.with_name("meta.mat")
    if not path.is_file():
        raise UserError(
            f"{mapping}: holds the development kit's class numbers, and {path}, which explains them, is absent"
        )
    try:
        synsets = scipy.io.loadmat(path, squeeze_me=True)["synsets"]
        return {int(entry[0]): str(entry[1]) for entry in synsets if int(entry[4]) == 0}
    except (OSError, ValueError, KeyError, IndexError, TypeError, NotImplementedError) as error:
        raise UserError(f"{path}: is damaged ({' '.join(str(error).split())[:100]})") from error

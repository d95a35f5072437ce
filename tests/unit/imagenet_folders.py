"""Small ImageNet folders in every layout, of generated images."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image

WNIDS = ("n01440764", "n02105855", "n15075141")  # numbers 0, 230 and 999
# Numbers of the development kit are in another order than the classes.
KIT = {7: "n15075141", 8: "n01440764", 9: "n02105855"}


def jpeg(number: int, mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> bytes:
    """A JPEG of noise; the same number gives the same bytes."""
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, "JPEG")
    return buffer.getvalue()


def train_folders(root: Path, images: int = 4) -> Path:
    for label, wnid in enumerate(WNIDS):
        folder = root / "train" / wnid
        folder.mkdir(parents=True)
        for number in range(images):
            (folder / f"{wnid}_{number}.JPEG").write_bytes(jpeg(100 * label + number))
    return root


def val_images(images: int = 6) -> list[tuple[str, str, bytes]]:
    """Name, wnid and content; the classes do not come in order."""
    return [(f"ILSVRC2012_val_{n + 1:08}.JPEG", WNIDS[(2 * n + 1) % 3], jpeg(1000 + n)) for n in range(images)]


def val_folders(root: Path) -> Path:
    for name, wnid, content in val_images():
        (root / "val" / wnid).mkdir(parents=True, exist_ok=True)
        (root / "val" / wnid / name).write_bytes(content)
    return root


def val_flat(root: Path) -> Path:
    (root / "val").mkdir(parents=True)
    for name, _, content in val_images():
        (root / "val" / name).write_bytes(content)
    return root


def kit(folder: Path) -> None:
    """``meta.mat`` and the ground truth of the development kit."""
    folder.mkdir(parents=True, exist_ok=True)
    kind = [("ILSVRC2012_ID", object), ("WNID", object), ("words", object), ("gloss", object), ("num_children", object)]
    rows = [(number, wnid, f"name of {wnid}, other name", "", 0) for number, wnid in KIT.items()]
    rows.append((1001, "n00001740", "an inner node", "", 3))
    scipy.io.savemat(folder / "meta.mat", {"synsets": np.array(rows, dtype=kind)})
    numbers = {wnid: number for number, wnid in KIT.items()}
    lines = [f"{numbers[wnid]}\n" for _, wnid, _ in val_images()]
    (folder / "ILSVRC2012_validation_ground_truth.txt").write_text("".join(lines))


def archives(root: Path, scratch: Path) -> dict[str, tuple[str, str]]:
    """The three archives, and torchvision's table of their names and MD5 sums."""
    root.mkdir(parents=True, exist_ok=True)
    train_folders(scratch), val_flat(scratch), kit(scratch / "ILSVRC2012_devkit_t12/data")
    with tarfile.open(root / "ILSVRC2012_img_train.tar", "w") as outer:
        for wnid in WNIDS:
            with tarfile.open(scratch / f"{wnid}.tar", "w") as inner:
                for image in sorted((scratch / "train" / wnid).iterdir()):
                    inner.add(image, image.name)
            outer.add(scratch / f"{wnid}.tar", f"{wnid}.tar")
    with tarfile.open(root / "ILSVRC2012_img_val.tar", "w") as tar:
        for image in sorted((scratch / "val").iterdir()):
            tar.add(image, image.name)
    with tarfile.open(root / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as tar:
        tar.add(scratch / "ILSVRC2012_devkit_t12", "ILSVRC2012_devkit_t12")
    names = {"train": "img_train.tar", "val": "img_val.tar", "devkit": "devkit_t12.tar.gz"}
    return {
        kind: (f"ILSVRC2012_{name}", hashlib.md5((root / f"ILSVRC2012_{name}").read_bytes()).hexdigest())
        for kind, name in names.items()
    }

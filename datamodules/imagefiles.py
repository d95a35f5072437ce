"""Image files of one split: a compact list, decoding that names what cannot be read, and a check before training."""

from __future__ import annotations

import hashlib
import os
import struct
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from bench.errors import UserError, in_one_line

# What PIL raises on damaged files of the formats that ImageNet and its copies have.
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, struct.error, Image.DecompressionBombError)
# How a whole file begins, and what its last bytes hold; some writers put a few bytes after the end mark.
MARKS = {b"\xff\xd8\xff": b"\xff\xd9", b"\x89PNG": b"IEND"}
TAIL = 64
NAMED = 3
# So many unreadable training images are replaced by one loader process; more are no accident.
REPLACED = 10
Check = Literal["quick", "full", "none"]


class UnreadableError(UserError):
    """An image file cannot be decoded. A loader process hands on the traceback as text; its last line is kept."""

    def __init__(self, message: str) -> None:
        super().__init__(message.strip().splitlines()[-1].rpartition("UnreadableError: ")[2])


def decode(path: Path) -> Image.Image:
    """Reads one image as RGB; grey, palette and CMYK ones are converted, whatever the file's ending says.

    Raises:
        UnreadableError: empty, truncated, not an image, or of more than 8 bits a channel (PIL's modes I, I;16 and F),
            which PIL cuts off at 255 instead of scaling them.
    """
    try:
        with warnings.catch_warnings():
            # Some ImageNet files have broken EXIF data, which is not looked at.
            warnings.simplefilter("ignore", UserWarning)
            with Image.open(path) as image:
                if image.mode.startswith(("I", "F")):
                    raise ValueError(f"mode {image.mode}: more than 8 bits a channel; scale it to 8 bits")
                return image.convert("RGB")
    except DAMAGE as error:
        size = f"{path.stat().st_size} bytes, " if path.exists() else ""
        reason = in_one_line(error, 100)
        raise UnreadableError(f"{path}: cannot be read as an image ({size}{reason})") from error


class ImageFiles:
    """Paths and labels of one split in three arrays: a million path objects would be copied into every loader process.

    Args:
        root: folder that the names are relative to.
        names: all names, one after the other, as UTF-8 bytes.
        ends: where each name ends in ``names``, int64 ``[N]``.
        classes: class numbers, int64 ``[N]``.
        index: which of the N files belong to this split, int64; default all.
    """

    def __init__(
        self, root: Path, names: NDArray[np.uint8], ends: Tensor, classes: Tensor, index: Tensor | None = None
    ) -> None:
        self.root, self.names, self.ends, self.classes = root, names, ends, classes
        self.index = torch.arange(len(ends)) if index is None else index
        self.replaced: set[str] = set()
        # Shared with loader processes and with parts of this split: how often an image was replaced.
        self.replacements = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]  # torch does not type it

    @classmethod
    def build(cls, root: Path, parts: Iterable[tuple[str, int, Sequence[str]]]) -> Self:
        """From (folder relative to ``root``, class number, names in it) triples, in order."""
        blobs, lengths, classes = [], [], []
        for folder, label, names in parts:
            encoded = [os.fsencode(f"{folder}/{name}") for name in names]
            blobs.append(b"".join(encoded))
            lengths.append(np.fromiter(map(len, encoded), np.int64, len(encoded)))
            classes.append(np.full(len(encoded), label, np.int64))
        ends = np.cumsum(np.concatenate([np.zeros(0, np.int64), *lengths]))
        labels = np.concatenate([np.zeros(0, np.int64), *classes])
        return cls(root, np.frombuffer(b"".join(blobs), np.uint8), torch.from_numpy(ends), torch.from_numpy(labels))

    def __len__(self) -> int:
        return len(self.index)

    @property
    def labels(self) -> Tensor:
        """Class numbers, int64 ``[N]``."""
        return self.classes[self.index]

    def path(self, row: int) -> Path:
        """Where image ``row`` of this split is."""
        place = int(self.index[row])
        start = int(self.ends[place - 1]) if place else 0
        return self.root / os.fsdecode(self.names[start : int(self.ends[place])].tobytes())

    def take(self, rows: Tensor) -> Self:
        """The images at ``rows``; the names are shared."""
        part = type(self)(self.root, self.names, self.ends, self.classes, self.index[rows])
        part.replacements = self.replacements
        return part

    def fetch(self, rows: Tensor, training: bool) -> tuple[list[Image.Image], Tensor]:
        """Decoded RGB images and labels ``[B]``.

        A training goes on if a few images have become unreadable: the first readable image of the batch replaces each,
        and the file is named on stderr. An evaluation refuses them.

        Raises:
            UnreadableError: in an evaluation, if no image of a training batch can be read, or if too many were
                replaced already.
        """
        images: list[Image.Image | None] = []
        chosen = rows.tolist()
        problem: UnreadableError | None = None
        for row in chosen:
            try:
                images.append(decode(self.path(row)))
            except UnreadableError as error:
                if not training:
                    raise
                problem = error
                images.append(None)
                self._tell(error)
        readable = [(image, row) for image, row in zip(images, chosen, strict=True) if image is not None]
        if not readable:
            assert problem is not None
            raise problem
        kept = [(image, row) if image is not None else readable[0] for image, row in zip(images, chosen, strict=True)]
        return [image for image, _ in kept], self.labels_at([row for _, row in kept])

    def labels_at(self, rows: list[int]) -> Tensor:
        """Labels of some rows, int64 ``[B]``."""
        return self.classes[self.index[torch.tensor(rows)]]

    def _tell(self, error: UnreadableError) -> None:
        self.replacements += 1
        if str(error) in self.replaced:
            return
        if len(self.replaced) == REPLACED:
            raise UnreadableError(f"{error}; {REPLACED} others could not be read either; check the disk") from error
        self.replaced.add(str(error))
        count = f"{len(self.replaced)} such image(s) in this process"
        print(f"warning: {error}; another image of its batch stands in for it ({count})", file=sys.stderr)

    def fingerprint(self) -> str:
        """SHA-256 of the files' bytes and the labels, in order."""
        digest = hashlib.sha256()
        for row in range(len(self)):
            digest.update(hashlib.sha256(self.path(row).read_bytes()).digest())
        digest.update(self.labels.numpy().tobytes())
        return digest.hexdigest()

    def check(self, how: Check) -> Counter[str]:
        """Finds damaged files before hours are spent.

        Args:
            how: ``quick`` looks at the first and last bytes of each file and decodes those that look odd; ``full``
                decodes every file; ``none`` does nothing.

        Returns:
            For ``full``, how many images there are of each PIL mode.

        Raises:
            UserError: how many files cannot be read, and the names of the first.
        """
        if how == "none":
            return Counter()
        examine: Callable[[Path], str] = _mode if how == "full" else _quick
        bad: list[str] = []
        modes: Counter[str] = Counter()

        def examine_part(rows: range) -> None:
            for row in rows:
                try:
                    modes[examine(self.path(row))] += 1
                except UnreadableError as error:
                    bad.append(str(error))

        parts = [range(start, min(start + 1000, len(self))) for start in range(0, len(self), 1000)]
        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
            for _ in pool.map(examine_part, parts):
                pass
        if bad:
            more = f"; and {len(bad) - NAMED} more" if len(bad) > NAMED else ""
            raise UserError(
                f"{len(bad)} of {len(self):,} images cannot be used: {'; '.join(sorted(bad)[:NAMED])}{more}; "
                "put whole files in their place"
            )
        return modes


def _mode(path: Path) -> str:
    decode(path)
    with Image.open(path) as image:
        return str(image.mode)


def _quick(path: Path) -> str:
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            size = os.fstat(descriptor).st_size
            head, tail = os.pread(descriptor, 4, 0), os.pread(descriptor, TAIL, max(0, size - TAIL))
        finally:
            os.close(descriptor)
    except OSError as error:
        raise UnreadableError(f"{path}: cannot be read as an image ({error.strerror})") from error
    if not any(head.startswith(start) and end in tail for start, end in MARKS.items()):
        decode(path)
    return ""


def list_folder(folder: Path, endings: Sequence[str]) -> list[str]:
    """Names of the image files in one folder, sorted."""
    with os.scandir(folder) as entries:
        return sorted(entry.name for entry in entries if entry.name.lower().endswith(tuple(endings)))

"""Loads timm's published weights as a source net, with the header of a ``relu`` net."""

from __future__ import annotations

import hashlib
import math

import safetensors.torch
import timm

from bench.errors import UserError, in_one_line
from bench.nets.architectures import TIMM_PREFIX
from bench.records.header import HEADER_VERSION, Header, RecipeHeader
from bench.records.record import Imported, Options
from bench.records.spec import RunSpec
from bench.registry.datasets import DATA
from bench.registry.methods import METHODS
from bench.registry.nets import ARCHITECTURES
from bench.run.checkpoints import Weights
from bench.run.provenance import code_state
from datamodules.base import ImageDataModule

NAME = "timm"
SOURCE = "relu"


def is_asked(ckpt: str | None) -> bool:
    """Whether ``--ckpt`` names weights of timm: ``timm``, or ``timm/<name>.<tag>`` for others than its default."""
    return ckpt == NAME or (ckpt or "").startswith(TIMM_PREFIX)


def timm_weights(spec: RunSpec, kind: str) -> tuple[Weights, RunSpec]:
    """Downloads (or takes from the cache) timm's weights of the run's net.

    The net is left as it was trained: max-pooling stays, as average pooling in its place would need a training.

    Args:
        spec: of a run whose ``ckpt`` asks for them.
        kind: method of the source net that is wanted.

    Returns:
        The weights, and the run with the options that they ask for: if it does not say how, evaluation images are
        prepared as timm has it for the weights at the training size (``input_size``, ``crop_pct`` and
        ``interpolation`` of its ``default_cfg``, not ``test_input_size`` and ``test_crop_pct``).

    Raises:
        UserError: timm has none for this net, for these classes, in this normalisation or for images of this size, or
            they cannot be fetched.
    """
    asked = f"--ckpt {spec.local.ckpt}"
    if kind != SOURCE:
        raise UserError(f"{asked}: {spec.method} converts a {kind} net, and timm has {SOURCE} nets only")
    if spec.arch in ARCHITECTURES:
        raise UserError(f"{asked}: {spec.arch} is not a net of timm; give --arch timm/<name>")
    name, _, tag = (spec.local.ckpt or "").removeprefix(NAME).removeprefix("/").partition(".")
    if name not in ("", spec.arch):
        raise UserError(f"{asked}: is not of the net that --arch names, {spec.arch}")
    full = f"{spec.arch}.{tag}" if tag else spec.arch
    try:
        pretrained = timm.get_pretrained_cfg(full)
    except RuntimeError as error:
        raise UserError(f"{asked}: {error}") from error
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{spec.arch}.*")]
    if pretrained is None or not tags:
        raise UserError(f"{asked}: timm has no weights for {full}; it has {', '.join(tags) or 'none for this net'}")
    data: type[ImageDataModule] = DATA[spec.data].load()
    if pretrained.num_classes != data.num_classes:
        raise UserError(f"{asked}: is for {pretrained.num_classes} classes, and {spec.data} has {data.num_classes}")
    for what in ("mean", "std"):
        ours, theirs = getattr(data, what), getattr(pretrained, what)
        if ours != theirs:
            raise UserError(f"{asked}: was trained on images of another {what} ({theirs}) than {spec.data}'s {ours}")
    size = data.input_shape[-1]
    if pretrained.input_size[-2:] != data.input_shape[-2:]:
        theirs = "x".join(map(str, pretrained.input_size[-2:]))
        raise UserError(f"{asked}: is for images of {theirs} pixels, and {spec.data} has {size}x{size}")
    wanted: Options = {
        "eval_resize": math.floor(size / pretrained.crop_pct),
        "eval_interpolation": pretrained.interpolation,
    }
    missing = {key: value for key, value in wanted.items() if spec.data_options.get(key, value) is None}
    spec = spec.model_copy(update={"data_options": spec.data_options | missing})
    try:
        net = timm.create_model(f"{spec.arch}.{pretrained.tag}", pretrained=True, num_classes=data.num_classes)
    except Exception as error:  # hub, network, cache and file errors share no base class
        raise UserError(
            f"{asked}: could not be fetched ({type(error).__name__}: {in_one_line(error, 160)}); without a network, "
            "copy the Hugging Face cache of a machine that has one and set $HF_HOME"
        ) from error
    options: Options = {"max_pool": "keep"}
    # Nobody held any of our images out.
    images: Options = {"name": spec.data, **{key: spec.data_options[key] for key in ("subset", "eval_split")}}
    state = METHODS[SOURCE].load()(net, **options).state_dict()
    sha256 = hashlib.sha256(safetensors.torch.save(state)).hexdigest()
    config: Options = {
        "method": SOURCE,
        "arch": spec.arch,
        "data": images | {"val_split": 0},
        "model": options,
        "trainer": {"max_epochs": 0},
        "imported": sha256,
    }
    header = Header(
        version=HEADER_VERSION,
        method=SOURCE,
        arch=spec.arch,
        data=spec.data,
        seed=spec.seed,
        recipe=RecipeHeader(name=f"timm.{pretrained.tag}", overrides=[], config=config),
        code=code_state(),
        epochs=0,
        imported=Imported(file=f"{TIMM_PREFIX}{spec.arch}.{pretrained.tag}", sha256=sha256, repository="timm"),
    )
    return Weights(state, header), spec

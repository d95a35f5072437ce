"""timm's published weights as a source net, as if a training of ``relu`` had left them."""

from __future__ import annotations

import math
from typing import Any

import timm

from bench.cli.resolve import Settings
from bench.errors import UserError
from bench.nets.architectures import TIMM_PREFIX
from bench.registry.datasets import DATA
from bench.registry.methods import METHODS
from bench.registry.nets import ARCHITECTURES
from bench.run.build import HEADER_VERSION
from bench.run.checkpoints import Weights
from bench.run.provenance import code_state

NAME = "timm"
SOURCE = "relu"


def is_asked(ckpt: str | None) -> bool:
    """Whether ``--ckpt`` names weights of timm: ``timm``, or ``timm/<name>.<tag>`` for others than its default."""
    return ckpt == NAME or (ckpt or "").startswith(TIMM_PREFIX)


def timm_weights(settings: Settings, kind: str) -> Weights:
    """Downloads (or takes from the cache) timm's weights of the run's net.

    The net is left as it was trained: max-pooling stays, as average pooling in its place would need a training.

    Args:
        settings: of a run whose ``ckpt`` asks for them.
        kind: method of the source net that is wanted.

    Evaluation images are prepared as timm has it for the weights at the training size (``input_size``, ``crop_pct`` and
    ``interpolation`` of its ``default_cfg``, not ``test_input_size`` and ``test_crop_pct``), where ``settings`` does
    not say how; what was taken is written into ``settings``.

    Raises:
        UserError: timm has none for this net, for these classes, in this normalisation or for images of this size, or
            they cannot be fetched.
    """
    asked = f"--ckpt {settings.ckpt}"
    if kind != SOURCE:
        raise UserError(f"{asked}: {settings.method} converts a {kind} net, and timm has {SOURCE} nets only")
    if settings.arch in ARCHITECTURES:
        raise UserError(f"{asked}: {settings.arch} is not a net of timm; give --arch timm/<name>")
    name, _, tag = (settings.ckpt or "").removeprefix(NAME).removeprefix("/").partition(".")
    if name not in ("", settings.arch):
        raise UserError(f"{asked}: is not of the net that --arch names, {settings.arch}")
    full = f"{settings.arch}.{tag}" if tag else settings.arch
    try:
        pretrained = timm.get_pretrained_cfg(full)
    except RuntimeError as error:
        raise UserError(f"{asked}: {error}") from error
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{settings.arch}.*")]
    if pretrained is None or not tags:
        raise UserError(f"{asked}: timm has no weights for {full}; it has {', '.join(tags) or 'none for this net'}")
    data: Any = DATA[settings.data].load()
    if pretrained.num_classes != data.num_classes:
        raise UserError(f"{asked}: is for {pretrained.num_classes} classes, and {settings.data} has {data.num_classes}")
    for what in ("mean", "std"):
        ours, theirs = getattr(data, what, None), getattr(pretrained, what)
        if ours != theirs:
            raise UserError(
                f"{asked}: was trained on images of another {what} ({theirs}) than {settings.data}'s {ours}"
            )
    size = data.input_shape[-1]
    if pretrained.input_size[-2:] != data.input_shape[-2:]:
        theirs = "x".join(map(str, pretrained.input_size[-2:]))
        raise UserError(f"{asked}: is for images of {theirs} pixels, and {settings.data} has {size}x{size}")
    for option, value in (
        ("eval_resize", math.floor(size / pretrained.crop_pct)),
        ("eval_interpolation", pretrained.interpolation),
    ):
        if settings.data_args.get(option, value) is None:
            settings.data_args[option] = value
    try:
        net = timm.create_model(f"{settings.arch}.{pretrained.tag}", pretrained=True, num_classes=data.num_classes)
    except Exception as error:  # hub, network, cache and file errors share no base class
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"{asked}: could not be fetched ({type(error).__name__}: {reason}); where there is no network, copy the "
            "Hugging Face cache of a machine that has one and set $HF_HOME"
        ) from error
    options = {"max_pool": "keep"}
    science = settings.science()
    config = {
        "method": SOURCE,
        "arch": settings.arch,
        "data": {
            "name": settings.data,
            **{key: science["data"][key] for key in ("subset", "eval_split")},
            "val_split": 0,  # nobody held any of our images out
        },
        "model": options,
        "trainer": {"max_epochs": 0},
    }
    header = {
        "version": HEADER_VERSION,
        "method": SOURCE,
        "arch": settings.arch,
        "data": settings.data,
        "seed": settings.seed,
        "recipe": {"name": f"timm.{pretrained.tag}", "overrides": [], "config": config},
        "code": code_state().model_dump(),
        "epochs": 0,
    }
    return Weights(METHODS[SOURCE].load()(net, **options).state_dict(), header)

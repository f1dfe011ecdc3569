"""Checks our conversion of weights against timm, for every CoAtNet it has, and writes CI's fixtures.

Run it in an environment with the pins of `requirements/bench_model.txt`, from the repository's root:

    python -m tests.benchmarks.timm_fixtures [--only NAME ...]

Each model is compared at its own size, both ways: timm's weights in ours, and back into timm by a
strict load. CI has no timm: it gets, for each, timm's logits of a small model with the same choices,
and a digest of the full one's names and shapes. 10 GB of memory and some minutes.
"""

import argparse
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models.maxxvit import MaxxVit, MaxxVitCfg, model_cfgs
from torch import Tensor

from coatnet.interop import from_timm, timm_config, to_timm
from coatnet.timm_variants import TIMM_VARIANTS
from coatnet.timm_weights import model_from_timm
from tests.known_weights import count_eps, digest, known_images, known_state

FOLDER = Path("tests/unit/coatnet/timm_fixtures")
_TOLERANCE = 1e-5
_SMALL_SIZE_PX = 64
_SMALL_CLASSES = 10
_SMALL_WIDTHS = (16, 32, 64, 96)
_SMALL_STEM = (4, 8)


def main() -> None:
    """Check and write the models asked for."""
    parser = argparse.ArgumentParser(prog="timm_fixtures")
    parser.add_argument("--only", nargs="+", default=list(TIMM_VARIANTS))
    registered = timm.list_models("coatnet_*")
    assert sorted(TIMM_VARIANTS) == sorted(registered), set(TIMM_VARIANTS) ^ set(registered)
    for name in parser.parse_args().only:
        full = check_full_size(name)
        difference = full.pop("difference")
        fixture = {"timm": timm.__version__, "full": full, **small_fixture(name)}
        text = json.dumps(fixture, separators=(",", ":")).replace('],"', '],\n"')
        (FOLDER / f"{name}.json").write_text(text + "\n")
        print(f"{name}: logits differ by {difference:.1e} at most", flush=True)


@torch.no_grad()
def check_full_size(name: str) -> dict[str, Any]:
    """Compare the model at its own size, and its normalisation; return what CI can hold ours to."""
    config = timm_config(name)
    # Some of its weights have 11821 classes.
    peer = timm.create_model(name, num_classes=config.num_classes).eval()
    peer.load_state_dict(known_state(_shapes(peer.state_dict())))
    images = known_images(1, config.pretrain_image_size_px)
    expected = peer(images)
    ours = from_timm(name, peer.state_dict())
    difference = _check_close(ours(images), expected, name)
    for tensor in peer.state_dict().values():
        tensor.zero_()
    peer.load_state_dict(to_timm(ours), strict=True)
    assert torch.equal(peer(images), expected), f"{name}: not the same weights after both ways"
    for tag in timm.list_pretrained(f"{name}.*") or [name]:
        defaults = timm.get_pretrained_cfg(tag)
        assert (defaults.mean, defaults.std) == (config.mean, config.std), tag
        assert defaults.input_size == (3, config.pretrain_image_size_px, config.pretrain_image_size_px), tag
    return {
        "parameters": sum(parameter.numel() for parameter in peer.parameters()),
        "digest": digest(_shapes(peer.state_dict())),
        "difference": difference,
    }


@torch.no_grad()
def small_fixture(name: str) -> dict[str, Any]:
    """Compare a small model with the same choices; return how to build ours, and timm's logits."""
    cfg: MaxxVitCfg = model_cfgs[name.rpartition("_")[0]]
    is_mixed = name == "coatnet_nano_cc_224"
    depths = (2, 1, 3, 2) if is_mixed else (2, 1, 2, 1)
    small_cfg = replace(
        cfg,
        embed_dim=_SMALL_WIDTHS,
        depths=depths,
        stem_width=_SMALL_STEM[-1] if isinstance(cfg.stem_width, int) else _SMALL_STEM,
        head_hidden_size=_SMALL_WIDTHS[-1] if cfg.head_hidden_size else None,
    )
    peer = MaxxVit(small_cfg, img_size=_SMALL_SIZE_PX, num_classes=_SMALL_CLASSES).eval()
    shapes = _shapes(peer.state_dict())
    state = known_state(shapes)
    peer.load_state_dict(state)
    overrides: dict[str, Any] = {
        "stem_width": _SMALL_STEM[-1],
        "stem_inner_width": None if isinstance(cfg.stem_width, int) else _SMALL_STEM[0],
        "widths": (16, 32, 64, 64, 96, 96) if is_mixed else _SMALL_WIDTHS,
        "depths": (2, 1, 1, 2, 1, 1) if is_mixed else depths,
        "pretrain_image_size_px": _SMALL_SIZE_PX,
        "num_classes": _SMALL_CLASSES,
    }
    images = known_images(2, _SMALL_SIZE_PX)
    expected = peer(images)
    ours = model_from_timm(replace(timm_config(name), **overrides), state)
    _check_close(ours(images), expected, f"small {name}")
    return {"overrides": overrides, "eps": count_eps(peer), "logits": expected.tolist(), "shapes": shapes}


def _shapes(state: Mapping[str, Tensor]) -> dict[str, list[int]]:
    return {name: list(tensor.shape) for name, tensor in state.items()}


def _check_close(found: Tensor, expected: Tensor, name: str) -> float:
    assert expected.std() > 0.1, f"{name}: logits too alike to show anything"
    difference = float((found - expected).abs().max())
    assert difference < _TOLERANCE, f"{name}: logits differ by {difference:.2g}"
    return difference


if __name__ == "__main__":
    main()

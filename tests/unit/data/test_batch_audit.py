"""Equal batches leave equal lines, and nothing of a batch may change unseen."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from data.augment import Augment, AugmentConfig
from data.batch_audit import AuditedAugment
from data.errors import InputError
from data.types import Batch

CPU = torch.device("cpu")
AUGMENT = Augment(AugmentConfig(mixup_alpha=0.8, color_jitter=0.2), num_classes=3, seed=1)


def make_batch() -> Batch:
    generator = torch.Generator().manual_seed(1)
    return Batch(
        images_BHWC=torch.randint(0, 256, (4, 8, 8, 3), generator=generator, dtype=torch.uint8),
        labels_B=torch.tensor([0, 1, 2, 0]),
        weights_B=torch.ones(4),
        positions_B=torch.arange(4),
        keys=("a", "b", "c", ""),
        epoch=1,
        step=2,
    )


def audit(folder: Path, batch: Batch) -> dict[str, Any]:
    """Audit one batch; return the line it left at the end of the file."""
    audited = AuditedAugment(AUGMENT, folder / "a" / "b", name="pretrain", rank=3)
    audited(batch, lane_size=2, device=CPU)
    return json.loads((folder / "a" / "b" / "pretrain-rank3.jsonl").read_text().splitlines()[-1])


def test_a_line_says_which_samples_and_which_pixels(tmp_path: Path) -> None:
    first, again = audit(tmp_path, make_batch()), audit(tmp_path, make_batch())
    assert first == again
    assert (first["rank"], first["epoch"], first["step"], first["keys"]) == (3, 1, 2, ["a", "b", "c", ""])
    assert len((tmp_path / "a" / "b" / "pretrain-rank3.jsonl").read_text().splitlines()) == 2


def test_the_model_gets_what_it_would_get_without_an_audit(tmp_path: Path) -> None:
    batch = make_batch()
    plain = AUGMENT(batch, lane_size=2, device=CPU)
    audited = AuditedAugment(AUGMENT, tmp_path, name="x", rank=0)(batch, lane_size=2, device=CPU)
    assert torch.equal(plain.images_BCHW, audited.images_BCHW)
    assert torch.equal(plain.targets_BK, audited.targets_BK)
    assert torch.equal(plain.weights_B, audited.weights_B)


@pytest.mark.parametrize("field", ["images_BHWC", "labels_B", "weights_B", "positions_B", "epoch"])
def test_a_change_of_any_input_of_the_model_shows(tmp_path: Path, field: str) -> None:
    batch = make_batch()
    changed = getattr(batch, field)
    if isinstance(changed, torch.Tensor):
        changed = changed.clone()
        changed[0] = 1 - changed[0] if field == "weights_B" else changed[0] + 1
    else:
        changed += 1
    other = dataclasses.replace(batch, **{field: changed})
    assert audit(tmp_path, other)["blake2b"] != audit(tmp_path, batch)["blake2b"]


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"audit folder .*file/audit cannot be made"):
        AuditedAugment(AUGMENT, tmp_path / "file" / "audit", name="x", rank=0)

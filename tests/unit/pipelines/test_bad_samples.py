"""What one rank could not decode, all ranks know, and all of them stop."""

from dataclasses import dataclass, field
from pathlib import Path

import pytest

from coatnet.worker import LocalWorker
from data.loader import TooManyBadSamplesError
from infra.folder_store import FolderStore
from pipelines.bad_samples import BadSamples
from tests.tiny_training import spawn_ranks


@dataclass
class Met:
    """What a rank's loader met."""

    bad_samples: dict[str, str] = field(default_factory=dict[str, str])
    lost_samples: set[str] = field(default_factory=set[str])


def report(worker: LocalWorker, options: tuple[int, Path]) -> tuple[dict[str, str], str]:
    """Rank 1 met two, one of which rank 0 met as well; return what the rank knows, and its error."""
    own = {"b.jpg": "truncated"} if worker.rank == 0 else {"b.jpg": "truncated", "a.jpg": "no image"}
    max_allowed, folder = options
    samples = BadSamples(worker, Met(own), None, max_allowed, stage=FolderStore(root=folder))
    try:
        samples.report(7)
    except TooManyBadSamplesError as error:
        return dict(samples.reasons), str(error)
    return dict(samples.reasons), ""


@pytest.mark.parametrize("max_allowed", [1, 2])
def test_ranks_add_up_and_stop_together(tmp_path: Path, max_allowed: int) -> None:
    ranks = spawn_ranks(report, (max_allowed, tmp_path), 2)
    assert [reasons for reasons, _ in ranks] == [{"a.jpg": "no image", "b.jpg": "truncated"}] * 2
    for _, error in ranks:
        expected = "2 samples of all ranks cannot be decoded, runtime.max_bad_samples allows 1"
        assert error.startswith(expected) if max_allowed == 1 else error == ""


def test_evaluations_are_counted_too(tmp_path: Path) -> None:
    """Their bad samples were told to nobody, and a rank that met too many raised alone."""
    samples = BadSamples(LocalWorker(), Met({"a": "broken"}), None, 2, stage=FolderStore(root=tmp_path))
    samples.watch(Met({"b": "broken"}))
    samples.report(1)
    samples.watch(Met({"b": "broken", "c": "broken"}))
    assert samples.is_past_budget()
    with pytest.raises(TooManyBadSamplesError, match="3 samples of all ranks"):
        samples.report(2)
    assert samples.reasons.keys() == set("abc")


def test_later_ones_are_counted_too(tmp_path: Path) -> None:
    own: dict[str, str] = {}
    samples = BadSamples(LocalWorker(), Met(own), None, 0, stage=FolderStore(root=tmp_path))
    samples.report(1)
    assert samples.reasons == {}
    own["c.png"] = "broken"
    with pytest.raises(TooManyBadSamplesError, match=r"among them 'c.png' \(broken\)"):
        samples.report(2)


def test_only_what_was_lost_may_be_mended(tmp_path: Path) -> None:
    """A shard that is restored: the run could only go on with a higher limit. An image never mends."""
    stage = FolderStore(root=tmp_path)
    lost = Met({"a": "gone", "b": "gone", "c": "broken"}, {"a", "b"})
    with pytest.raises(TooManyBadSamplesError):
        BadSamples(LocalWorker(), lost, None, 1, stage=stage).report(3)
    mended = BadSamples(LocalWorker(), Met(), None, 1, stage=stage)
    mended.report(3)
    assert mended.reasons == {"c": "broken"}
    for met in (Met({"d": "broken", "e": "broken"}), Met()):
        with pytest.raises(TooManyBadSamplesError, match="3 samples of all ranks"):
            BadSamples(LocalWorker(), met, None, 2, stage=stage).report(3)


def test_a_resumed_run_goes_on_counting(tmp_path: Path) -> None:
    """The count began again at 0, so that a run which was stopped often never reached its limit."""
    stage = FolderStore(root=tmp_path)
    BadSamples(LocalWorker(), Met({"a.png": "broken"}), None, 1, stage=stage).report(3)
    resumed = BadSamples(LocalWorker(), Met({"b.png": "broken"}), None, 1, stage=stage)
    with pytest.raises(TooManyBadSamplesError, match="2 samples of all ranks"):
        resumed.report(6)
    assert resumed.reasons == {"a.png": "broken", "b.png": "broken"}

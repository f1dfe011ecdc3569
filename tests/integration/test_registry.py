"""Versions, aliases, the ledger and serving, against a real MLflow server whose artifacts lie in S3."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from PIL import Image

from coatnet.config import ModelConfig
from coatnet.interop import load_model, save_model
from coatnet.model import CoAtNet
from data.decode import DecodeConfig, decode_eval
from data.errors import InputError
from data.normalize import normalize
from infra.ledger import Intent, Ledger
from infra.registry import CHALLENGER, Registry, VersionInfo
from pipelines.evaluation import EvalReport, build_report
from pipelines.promotion import Decision, GatePolicy, decide_promotion
from tests.integration.conftest import promotion

pytestmark = [
    pytest.mark.integration,
    # MLflow's own module warns about its own type hints when it is imported.
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]


def intent_of(decision: Decision, version: VersionInfo, champion: VersionInfo | None) -> Intent:
    return Intent(
        model=version.name,
        version=version.version,
        from_version=champion.version if champion else None,
        verdict=decision.verdict,
        first_line=decision.first_line,
        description=decision.to_markdown(),
        delta=decision.delta_label,
        snapshot_ids=(decision.snapshot_id,),
        code_version="0123abc",
        actor="job-1",
        gates=decision.to_dict(),
    )


def eval_report(num_wrong: int, *, nan: bool = False) -> EvalReport:
    labels_N = np.arange(1000) % 2
    probabilities_NK = np.full((1000, 2), num_wrong / 1000)
    right_N = np.arange(1000) >= num_wrong
    probabilities_NK[np.arange(1000), np.where(right_N, labels_N, 1 - labels_N)] = 1 - num_wrong / 1000
    if nan:
        probabilities_NK[3] = np.nan
    return build_report(
        snapshot_id="1-abc",
        split="eval",
        classes=("cat", "dog"),
        keys=[f"{index:04d}" for index in range(1000)],
        labels_N=labels_N,
        probabilities_NK=probabilities_NK,
        latency_ms_per_image=1.0,
    )


def test_registering_twice_makes_one_version(
    registry: Registry, register: Callable[..., VersionInfo], tmp_path: Path
) -> None:
    first, again, other = register("f1"), register("f1"), register("f2")
    assert (first.version, again.version, other.version) == ("1", "1", "2")
    assert first.run_id
    assert first.tags["data.snapshot"] == "1-abc"
    assert registry.get_version(first.name, CHALLENGER).version == "2"
    target = registry.download_version(first.name, "1", tmp_path / "one")
    assert (target / "weights.txt").read_text() == "f1"
    assert not list(tmp_path.glob(".one-*"))
    with pytest.raises(InputError, match="exists already"):
        registry.download_version(first.name, "1", target)
    with pytest.raises(InputError, match=r"no version or alias 'champion': there are versions 1, 2"):
        registry.get_version(first.name, "champion")
    with pytest.raises(InputError, match="no version or alias '1': it has no version yet"):
        registry.get_version("no-such-model", "1")


def test_only_the_better_challenger_is_promoted(
    registry: Registry, ledger: Ledger, register: Callable[..., VersionInfo]
) -> None:
    """The whole line, gate to alias: worse, equal and NaN stay out, better moves in."""
    policy = GatePolicy(min_top1=0.5)
    reports = {
        "first": eval_report(300),
        "worse": eval_report(350),
        "equal": eval_report(300),
        "nan": eval_report(0, nan=True),
        "better": eval_report(200),
    }
    champion_report = None
    for name, report in reports.items():
        version = register(name)
        champion = registry.champion(version.name)
        decision = decide_promotion(report, champion_report, policy)
        intent = intent_of(decision, version, champion)
        entry = (registry.promote if decision.promoted else registry.reject)(intent, ledger)
        assert decision.promoted == (name in ("first", "better")), decision.first_line
        champion_report = report if decision.promoted else champion_report
        after = registry.get_version(version.name, version.version)
        assert after.description.splitlines()[0] == f"**{decision.first_line}**"
        assert after.tags["gate.verdict"] == decision.verdict
        assert after.tags["parent.version"] == (champion.version if champion else "none")
        now = registry.champion(version.name)
        assert now is not None
        assert now.version == ("5" if name == "better" else "1")
        assert (entry.result, entry.observed_champion) == ("applied", now.version)
    history = ledger.history(version.name)
    assert [entry.intent.verdict for entry in history] == [
        "PROMOTED", "REJECTED", "REJECTED", "REJECTED", "PROMOTED",
    ]  # fmt: skip
    assert after.tags["gate.delta"] == "+10.0 pp"
    current = ledger.current(version.name)
    assert current is not None
    assert current.intent.version == "5"


def test_two_jobs_that_register_the_same_model_make_one_version(
    registry: Registry, register: Callable[..., VersionInfo]
) -> None:
    barrier = threading.Barrier(2)
    create = MlflowClient.create_model_version
    found: list[VersionInfo] = []

    def create_together(client: MlflowClient, *arguments: Any, **options: Any) -> Any:
        barrier.wait(timeout=120)  # a busy machine uploads slowly
        return create(client, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MlflowClient, "create_model_version", create_together)
        threads = [threading.Thread(target=lambda: found.append(register("same"))) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert [version.version for version in found] == ["1", "1"]
    assert len(MlflowClient(registry.tracking_uri).search_model_versions(f"name = '{found[0].name}'")) == 1


def test_only_an_undecided_version_is_the_challenger(
    registry: Registry, ledger: Ledger, register: Callable[..., VersionInfo]
) -> None:
    """A reviewer looks for `challenger` to find what waits or was refused, `champion` for what serves."""
    one, two, three = register("a"), register("b"), register("c")
    registry.promote(promotion(one, None), ledger)
    assert registry.get_version(one.name, CHALLENGER).version == "3", "another version keeps the alias"
    registry.reject(replace(promotion(three, "1"), verdict="REJECTED"), ledger)
    assert registry.get_version(one.name, "3").aliases == (CHALLENGER,)
    # A job that is run again registers its old model again: that takes the alias from nobody.
    assert register("a").aliases == ("champion",)
    register("b")
    assert registry.get_version(one.name, CHALLENGER).version == "2", "b waits for its gate"
    registry.promote(promotion(two, "1"), ledger)
    assert register("c").aliases == ()
    with pytest.raises(InputError, match="no version or alias 'challenger'"):
        registry.get_version(one.name, CHALLENGER)


def test_champion_serves_in_another_process(
    registry: Registry, ledger: Ledger, register: Callable[..., VersionInfo], tmp_path: Path
) -> None:
    """`models:/NAME@champion` loads outside the repository, without pickle, and gives the same numbers."""
    from pipelines.serving import save_pyfunc, weights_in

    config = ModelConfig(
        widths=(8, 16, 32, 32), depths=(1, 1, 1, 1), stem_width=8, head_size=16, num_classes=2,
        pretrain_image_size_px=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4),
    )  # fmt: skip
    save_model(CoAtNet(config), tmp_path / "weights")
    decode = DecodeConfig(image_size_px=32)
    model_dir = save_pyfunc(
        target_dir=tmp_path / "pyfunc",
        weights_dir=tmp_path / "weights",
        decode=decode,
        mean=config.mean,
        std=config.std,
        classes=("cat", "dog"),
    )
    version = register("served", model_dir)
    registry.promote(promotion(version, None), ledger)
    downloaded = registry.download_version(version.name, "champion", tmp_path / "down")
    assert load_model(weights_in(downloaded)).config == config
    Image.new("RGB", (50, 40), (200, 10, 10)).save(tmp_path / "cat.png")
    script = (
        "import json, sys, mlflow.pyfunc\n"
        f"model = mlflow.pyfunc.load_model('models:/{version.name}@champion')\n"
        "rows = model.predict(['cat.png', open('cat.png', 'rb').read()]).to_dict('records')\n"
        "import coatnet; print(json.dumps([rows, coatnet.__file__]))\n"
    )
    environment = {**os.environ, "MLFLOW_TRACKING_URI": registry.tracking_uri, "PYTHONPATH": ""}
    environment["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "False"
    done = subprocess.run(
        [sys.executable, "-P", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    rows, origin = json.loads(done.stdout.splitlines()[-1])
    assert Path(origin).parents[1].name == "code", "the model must bring its own code"
    pixels_HWC = np.empty((32, 32, 3), dtype=np.uint8)
    decode_eval((tmp_path / "cat.png").read_bytes(), decode, pixels_HWC)
    inputs_BCHW = normalize(torch.from_numpy(pixels_HWC)[None], config.mean, config.std)
    expected_K = load_model(tmp_path / "weights")(inputs_BCHW)[0].softmax(0).tolist()
    for row in rows:
        assert row["probabilities"] == pytest.approx({"cat": expected_K[0], "dog": expected_K[1]}, abs=1e-5)
        assert row["score"] == max(row["probabilities"].values())
        assert row["label"] == max(row["probabilities"], key=row["probabilities"].get)

"""`make demo` as a user runs it: stopped with Ctrl-C, gone on with, and the accuracy it promises."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, Stack
from tests.integration.conftest import SMOKE_CONFIG, JobTarget

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]
_LEFT_BY_CTRL_C = 130


def start_demo(stack: Stack, target: JobTarget, *options: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.demo", *target.options, *options],
        cwd=REPOSITORY,
        env={**os.environ, "COATNET_HOME": str(stack.home)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def make_target(name: str, folder: Path) -> JobTarget:
    return JobTarget(
        root_uri=f"s3://coatnet/{name}", experiment=name, model_name=name, cache_dir=folder / "cache"
    )


def test_ctrl_c_stops_with_a_checkpoint_and_the_next_run_goes_on(
    stack: Stack, cifar10: Path, tmp_path: Path
) -> None:
    target = make_target("demo-stopped", tmp_path)
    # Three epochs: the first line of progress comes when one is nearly over.
    epochs = ("--recipe.pretrain.train.epochs", "3", "--recipe.finetune.train.epochs", "1")
    options = ("--config", SMOKE_CONFIG, *epochs)
    demo = start_demo(stack, target, *options)
    assert demo.stdout is not None
    lines: list[str] = []
    for line in demo.stdout:
        lines.append(line)
        if line.startswith("pretrain  epoch 1"):
            demo.send_signal(signal.SIGINT)
            break
    rest, _ = demo.communicate(timeout=300)
    assert demo.returncode == _LEFT_BY_CTRL_C, "".join(lines) + rest
    assert "stopped; make demo goes on from here" in rest
    assert "Traceback" not in rest
    output, _ = start_demo(stack, target, *options).communicate(timeout=800)
    assert re.search(r"^pretrain  epoch [123]/3  resumed at step \d+/187$", output, re.MULTILINE), output
    assert f"registry     {target.model_name} version 1: " in output
    assert "Stop everything        make down" in output


@pytest.mark.slow
@pytest.mark.timeout(2700)
def test_the_full_demo_reaches_what_the_readme_says(stack: Stack, cifar10: Path, tmp_path: Path) -> None:
    """More than 65.5% on the vehicles is what a naive model of this size reached."""
    demo = start_demo(stack, make_target("demo-full", tmp_path))
    output, _ = demo.communicate(timeout=2500)
    assert demo.returncode == 0, output
    found = re.search(r"^finetuning   top-1 (\d+\.\d)% on 4 classes, 4,000 images$", output, re.MULTILINE)
    assert found, output
    assert float(found.group(1)) > 75

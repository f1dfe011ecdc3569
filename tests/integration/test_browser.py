"""What a reviewer sees: the real MLflow UI in a real browser."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pytest
from playwright.sync_api import Page, expect, sync_playwright

from tests.conftest import REPOSITORY
from tests.integration.conftest import FinishedJob

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(shutil.which("chromium") is None, reason="no chromium: apt-get install chromium"),
]
SCREENSHOTS = REPOSITORY / "build" / "screenshots"
# Without it MLflow shows its pages for the development of agents.
_AS_TRAINING = "?workflowType=machine_learning"
_WAIT_MS = 30_000  # a cold MLflow on two busy cores
# Chromium's own calls home, and the sandbox that root may not have.
_ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


@pytest.fixture
def page(smoke_job: FinishedJob) -> Iterator[Page]:
    """A browser that logs in to MLflow as `make demo` tells the user to."""
    environment = smoke_job.environment
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=_ARGUMENTS)
        context = browser.new_context(
            base_url=environment["MLFLOW_TRACKING_URI"],
            http_credentials={
                "username": environment["MLFLOW_TRACKING_USERNAME"],
                "password": environment["MLFLOW_TRACKING_PASSWORD"],
            },
            viewport={"width": 1400, "height": 1500},
        )
        context.set_default_timeout(_WAIT_MS)
        expect.set_options(timeout=_WAIT_MS)
        yield context.new_page()
        browser.close()


def test_a_reviewer_finds_the_promoted_version_its_verdict_and_its_report(
    page: Page, smoke_job: FinishedJob
) -> None:
    """The verdict, its numbers and the policy must be readable without opening a file."""
    name = smoke_job.target.model_name
    client = mlflow.MlflowClient(smoke_job.environment["MLFLOW_TRACKING_URI"])
    champion = client.get_model_version_by_alias(name, "champion")

    page.goto(f"/#/models/{name}{_AS_TRAINING}")
    expect(page.get_by_text("champion").first).to_be_visible()
    page.get_by_role("link", name=f"Version {champion.version}").click()
    for text in ("PROMOTED top-1", "top-1 floor", "gate.verdict", "data.snapshot", "champion"):
        expect(page.get_by_text(text).first).to_be_visible()
    expect(page.get_by_role("table").filter(has_text="top-1 floor")).to_be_visible()
    _shoot(page, "version.png")

    run = client.get_run(str(champion.run_id)).info
    page.goto(f"/#/experiments/{run.experiment_id}/runs/{run.run_id}{_AS_TRAINING}")
    expect(page.get_by_text("eval/top1").first).to_be_visible()
    _shoot(page, "run.png")

    page.goto(f"/#/experiments/{run.experiment_id}/runs/{run.run_id}/artifacts{_AS_TRAINING}")
    page.get_by_text("report.html").first.click()
    report = page.frame_locator("iframe").first
    expect(report.get_by_text("top-1").first).to_be_visible()
    _shoot(page, "report.png")


def _shoot(page: Page, name: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    target: Path = SCREENSHOTS / name
    page.screenshot(path=target)
    assert target.stat().st_size > 10_000, "an empty page"

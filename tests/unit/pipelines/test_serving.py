"""The served model on good and hostile inputs, without MLflow's loader around it."""

import base64
import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
from PIL import Image

from coatnet.config import ModelConfig
from coatnet.interop import save_model
from coatnet.model import CoAtNet
from data.decode import DecodeConfig
from data.errors import InputError
from data.image_check import ImageLimits

# MLflow's own modules warn about their own type hints when they are imported.
pytestmark = pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning")

CONFIG = ModelConfig(
    widths=(8, 16, 32, 32), depths=(1, 1, 1, 1), stem_width=8, head_size=16, num_classes=2,
    pretrain_image_size_px=32,
)  # fmt: skip


def png(mode: str = "RGB", size: tuple[int, int] = (50, 40)) -> bytes:
    sink = io.BytesIO()
    Image.new(mode, size, (100, 100, 100) if mode == "RGB" else 100).save(sink, format="PNG")
    return sink.getvalue()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from pipelines.serving import save_pyfunc

    folder = tmp_path_factory.mktemp("serving")
    save_model(CoAtNet(CONFIG), folder / "weights")
    return save_pyfunc(
        target_dir=folder / "pyfunc",
        weights_dir=folder / "weights",
        decode=DecodeConfig(image_size_px=32),
        mean=CONFIG.mean,
        std=CONFIG.std,
        classes=("cat", "dog"),
        limits=ImageLimits(max_pixels=10_000, max_bytes=20_000),
    )


@pytest.fixture(scope="module")
def classify(saved: Path) -> Callable[[list[object]], pd.DataFrame]:
    from pipelines.serving import weights_in
    from pipelines.serving_model import ImageClassifier

    model = ImageClassifier()
    context = SimpleNamespace(artifacts={"model": str(weights_in(saved))})
    model.load_context(context)
    return lambda images: model.predict(context, pd.DataFrame({"image": images}))


def test_nothing_is_pickled_and_pins_are_installable(saved: Path) -> None:
    assert not [path for path in saved.rglob("*") if path.suffix in (".pkl", ".pt", ".pth", ".pyc")]
    requirements = (saved / "requirements.txt").read_text().splitlines()
    assert any(line.startswith("torch==") for line in requirements)
    assert not any("+" in line or "kornia" in line for line in requirements)


def test_bytes_path_and_uri_agree(classify: Callable[[list[object]], pd.DataFrame], tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(png())
    uri = f"data:image/png;base64,{base64.b64encode(png()).decode()}"
    rows = classify([png(), str(tmp_path / "cat.png"), uri, png("L"), png("P")])
    assert rows["label"].isin(["cat", "dog"]).all()
    # A convolution's sums may be cut otherwise for another row of the batch.
    assert rows["score"][:4].tolist() == pytest.approx([rows["score"][0]] * 4, abs=1e-6)
    assert set(rows["probabilities"][0]) == {"cat", "dog"}
    assert len(classify([png()] * 130)) == 130
    assert classify([]).empty


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("none.png", r"row 1 \('none.png'\): there is no such file"),
        (b"GIF89a", "row 1 .* unreadable"),
        (png()[:60], "row 1 .* unreadable"),
        (b"", "row 1 .* empty"),
        (png(size=(101, 100)), "row 1 .* too_large"),
        (b"\0" * 20_001, "row 1 .* too_large"),
        ("data:image/png;base64,*", "no valid base64"),
        (7, "its type is int"),
    ],
)
def test_bad_input_names_its_row(
    classify: Callable[[list[object]], pd.DataFrame], image: object, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        classify([png(), image])


def test_saving_refuses_what_does_not_fit_the_weights(saved: Path, tmp_path: Path) -> None:
    from pipelines.serving import save_pyfunc, weights_in

    values = {"mean": CONFIG.mean, "std": CONFIG.std, "classes": ("cat", "dog")}
    for change, message in (
        ({"classes": ("cat",)}, "2 outputs, but 1 class names"),
        ({"mean": (0.5, 0.5, 0.5)}, "expects mean"),
    ):
        with pytest.raises(InputError, match=message):
            save_pyfunc(
                target_dir=tmp_path / "x",
                weights_dir=weights_in(saved),
                decode=DecodeConfig(image_size_px=32),
                **{**values, **change},
            )
    assert not list(tmp_path.iterdir())

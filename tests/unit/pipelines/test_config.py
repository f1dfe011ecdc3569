from pathlib import Path

import pytest

from data.errors import InputError
from pipelines.config import parse_run_config

CONFIGS = sorted(Path("pipelines/configs").glob("*.yaml"))
DEMO = ["--config", "pipelines/configs/demo.yaml"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_config_parses(path: Path) -> None:
    config = parse_run_config(["--config", str(path)], "")
    assert config.recipe.model_config(num_classes=3).num_classes == 3


def test_overrides_win_over_files_and_files_over_defaults() -> None:
    override = ["--recipe.finetune.train.epochs", "3"]
    config = parse_run_config([*DEMO, *override], "")
    assert config.recipe.finetune.train.epochs == 3
    assert parse_run_config([*override, *DEMO], "") == config, "a file took back what stood before it"
    assert config.recipe.finetune.decode.image_size_px == 48
    assert config.recipe.finetune.train.betas == (0.9, 0.999)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--recipe.pretrain.trian.epochs", "3"],
            r"'recipe.pretrain.trian.epochs'; keys of recipe.pretrain: dataset, snapshot, cl",
        ),
        (["--runtime.num_worker", "3"], r"did you mean runtime.num_workers\?"),
        (
            ["--receipt.seed", "3"],
            r"keys of the config: corpus, corpus_format, .*, recipe, runtime; did you mean recipe\?",
        ),
        (["--recipe.seed.x", "3"], r"recipe.seed.*int"),
        (["--recipe.seed", "x"], r"recipe.seed.*int.*x"),
        (["--recipe.model", "coatnet_9"], r"unknown model 'coatnet_9'; models: coatnet_0"),
        (["--recipe.model_overrides", "{width: 3}"], r"unknown model option 'width'"),
        (
            ["--recipe.model_overrides", "{stochastic_depth_rate: 0.2}"],
            r"model_overrides has stochastic_depth_rate: set recipe.PHASE.stochastic_depth_rate instead",
        ),
        (["--recipe.model_overrides", "{num_classes: 5}"], r"set recipe.PHASE.classes instead"),
        (
            ["--recipe.model_overrides", "{pretrain_image_size_px: 192}"],
            r"set recipe.pretrain.decode.image_size_px instead",
        ),
        (["--recipe.model_overrides", "{variant: x}"], r"has variant: set recipe.model instead"),
        (["--recipe.model_overrides", "{widths: 5}"], r"widths is 5; it must be a list"),
        (["--recipe.model_overrides", "{head_size: abc}"], r"head_size is 'abc'; it must be a whole number"),
        (["--recipe.pretrain.train.epochs", "0"], r"epochs is 0; it must be at least 1"),
        (["--runtime.num_workers", "0"], r"runtime.num_workers is 0"),
        (["--runtime.max_store_wait_s", "600"], r"is 600.0; it must be 0 or more and below 600: ranks wait"),
        (
            ["--runtime.checkpointed_stages", "[0, 3]"],
            r"checkpointed_stages has 3; coatnet_nano has stages 0 to 2",
        ),
        (["--config", "missing.yaml"], r"missing.yaml"),
    ],
)
def test_bad_options_are_one_line_that_says_what_is_allowed(arguments: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        parse_run_config([*DEMO, *arguments], "")
    assert "\n" not in str(caught.value)


def test_unknown_key_in_a_file_names_the_valid_ones(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("recipe: {pretrain: {optimizer: sgd}}\n")
    with pytest.raises(
        InputError,
        match=r"'recipe.pretrain.optimizer'; keys of recipe.pretrain: dataset, snap",
    ):
        parse_run_config(["--config", str(file)], "")
    file.write_text("corpsu: /photos\n")
    with pytest.raises(InputError, match=r"'corpsu'; keys of the config: .*; did you mean corpus\?"):
        parse_run_config(["--config", str(file)], "")


def test_class_lists_of_a_file_belong_to_its_corpus() -> None:
    """`--corpus PATH` runs the demo's recipe on anyone's class folders."""
    config = parse_run_config([*DEMO, "--corpus", "/photos"], "")
    assert config.recipe.pretrain.classes is None
    assert config.recipe.finetune.max_train_per_class is None
    assert config.corpus_format == "auto"
    given = ["--corpus_format", "webdataset", "--corpus_options.label", "json:y"]
    config = parse_run_config([*DEMO, "--corpus", "/photos", *given], "")
    assert (config.corpus_format, config.corpus_options.label) == ("webdataset", "json:y")
    kept = parse_run_config([*DEMO, "--corpus", "/photos", "--recipe.finetune.classes", "[a,b]"], "")
    assert kept.recipe.finetune.classes == ("a", "b")
    assert kept.recipe.pretrain.classes is None

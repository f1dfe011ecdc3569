"""The main job: shard -> pretrain -> finetune -> evaluate -> register -> promote.

    ray job submit --working-dir . -- \
        python pipelines/pretrain_finetune.py --config pipelines/configs/demo.yaml

Every stage is kept under a fingerprint of what went into it: run the same command again and
finished stages are skipped, a stopped one goes on from its last checkpoint.
"""

from dataclasses import asdict, replace
from urllib.parse import quote

from data.corpora.kept_listing import KeptListing
from data.errors import InputError
from data.listing import CorpusReader
from infra.registry import VersionInfo
from infra.store import open_store
from infra.tracking_check import without_login
from pipelines.cifar10 import default_cache_dir, fetch_cifar10
from pipelines.config import PhaseConfig, RunConfig, parse_run_config
from pipelines.corpus import Corpus, CorpusPlace, open_corpus
from pipelines.corpus_tasks import corpus_tasks
from pipelines.dataset_ref import DatasetRef
from pipelines.job import announce, run_main
from pipelines.phase_images import list_images, pin_images
from pipelines.preflight import check_services
from pipelines.review import VERDICT_TAG, check_champion_fits
from pipelines.session import Session
from pipelines.stage import StageRecord


def main(argv: list[str]) -> int:
    """Run the job; returns 0, raises InputError for what a user can mend."""
    config = parse_run_config(argv, "Pretrain and finetune a CoAtNet on a corpus of images.")
    for line in run(config):
        announce(line)
    return 0


def run(config: RunConfig) -> list[str]:
    """Build the stages, compute what is missing, decide about the new model; return a summary."""
    recipe, runtime = config.recipe, config.runtime
    phases = {"pretrain": recipe.pretrain, "finetune": recipe.finetune}
    images = {name: pin_images(name, phase) for name, phase in phases.items() if phase.dataset}
    corpus = open_run_corpus(config) if len(images) < len(phases) else None
    tracking_uri = check_services(runtime, corpus.origin if corpus else None)
    session = Session(recipe, runtime, tracking_uri, actor="pipelines/pretrain_finetune.py")
    for name, phase in phases.items():
        if corpus is not None and name not in images:
            images[name] = list_images(name, recipe, phase, corpus)
    check_champion_fits(session.registry.champion(runtime.model_name), images["finetune"].classes)
    warn_about_new_augmentation(recipe.pretrain, recipe.finetune)
    session.connect()

    datasets = {name: images[name].stage(session, corpus, phase) for name, phase in phases.items()}
    pretrain = session.train("pretrain", recipe.pretrain, datasets["pretrain"], None)
    finetune = session.train("finetune", recipe.finetune, datasets["finetune"], pretrain)
    evaluation = session.evaluate(datasets["finetune"], finetune, recipe.finetune.decode)

    key = evaluation.fingerprint
    with session.job(key=key, name=f"{recipe.model} {key}", parameters=asdict(config)):
        session.hold(*(one.source for one in images.values() if isinstance(one.source, DatasetRef)))
        for dataset in datasets.values():
            session.materialize(dataset)
        if corpus is not None:
            corpus.finish()
        records = [session.materialize(stage) for stage in (pretrain, finetune, evaluation)]
        version = session.review(datasets["finetune"], finetune, evaluation, recipe.finetune.decode)
    return [*summary(*records, version=version), f"review       {version_page(tracking_uri, version)}"]


def open_run_corpus(config: RunConfig) -> Corpus:
    """Open the corpus; the name `cifar10` fetches the demo's photographs."""
    runtime = config.runtime
    place = CorpusPlace(
        staging=open_store(runtime.root).sub("staging"),
        run=corpus_tasks(max_in_flight=runtime.shard_tasks_in_flight, announce=announce),
    )
    uri = config.corpus
    if not uri:
        raise InputError(
            "corpus is empty: give --corpus with images, or a dataset to each phase (--recipe.PHASE.dataset)"
        )
    if uri == "cifar10":
        uri = str(fetch_cifar10(default_cache_dir(), announce))
    corpus = open_corpus(uri, config.corpus_format, config.corpus_options, place)
    if isinstance(corpus.source, CorpusReader):  # each phase lists it, and tars are read through for that
        return replace(corpus, source=KeptListing(corpus.source))
    return corpus


def warn_about_new_augmentation(pretrain: PhaseConfig, finetune: PhaseConfig) -> None:
    """Say so where finetuning switches on what pretraining had off; section 4.1 found that it harms."""
    names = (
        "randaugment_num_ops",
        "mixup_alpha",
        "cutmix_alpha",
        "color_jitter",
        "random_erasing_probability",
    )
    switched_on = [
        name for name in names if getattr(finetune.augment, name) > getattr(pretrain.augment, name) == 0
    ]
    if finetune.stochastic_depth_rate > pretrain.stochastic_depth_rate == 0:
        switched_on.append("stochastic_depth_rate")
    if switched_on:
        announce(
            f"warning: finetuning switches on {', '.join(switched_on)}, which pretraining has off; "
            "the paper (section 4.1) found this to harm: keep a small degree in pretraining"
        )


def summary(
    pretrained: StageRecord, finetuned: StageRecord, evaluated: StageRecord, *, version: VersionInfo
) -> list[str]:
    """Return the job's last lines: accuracies and what became of the model."""
    before, after = pretrained.output, evaluated.output
    return [
        "",
        f"pretraining  top-1 {before['metrics']['eval/top1']:.1%} on {len(before['classes'])} classes",
        f"finetuning   top-1 {after['top1']:.1%} on {len(finetuned.output['classes'])} classes, "
        f"{after['num_samples']:,} images",
        f"registry     {version.name} version {version.version}: {version.tags[VERDICT_TAG]}",
    ]


def version_page(tracking_uri: str, version: VersionInfo) -> str:
    """Return the address of a version's page, without what a tracking URI may hold for logging in."""
    page = f"{without_login(tracking_uri)}/#/models/{quote(version.name)}/versions/{version.version}"
    return f"{page}?workflowType=machine_learning"  # else MLflow opens its pages for agents


if __name__ == "__main__":
    run_main(main)

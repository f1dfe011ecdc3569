"""The main job as far as pretraining, out of the main job's own parts: a run costs half as much."""

from data.list_corpus import list_for_build
from pipelines.config import parse_run_config
from pipelines.job import run_main
from pipelines.preflight import check_services
from pipelines.pretrain_finetune import open_run_corpus
from pipelines.session import Session


def main(argv: list[str]) -> int:
    config = parse_run_config(argv, "Shard and pretrain.")
    recipe, runtime = config.recipe, config.runtime
    corpus = open_run_corpus(config)
    session = Session(recipe, runtime, check_services(runtime, corpus.origin), actor="tests")
    sharding = recipe.sharding(recipe.pretrain)
    session.connect()
    dataset = session.shard(corpus, list_for_build(corpus.source, sharding), sharding)
    pretrain = session.train("pretrain", recipe.pretrain, dataset, None)
    with session.job(key=pretrain.fingerprint, name="pretrain only", parameters={}):
        session.materialize(pretrain)
    return 0


if __name__ == "__main__":
    run_main(main)

"""The demo's accuracy over several seeds, against the same finetuning from random weights.

    set -a; . .local/stack/credentials.env; set +a
    .venv/bin/python -m tests.benchmarks.demo_seeds 0 1 2

Each seed is a process of its own. Finished stages are kept, so it may be stopped and run again.
Writes build/bench/demo_seeds.json, whose numbers docs/demo-results.md quotes.
"""

import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from data.list_corpus import list_for_build
from pipelines.config import PhaseConfig, parse_run_config
from pipelines.job import announce
from pipelines.preflight import check_services
from pipelines.pretrain_finetune import open_run_corpus
from pipelines.session import Session
from pipelines.stage import Stage

RESULTS = Path("build/bench/demo_seeds.json")
_OPTIONS = [
    *("--config", "pipelines/configs/demo.yaml"),
    *("--runtime.experiment", "demo-seeds"),
]
_ONE = "--one"


def main(arguments: list[str]) -> None:
    """Measure every seed named, print a table, write the results."""
    if arguments[:1] == [_ONE]:
        print(json.dumps(measure(int(arguments[1]))))
        return
    rows: list[dict[str, Any]] = []
    for seed in arguments or ["0", "1", "2"]:
        command = [sys.executable, "-m", "tests.benchmarks.demo_seeds", _ONE, seed]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            lines = [announce(line.rstrip()) or line for line in process.stdout]
        if process.returncode != 0:
            sys.exit(f"error: seed {seed} ended with exit code {process.returncode}")
        rows.append(json.loads(lines[-1]))
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(rows, indent=1))
    announce(table(rows))


def measure(seed: int) -> dict[str, Any]:
    """Train the demo and its control with one seed; return top-1 on the official test images."""
    config = parse_run_config([*_OPTIONS, "--recipe.seed", str(seed)], "The demo.")
    recipe, runtime = config.recipe, config.runtime
    corpus = open_run_corpus(config)
    session = Session(recipe, runtime, check_services(runtime, corpus.origin), actor="demo_seeds")
    session.connect()

    def shard(phase: PhaseConfig) -> Stage:
        sharding = recipe.sharding(phase)
        return session.shard(corpus, list_for_build(corpus.source, sharding), sharding)

    animals, vehicles = shard(recipe.pretrain), shard(recipe.finetune)
    pretrained = session.train("pretrain", recipe.pretrain, animals, None)
    finetuned = session.train("finetune", recipe.finetune, vehicles, pretrained)
    control = session.train("finetune", recipe.finetune, vehicles, None)
    key = session.evaluate(vehicles, control, recipe.finetune.decode).fingerprint
    with session.job(key=key, name=f"seed {seed}", parameters={"seed": seed}):
        top1 = session.materialize(pretrained).output["metrics"]["eval/top1"]
        found = {"seed": seed, "animals": top1}
        for name, model in (("vehicles", finetuned), ("vehicles_from_random_weights", control)):
            evaluation = session.evaluate(vehicles, model, recipe.finetune.decode)
            found[name] = session.materialize(evaluation).output["top1"]
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows and their mean as Markdown."""
    names = ("animals", "vehicles", "vehicles_from_random_weights")
    lines = [f"| seed | {' | '.join(names)} |", "|---|---|---|---|"]
    lines += [f"| {row['seed']} | {' | '.join(f'{row[name]:.1%}' for name in names)} |" for row in rows]
    means = (statistics.fmean(row[name] for row in rows) for name in names)
    return "\n".join([*lines, f"| mean | {' | '.join(f'{mean:.1%}' for mean in means)} |"])


if __name__ == "__main__":
    main(sys.argv[1:])

"""Runs all stages on fictional cases: dataset, tokenizer, fine-tuning, ten samples per case,
verdicts, scores, report. Needs no key and no network; --judge=gemini uses Gemini (GEMINI_API_KEY).

Diseases and patients are invented. A killed run resumes when called again.
"""

from collections.abc import Sequence
from importlib import resources

from mcr_jax import artifacts, console
from mcr_jax.cli.eval import evaluate
from mcr_jax.cli.flags import Flags
from mcr_jax.cli.score import show
from mcr_jax.cli.stage_main import opened
from mcr_jax.experiment import seal
from mcr_jax.experiment.experiment import Experiment
from mcr_jax.model.checkpoints import newest_step


def main(argv: Sequence[str]) -> None:
    """Runs `mcr demo [--workdir=DIR] [--judge=gemini] [--config=FILE.py]`."""
    flags = Flags("demo", __doc__)
    with resources.as_file(resources.files("mcr_jax.configs") / "demo.py") as config:
        flags.experiment(str(config), workdir="runs/demo")
        flags.string("judge", "", "offline or gemini; default: as the config says")
        if not flags.parse(argv):
            return
        experiment = opened(flags, judge=flags.values["judge"].value)
    with experiment.working():
        run(experiment)


def run(experiment: Experiment) -> None:
    """Runs the stages that are not done yet and prints the table."""
    from mcr_jax.build import stage as build
    from mcr_jax.judge import stage as judge
    from mcr_jax.sample import stage as sample
    from mcr_jax.stitch import stage as stitch
    from mcr_jax.train import stage as train

    workdir = experiment.workdir
    trained = newest_step(experiment.checkpoints) == experiment.config.train.steps
    if trained and seal.finished(experiment, "eval"):
        console.say(f"demo: nothing to do, all of it is in {workdir.path}")
        show(artifacts.results(workdir))
    else:
        sample.ready(experiment)
        judge.ready(experiment)
        stitched = experiment.config.train.traces == "stitched"
        if stitched:
            stitch.ready(experiment)
        build.run(experiment)
        if stitched:
            stitch.run(experiment)
        train.run(experiment)
        evaluate(experiment)
    console.say(f"Open {workdir.report} in a browser. Research use, not for patient care.")

"""Prepares the TFDS dataset `medcasereasoning` and prints the line that loads it.

The cases come from --source, from config.data.source of a --workdir, or by default from the
Hugging Face Hub (zou-lab/MedCaseReasoning at --revision). --traces also prepares the dataset
"medcasereasoning/stitched", which has the trace of each case as well.
"""

from collections.abc import Sequence

from mcr_jax import console
from mcr_jax.cli.flags import Flags
from mcr_jax.cli.stage_main import opened
from mcr_jax.errors import UsageError
from mcr_jax.paths import local_folder


def main(argv: Sequence[str]) -> None:
    """Runs `mcr build [--source=PATH[,PATH] | --revision=COMMIT] [--data_dir=DIR]`."""
    flags = Flags("build", __doc__)
    flags.experiment()
    flags.string("source", "", "PATH[,PATH]: .jsonl, .parquet, or a folder of a Hub snapshot")
    flags.string("revision", "", "commit, branch or tag on the Hub; default: main")
    flags.string("data_dir", "", "TFDS data_dir; default: TFDS's own")
    flags.string("traces", "", "WORKDIR/traces.parquet of mcr stitch: also prepares stitched")
    flags.boolean("overwrite", "replace a dataset made from other cases")
    if not flags.parse(argv):
        return
    from mcr_jax.build import stage

    values = {name: flags.values[name].value for name in ("source", "revision", "workdir")}
    traces, data_dir = _checked(flags.values["traces"].value), flags.values["data_dir"].value
    if values["source"] and values["revision"]:
        raise UsageError("--revision needs the Hub: pass it or --source, not both")
    if values["workdir"] and not values["source"]:
        experiment = opened(flags)
        with experiment.working():
            report = stage.run(experiment, traces, values["revision"])
    else:
        overwrite = flags.values["overwrite"].value
        report = stage.prepare(
            values["source"], data_dir or None, overwrite, traces, values["revision"]
        )
    console.say(f"build: to load it in Python: {report.loading}")


def _checked(path: str) -> str:
    """Expands the path of a file of traces and reads it once, to fail early; "" stays ""."""
    if not path:
        return ""
    from mcr_jax.data import traces

    file = local_folder(path)
    traces.read(file)
    return str(file)

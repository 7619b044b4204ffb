"""Makes a row of a file of traces."""

from mcr_jax.data import traces


def row(case, **changes) -> traces.Trace:
    """A stitched trace of the case that passed the audit at first."""
    made = {
        "fingerprint": case.fingerprint,
        "split": case.split,
        "trace": f"All of it means {case.final_diagnosis}.",
        "source": traces.STITCHED,
        "model": "base",
        "model_version": "v1",
        "prompt": "p",
        "attempts": 1,
        "outcomes": ("OK",),
        "faults_first": (),
        "faults": (),
        "coverage_first": 1.0,
        "coverage": 1.0,
        "additions_first": (),
        "additions": (),
        "length_first": 1.0,
        "length": 1.0,
    }
    return traces.Trace(**made | changes)

"""Evaluates our environment of verifiers on the model of a local server: IN.json OUT.json."""

import importlib.util
import json
import pathlib
import sys

import verifiers as vf
from verifiers.types import ClientConfig


def main(given: pathlib.Path, out: pathlib.Path) -> None:
    asked = json.loads(given.read_text(encoding="utf-8"))
    env = vf.load_environment("mcr_jax.adapters.verifiers_env", **asked["environment"])
    found = env.evaluate_sync(
        client=ClientConfig(api_key_var="OPENAI_API_KEY", api_base_url=asked["url"]),
        model="loopback",
        num_examples=2,
        rollouts_per_example=asked["rollouts"],
        max_concurrent=1,
    )
    rollouts = [
        {"reward": row["reward"], "metrics": row["metrics"], "id": row["info"]["id"]}
        for row in found["outputs"]
    ]
    result = {"rollouts": rollouts, "litellm": importlib.util.find_spec("litellm") is not None}
    out.write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(*map(pathlib.Path, sys.argv[1:]))

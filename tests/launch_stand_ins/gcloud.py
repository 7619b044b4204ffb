"""Stand-in for gcloud with two fictional workers: records calls and plays a scenario.

`calls.jsonl` in $STAND_IN gets one argv a line. `world.json` there is the scenario and its state:

  queue, node   the state that describe tells of the queued resource and of the TPU; null: absent
  coming        states of the queue after its creation, one per look
  create        results of creations in turn: "ok" (also when none is left) or "refused"
  follow        results of the ssh calls that follow the log, in turn: "ok"; "drop", the connection
                is lost; "preempt", the whole resource with it; "node", the TPU alone;
                "reboot", the workers lose what ran

Commands of ssh run for real: `$STAND_IN/worker-0` and `-1` are the workers' homes.
"""

import fcntl
import json
import os
import pathlib
import shutil
import subprocess
import sys

ROOT = pathlib.Path(os.environ["STAND_IN"])
WORKERS = [ROOT / "worker-0", ROOT / "worker-1"]


def main(argv: list[str]) -> int:
    """Plays `gcloud ARGV`; returns its exit status."""
    with (ROOT / "calls.jsonl").open("a") as calls:
        fcntl.flock(calls, fcntl.LOCK_EX)
        calls.write(json.dumps(["gcloud", *argv]) + "\n")
    world = json.loads((ROOT / "world.json").read_text())
    _, _, kind, verb, *rest = argv
    try:
        return getattr(World(world), verb)(kind, rest)
    finally:
        (ROOT / "world.json").write_text(json.dumps(world))


class World:
    """The verbs of `gcloud compute tpus KIND VERB`; each changes the scenario it was given."""

    def __init__(self, world):
        self.world = world

    def describe(self, kind, rest):
        key = "queue" if kind == "queued-resources" else "node"
        if key == "queue" and self.world["queue"] and self.world["coming"]:
            self.world["queue"] = self.world["coming"].pop(0)
            if self.world["queue"] == "ACTIVE":
                self._boot()
        state = self.world[key]
        if state is None:
            print(f"ERROR: (gcloud.{kind}) NOT_FOUND: it was not found.", file=sys.stderr)
            return 1
        if state == "OFFLINE":
            print("ERROR: the network is unreachable", file=sys.stderr)
            return 1
        print(state)
        return 0

    def create(self, kind, rest):
        if self._next("create") == "refused":
            print("ERROR: PERMISSION_DENIED", file=sys.stderr)
            return 1
        if kind == "queued-resources":
            self.world["queue"] = "ACCEPTED"
            self.world["coming"] = list(self.world["then"])
        else:
            self._boot()
        return 0

    def delete(self, kind, rest):
        self.world["queue"] = None
        self._lose(None)
        return 0

    def scp(self, kind, rest):
        files = [word for word in rest if not word.startswith("--")][:-1]
        for worker in WORKERS:
            for file in files:
                shutil.copy(file, worker)
        return 0

    def ssh(self, kind, rest):
        (command,) = (w.removeprefix("--command=") for w in rest if w.startswith("--command="))
        if self.world["node"] != "READY":
            return 1
        event = self._next("follow") if command.endswith(" follow") else "ok"
        if event == "drop":
            return 1
        if event in ("preempt", "node"):
            self.world["queue"] = "SUSPENDED" if event == "preempt" else self.world["queue"]
            self._lose("PREEMPTED" if event == "node" else None)
            return 1
        running = [
            subprocess.Popen(
                ["bash", "-c", command], cwd=home, env={**os.environ, "HOME": str(home)}
            )
            for home in WORKERS
        ]
        statuses = [process.wait() for process in running]
        if event == "reboot":
            for home in WORKERS:
                (home / "mcr-job" / "status").unlink()
        return next(filter(None, statuses), 0)

    def _next(self, what):
        return self.world[what].pop(0) if self.world[what] else "ok"

    def _boot(self):
        self.world["node"] = "READY"
        for home in WORKERS:
            (home / "mcr-venv" / "bin").mkdir(parents=True)
            python = home / "mcr-venv" / "bin" / "python"
            python.write_text('#!/bin/sh\nprintf "%s\\n" "$PWD: $*" >> "$HOME/pip.log"\n')
            python.chmod(0o755)

    def _lose(self, state):
        self.world["node"] = state
        for home in WORKERS:
            shutil.rmtree(home, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

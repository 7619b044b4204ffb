"""Stand-in for any tool: appends its argv to $STAND_IN/calls.jsonl, exits with $STAND_IN_STATUS."""

import json
import os
import pathlib
import sys

with (pathlib.Path(os.environ["STAND_IN"]) / "calls.jsonl").open("a") as calls:
    calls.write(json.dumps(sys.argv[1:]) + "\n")
sys.exit(int(os.environ.get("STAND_IN_STATUS", "0")))

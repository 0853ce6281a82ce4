"""Run by tests in a process of its own, which talks to a Hub on loopback: several publications, one after another.

Arguments: a JSON file with steps `{"token": ..., "call": arguments of publish}`; a file for what came of each.
"""

import json
import os
import sys

from cytodino_hf.errors import CytoDinoError
from cytodino_hf.publishing.publish import publish


def main() -> None:
    steps, out = sys.argv[1:]
    results = []
    with open(steps) as file:
        plan = json.load(file)
    for step in plan:
        os.environ["HF_TOKEN"] = step["token"]
        try:
            done = publish(**step["call"])
        except CytoDinoError as error:
            results.append({"error": type(error).__name__, "text": str(error), "commit": None})
        else:
            results.append({"error": None, "text": done.text, "commit": done.commit})
    with open(out, "w") as file:
        json.dump(results, file)


if __name__ == "__main__":
    main()

"""Run by tests in a process of its own: what `pipeline()` says where cytodino_hf cannot be imported.

Arguments: an output file, then models (folders or Hub ids). Writes model -> "loaded", or kind and text of the error.
"""

import json
import sys

sys.modules["cytodino_hf"] = None  # type: ignore[assignment]  # any import of it now fails

from transformers import pipeline  # noqa: E402


def main() -> None:
    out, *models = sys.argv[1:]
    said = {}
    for model in models:
        try:
            pipeline("image-classification", model=model, trust_remote_code=True, device="cpu")
        except Exception as error:  # noqa: BLE001 - the test looks at what it is
            said[model] = f"{type(error).__name__}: {error}"
        else:
            said[model] = "loaded"
    with open(out, "w") as file:
        json.dump(said, file)


if __name__ == "__main__":
    main()

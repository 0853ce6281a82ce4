"""Run by tests in a process of its own: load models with `pipeline()` where cytodino_hf cannot be imported.

Arguments: an output file, then one or more RUN folders; the RUN's test predictions name the images to score.
"""

import json
import sys
from pathlib import Path

sys.modules["cytodino_hf"] = None  # type: ignore[assignment]  # any import of it now fails

import pyarrow.parquet as pq  # noqa: E402
from transformers import AutoModelForImageClassification, pipeline  # noqa: E402


def main() -> None:
    out, *runs = map(Path, sys.argv[1:])
    scores = {}
    for run in runs:
        table = pq.read_table(run / "predictions" / "test.parquet")
        classes = json.loads(table.schema.metadata[b"cytodino"])["classes"]
        root = json.loads((run / "recipe.json").read_text())["data"]["root"]
        paths = [f"{root}/{path}" for path in table["path"].to_pylist()]
        classify = pipeline("image-classification", model=str(run), trust_remote_code=True, device="cpu")
        found = [{row["label"]: row["score"] for row in rows} for rows in classify(paths, top_k=len(classes))]
        model = AutoModelForImageClassification.from_pretrained(run, trust_remote_code=True)
        scores[run.name] = {
            "probabilities": [[row[code] for code in classes] for row in found],
            "module": type(model).__module__,
            "training": model.training,
            "peft": any("lora_" in name for name, _ in model.named_parameters()),
        }
    out.write_text(json.dumps(scores))


if __name__ == "__main__":
    main()

"""Run by tests in a process of its own: logits of models from the Hub where cytodino_hf cannot be imported.

Arguments: a JSON file with a list of images, a file for the logits of each model, then Hub ids or folders.
"""

import json
import sys

sys.modules["cytodino_hf"] = None  # type: ignore[assignment]  # any import of it now fails

import torch  # noqa: E402
from transformers import pipeline  # noqa: E402


def main() -> None:
    images, out, *models = sys.argv[1:]
    with open(images) as file:
        paths = json.load(file)
    found = {}
    for name in models:
        classify = pipeline("image-classification", model=name, trust_remote_code=True, device="cpu")
        scores = [{row["label"]: row["score"] for row in rows} for rows in classify(paths, top_k=100)]
        with torch.inference_mode():
            pixels = classify.image_processor(
                [classify.preprocess.__globals__["load_image"](path) for path in paths], return_tensors="pt"
            )["pixel_values"]
            logits = classify.model(pixels.to(classify.model.dtype)).logits.float()
        found[name] = {"scores": scores, "logits": logits.tolist(), "dtype": str(classify.model.dtype)}
    with open(out, "w") as file:
        json.dump(found, file)


if __name__ == "__main__":
    main()

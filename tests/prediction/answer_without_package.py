"""Run by tests in a process of its own: what transformers alone says of pictures, where cytodino_hf cannot be imported.

Arguments: an output file (JSON), a folder of pictures, then models, each a folder or a Hub id.
"""

import json
import sys
from pathlib import Path

sys.modules["cytodino_hf"] = None  # type: ignore[assignment]  # any import of it now fails

import torch  # noqa: E402
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline  # noqa: E402
from transformers.image_utils import load_image  # noqa: E402


def main() -> None:
    out, folder, *models = sys.argv[1:]
    pictures = sorted(map(str, Path(folder).iterdir()))
    answers = {}
    for name in models:
        classify = pipeline("image-classification", model=name, trust_remote_code=True, device="cpu")
        codes = [classify.model.config.id2label[label] for label in range(classify.model.config.num_labels)]
        scores = [{s["label"]: s["score"] for s in row} for row in classify(pictures, top_k=len(codes))]
        model = AutoModelForImageClassification.from_pretrained(name, trust_remote_code=True).eval()
        processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=True)
        inputs = processor([load_image(path).convert("RGB") for path in pictures], return_tensors="pt")
        with torch.inference_mode():
            by_hand = model(**inputs).logits.softmax(-1)
        answers[name] = {
            "codes": codes,
            "pipeline": [[row[code] for code in codes] for row in scores],
            "auto": by_hand.tolist(),
            "module": type(model).__module__,
        }
    Path(out).write_text(json.dumps(answers))


if __name__ == "__main__":
    main()

"""The card: filled from the run, metadata a parser reads back, every class name inert, blanks said as blanks."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from cytodino_hf.publishing.card import inert, model_card
from cytodino_hf.publishing.checklist import BLANK
from cytodino_hf.publishing.licences import Base, base_of, base_of_backbone, inherited_licence

HOSTILE = "<img src=x onerror=alert(1)>|=cmd()|$\\frac{a}{b}$ [x](javascript:1) `c` **b**\n# head"
PLAIN = Base("none: random weights", None, False, None, None)


def report(**changes: Any) -> dict[str, Any]:
    """The least of a run's report that a card is made from; two classes, one of them with a hostile name."""
    score = {"value": 0.75, "low": 0.5, "high": 0.9, "n": 8}
    row = {
        "code": "BLA", "name": HOSTILE, "lineage": "granulocytic", "is_critical": True, "images": 4,
        "precision": score, "recall": score, "f1": None,
    }  # fmt: skip
    critical = {"critical_to_safe": {"rate": 0.25, "low": 0.1, "high": 0.4}}
    return {
        "is_drawn": False, "split_promise": "by file: no promise about patients", "notes": [],
        "intervals": {"level": 0.95, "draws": 200, "seed": 0},
        "data": {
            "source": "mll", "attribution": "Matek et al. 2021, CC BY 4.0", "rejected": [{"path": "x", "reason": "y"}],
            "counts": {"train": {"BLA": 10, "LYT": 20}, "test": {"BLA": 4, "LYT": 4}},
        },
        "model": {"revision": "a" * 64, "parameters": {"total": 1234, "trainable": 34}},
        "training": {"seconds": 3725.0, "steps": 10, "processes": 1, "best_metric": None},
        "environment": {"gpus": [], "processor": "one", "cores": 2, "python": "3.11", "packages": {"torch": "2"}},
        "recipe": {
            "data": {"augmentation": "default"}, "model": {"method": "lora"}, "loss": {"name": "focal"},
            "training": {"learning_rate": 0.001, "seed": 3},
        },
        "test": {
            "images": 8, "metrics": {"macro_f1": score, "accuracy": score}, "per_class": [row], "critical": critical,
            "top_confusions": [{"true": "BLA", "predicted": "LYT", "count": 1, "share": 0.25}],
        },
    } | changes  # fmt: skip


CONFIG = {
    "id2label": {"0": "BLA", "1": "LYT"}, "head_type": "decoder", "binding": {"recipe": "b" * 64, "data": "c" * 64},
    "backbone_config": {"model_type": "dinov3_vit", "num_hidden_layers": 2, "hidden_size": 32, "patch_size": 8},
}  # fmt: skip
PROCESSOR = {
    "do_center_crop": False, "hide_center_px": 0, "size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3,
    "image_std": [0.2] * 3,
}  # fmt: skip


def card(base: Base = PLAIN, **changes: Any) -> str:
    return model_card(
        "me/demo", report(**changes), CONFIG, PROCESSOR, base, is_merged=False, storage="float32"
    )


def test_the_metadata_read_back() -> None:
    data = ModelCard(card()).data
    assert (data.library_name, data.pipeline_tag) == ("transformers", "image-classification")
    found = {result.metric_name: result for result in data.eval_results}
    macro = found["macro F1 (95% interval 0.5000 to 0.9000)"]
    assert (macro.metric_type, macro.metric_value, macro.dataset_split) == ("f1", 0.75, "test")
    assert macro.metric_args == {"low": 0.5, "high": 0.9, "level": 0.95, "n": 8}
    assert len(found) == 2
    assert data.get("license") is None


def test_it_says_how_sure_the_model_is() -> None:
    """Of what the report holds; without it nothing is said, and calibration stays the author's to tell."""
    ece = {
        "before": {"value": 0.08, "low": 0.05, "high": 0.12},
        "after": {"value": 0.03, "low": 0.02, "high": 0.06},
    }
    parts = {
        "calibration": {"method": "temperature", "metrics": {"ece": ece}},
        "selective": {"per_class_point": None},
        "conformal": {"missing": "No set of classes can be promised: there is no calibration fold."},
    }
    text = card(parts=parts)
    said = re.search(r"### How sure it is\n(.*?)\n### ", text, re.DOTALL)
    assert said
    lines = [line for line in said.group(1).splitlines() if line.startswith("- ")]
    assert lines == [
        "- Its expected calibration error is 0.080 (0.050 to 0.120), after a temperature 0.030 (0.020 to 0.060)."
    ]
    assert "How sure it is" not in card()
    unknown = f"whether they are calibrated: {BLANK}"
    assert unknown in text
    assert "ood" not in text
    bound = {"revision": "d" * 64, "files": {"calibration.json": "e" * 64, "ood.safetensors": "f" * 64}}
    config = CONFIG | {"binding": CONFIG["binding"] | {"companions": bound}}
    whole = model_card("me/demo", report(), config, PROCESSOR, PLAIN, is_merged=True, storage="float32")
    assert unknown not in whole
    assert "`calibration.json` calibrates them" in whole
    assert "`ood.safetensors` lets cytodino_hf call out" in whole


def test_class_names_with_html_or_formulas_stay_inert() -> None:
    text = card()
    row = next(line for line in text.splitlines() if line.startswith("| BLA |"))
    assert row.count("|") == 9, "as many cells as the head of the table"
    assert not re.search(r"[<>`$\[\]*=\\]", row)
    assert "alert" in row
    assert "javascript:" not in text
    assert text.count("\n# ") == 1, "the only heading of the first kind is ours"


@pytest.mark.parametrize("value", ["=1+1", "+x", "-x", "@x", "a_b_c", "&lt;b&gt;", "x ![p](q)"])
def test_inert_shows_the_same_letters(value: str) -> None:
    import html

    assert html.unescape(str(inert(value))) == value
    assert not re.match(r"[-=+@]", str(inert(value)))
    assert inert(inert(value)) == inert(value)


def test_what_a_run_cannot_say_is_a_blank() -> None:
    text = card()
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    for item in ("Ethics", "Funding", "External validation", "Subgroups", "demographics"):
        assert any(item in row and BLANK in row for row in rows), item
    assert f"Energy: not measured by the run; {BLANK}" in text
    assert "1 h 2 min" in text
    assert "by file&#58; no promise about patients" in text
    assert "CC BY 4.0" in text
    assert f"The licence of these weights: {BLANK}" in text


def test_a_run_that_scored_nothing_promises_nothing() -> None:
    text = card(test=None)
    assert f"This run scored no fold: {BLANK}" in text
    assert ModelCard(text).data.eval_results is None


def test_dinov3_hands_its_licence_on() -> None:
    name = "facebook/dinov3-vitl16-pretrain-lvd1689m"
    config = {
        "binding": {"base": {"id": name, "revision": "a" * 40}},
        "backbone_config": {"model_type": "dinov3_vit"},
    }
    base = base_of(Path("nowhere"), config, {"model": {"backbone": name}})
    assert base.text_from == (name, "a" * 40)
    text = card(base)
    data = ModelCard(text).data
    assert (data.license, data.license_name, data.license_link) == ("other", "dinov3-license", "LICENSE.md")
    assert (data.base_model, data.base_model_relation) == (name, "adapter")
    assert f"at commit {'a' * 40}" in text
    continued = {"origin": {"name": "x", "origin": {"name": name, "commit": "b" * 40}}}
    assert base_of_backbone(continued, {}).text_from == (name, "b" * 40)
    assert inherited_licence({"name": "facebook/dinov2-large"}) == (
        "facebook/dinov2-large", "apache-2.0", "https://www.apache.org/licenses/LICENSE-2.0",
    )  # fmt: skip


def test_weights_of_dinov3s_architecture_without_a_record_are_taken_for_dinov3(tmp_path: Path) -> None:
    local = {"binding": {"base": {"id": None}}, "backbone_config": {"model_type": "dinov3_vit"}}
    base = base_of(tmp_path, local, {"model": {"backbone": str(tmp_path)}})
    assert base.licence is not None
    assert "taken to hold" in base.note
    assert str(tmp_path) not in card(base)
    local["backbone_config"]["model_type"] = "dinov2"
    assert base_of(tmp_path, local, {"model": {"backbone": str(tmp_path)}}).licence is None
    assert base_of(tmp_path, local, {"model": {"backbone": None}}) == PLAIN
    ours = base_of(tmp_path, local, {"model": {"backbone": "embedded"}})
    assert ours.licence is None
    assert "CC BY 4.0" in card(ours)

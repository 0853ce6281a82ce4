"""Items of reporting checklists: those a run can answer are answered, the others stand as explicit blanks.

Source: TRIPOD+AI (Collins et al., BMJ 2024;385:e078378) and CLAIM (Tejani et al., Radiology: Artificial Intelligence
2024;6:e240300), in our own words; the lists themselves decide.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

#: What nobody but the author can say.
BLANK = "**to be filled in by the author**"


def checklist(report: Mapping[str, Any], base: str, scored: str | None) -> list[tuple[str, str]]:
    """(item, answer) in the order of a paper; answers that a run cannot give are `BLANK`.

    Args:
        report: Content of `report.json`.
        base: What the model was made from, in words.
        scored: The fold whose scores are shown, None without one.
    """
    data, training, recipe = report["data"], report["training"], report["recipe"]
    sizes = ", ".join(f"{name} {sum(counts.values()):,}" for name, counts in data["counts"].items())
    best = training.get("best_metric")
    chosen = (
        f"the checkpoint with the best {best['name']} on the validation fold ({best['value']:.3f})"
        if best
        else "the last step"
    )
    return [
        ("Title: says that it is a prediction model and on what data", "see the head of this card"),
        ("Intended use and users; what it must not be used for", "see Intended use"),
        ("Source of the data", str(data["attribution"] or BLANK)),
        ("Dates, sites and setting in which the data were collected", BLANK),
        ("Who was included and excluded; demographics", BLANK),
        ("Reference standard: who labelled, how many, how they agreed", BLANK),
        ("Images left out and why", f"{len(data['rejected']):,} files that could not be used"),
        ("Size of the sample; how it was determined", f"{sizes}; how it was determined: {BLANK}"),
        ("Partitions, and at which level they are disjoint", str(report["split_promise"])),
        ("Preprocessing", "see Preprocessing"),
        ("Model: architecture, inputs, outputs, number of parameters", "see Model"),
        ("Initial weights", base),
        ("Training: loss, optimiser, augmentation, stopping", "see Recipe"),
        ("How the final model was chosen", chosen),
        ("Randomness", f"seed {recipe['training']['seed']}; one run"),
        ("Performance with uncertainty", f"see Results ({scored} fold)" if scored else BLANK),
        ("Per class, rare classes included", "see Classes" if scored else BLANK),
        ("Subgroups and fairness", BLANK),
        ("Calibration of the probabilities", BLANK),
        ("External validation", BLANK),
        ("Failures", "see Confusions" if scored else BLANK),
        ("Software and hardware", "see Environment"),
        ("Code and model availability", "the code is in this repository; trained with cytodino_hf"),
        ("Ethics approval and consent", BLANK),
        ("Registration and protocol", BLANK),
        ("Funding and conflicts of interest", BLANK),
    ]

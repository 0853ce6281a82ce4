"""Pretrains in forked processes and stops them, as forked_runs.py does with fine-tunings."""

from __future__ import annotations

from typing import Any

from forked_runs import dies_at, serve


def train(job: dict[str, Any], rank: int) -> None:
    from cytodino_hf.pretraining import pretrain as module
    from cytodino_hf.pretraining.recipe import load_pretrain_recipe

    assemble = module._assemble

    def assemble_and_cut(*args: Any) -> Any:
        trainer = assemble(*args)
        if job.get("stop"):
            trainer.add_callback(dies_at(**job["stop"]))
        return trainer

    module._assemble = assemble_and_cut
    module.pretrain(load_pretrain_recipe(job["recipe"]))


if __name__ == "__main__":
    import cytodino_hf.pretraining.pretrain  # noqa: F401

    serve(train)

"""Fine-tune on the images of a recipe.

accelerate launch run_finetune.py recipes/cytodino32.json [--section.key VALUE ...] [--dry-run]
"""

from cytodino_hf.cli import run_finetune

if __name__ == "__main__":
    run_finetune()

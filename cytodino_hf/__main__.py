"""`python -m cytodino_hf COMMAND`, which `accelerate launch -m cytodino_hf COMMAND` starts too."""

from __future__ import annotations

from .cli import main

if __name__ == "__main__":
    main()

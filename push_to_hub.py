"""Put the model of a RUN on the Hub.

python push_to_hub.py RUN --repo-id USER/NAME [--merged] [--private] [--revision R] [--storage bfloat16] [--dry-run]
"""

from cytodino_hf.cli import push_to_hub

if __name__ == "__main__":
    push_to_hub()

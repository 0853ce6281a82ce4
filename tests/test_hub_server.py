"""The loopback Hub answers the real client as the Hub does, and fails as it is told."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from hub_server import DROP, WRITE_TOKEN, WRONG_BYTES, hub_server

CLIENT = """
import hashlib, json, sys
from pathlib import Path
from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub.errors import GatedRepoError, RevisionNotFoundError
folder, home = map(Path, sys.argv[1:])
api, seen = HfApi(), {}
seen["name"] = api.whoami()["name"]
api.create_repo("me/new", private=True, exist_ok=True)
for attempt in ("first", "second"):
    seen[attempt] = api.upload_folder(repo_id="me/new", folder_path=folder).oid
info = api.model_info("me/new")
seen |= {"private": info.private, "files": sorted(s.rfilename for s in info.siblings), "sha": info.sha}
pulled = Path(snapshot_download("me/new"))
seen["equal"] = all((pulled / p.name).read_bytes() == p.read_bytes() for p in folder.iterdir())
try:
    hf_hub_download("me/gated", "config.json", token="hf_loopbackread2")
except GatedRepoError:
    seen["gated"] = True
try:
    hf_hub_download("me/new", "a.txt", revision="f" * 40)
except RevisionNotFoundError:
    seen["no revision"] = True
for name in ("dropped", "busy", "wrong"):
    path = hf_hub_download(f"me/{name}", "model.safetensors")
    seen[name] = hashlib.sha256(Path(path).read_bytes()).hexdigest()
print(json.dumps(seen))
"""


def test_push_pull_and_faults_with_the_real_client(tmp_path: Path) -> None:
    import hashlib

    folder = tmp_path / "folder"
    folder.mkdir()
    weights = bytes(range(256)) * 40
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "a.txt").write_text("a")
    with hub_server() as hub:
        hub.commit("me/gated", {"config.json": b"{}"}, gated=True)
        for name in ("dropped", "busy", "wrong"):
            hub.commit(f"me/{name}", {"model.safetensors": weights})
        hub.accounts["hf_loopbackread2"] = ("stranger", "read")
        hub.fail(r"me/dropped/resolve", DROP)
        hub.fail(r"me/busy/resolve", 503, method="HEAD")
        hub.fail(r"me/wrong/resolve", WRONG_BYTES)
        environment = os.environ | hub.environment(tmp_path / "home", WRITE_TOKEN)
        out = subprocess.run(
            [sys.executable, "-c", CLIENT, str(folder), str(tmp_path)],
            capture_output=True, text=True, env=environment,
        )  # fmt: skip
        assert out.returncode == 0, out.stderr
        seen: dict[str, Any] = json.loads(out.stdout)
        assert seen["name"] == "me"
        assert seen["first"] == seen["second"] == seen["sha"]
        assert len(hub.repos["model", "me/new"].commits) == 2  # the empty one and ours
        assert seen["files"] == [".gitattributes", "a.txt", "model.safetensors"]
        assert seen["private"]
        assert seen["equal"]
        assert seen["gated"]
        assert seen["no revision"]
        right = hashlib.sha256(weights).hexdigest()
        assert seen["dropped"] == seen["busy"] == right
        assert seen["wrong"] != right, "the client does not compare the bytes: whoever loads them must"
        assert sum(method == "HEAD" and "me/busy" in path for method, path in hub.requests) >= 2
        sent = hub.bytes_sent["me/dropped/model.safetensors"]
        assert sent == 1.5 * len(weights), (
            "half, and all of it again: less than one of the client's blocks had come"
        )

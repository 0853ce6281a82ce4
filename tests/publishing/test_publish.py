"""From a RUN to a loopback Hub with the real client, and back into a process without our package."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from companion_files import SCALE, with_companions
from hub_server import DROP, READ_TOKEN, WRITE_TOKEN, Hub, hub_server
from safetensors.numpy import save_file

from cytodino_hf import CellClassifier
from cytodino_hf.errors import LeakError, PublishError
from cytodino_hf.evaluation.predictions import Predictions
from cytodino_hf.finetune import finetune
from cytodino_hf.publishing.allow_list import Gathered, Kind, Wish
from cytodino_hf.publishing.assemble import KINDS
from cytodino_hf.publishing.card import BFLOAT16_SHARE
from cytodino_hf.publishing.publish import publish
from cytodino_hf.recipe import parse_recipe

TESTS = Path(__file__).parent
CODE = {f"{name}_cytodino.py" for name in ("binding", "configuration", "image_processing", "modeling")}
ABOUT = {"README.md", "config.json", "preprocessor_config.json", "recipe.json", "environment.json"}
COMPANIONS = {"calibration.json", "ood.safetensors", "appearance.json"}
ADAPTER = {"adapter/adapter_config.json", "adapter/adapter_model.safetensors"}
ALWAYS = CODE | ABOUT | COMPANIONS | {"confusion_matrix.png"}
BASE = {"base/config.json", "base/model.safetensors"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, run: Path) -> Path:
    """A RUN of our own, with files in it that must not leave; its backbone is not on the Hub."""
    copy = with_companions(run, tmp_path_factory.mktemp("run") / "demo")
    for secret in ("training_args.bin", "optimizer.pt", "adapter/optimizer.pt", "notes.csv"):
        (copy / secret).write_text("must not leave")
    return copy


def state_of(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        path.relative_to(folder).as_posix(): (path.stat().st_mtime_ns, path.read_bytes())
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def published(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Hub, dict[str, Any]]]:
    """Many publications; name of each -> what came of it."""
    work = tmp_path_factory.mktemp("published")
    leaking = shutil.copytree(run, work / "leaking")
    recipe = json.loads((leaking / "recipe.json").read_text())
    recipe["training"]["run_name"] = "hf_" + "aBcDeFgHiJkLmNoPqRsT"
    (leaking / "recipe.json").write_text(json.dumps(recipe))
    steps = {
        "adapter": {"repo_id": "me/adapter"},
        "adapter again": {"repo_id": "me/adapter"},
        "branch": {"repo_id": "me/adapter", "revision": "v1", "merged": True},
        "merged": {"repo_id": "me/merged", "merged": True},
        "narrow": {"repo_id": "me/narrow", "storage": "bfloat16"},
        "narrow again": {"repo_id": "me/narrow", "storage": "bfloat16"},
        "narrow merged": {"repo_id": "me/narrow_merged", "storage": "bfloat16", "merged": True},
        "dropped": {"repo_id": "me/dropped"},
        "dropped again": {"repo_id": "me/dropped"},
        "private": {"repo_id": "me/private", "private": True},
        "not private": {"repo_id": "me/adapter", "private": True},
        "foreign": {"repo_id": "me/foreign"},
        "stranger": {"repo_id": "stranger/name"},
        "no token": {"repo_id": "me/no_token"},
        "read only": {"repo_id": "me/read_only"},
        "dry": {"repo_id": "me/dry", "dry_run": True},
        "leak": {"repo_id": "me/leak", "run": str(leaking)},
    }
    tokens = {"no token": "", "read only": READ_TOKEN}
    with hub_server() as hub:
        hub.commit("me/foreign", {"notes.md": b"mine", "model.safetensors": b"old", ".gitattributes": b""})
        hub.fail(r"^/lfs/", DROP, method="PUT")
        hub.fail(r"me/dropped/commit", DROP, method="POST")
        before = state_of(run)
        results = {}
        for name, call in steps.items():
            with pytest.MonkeyPatch.context() as patch:
                hub.asked_from_here(patch, work / "home", tokens.get(name, WRITE_TOKEN))
                results[name] = outcome({"run": str(run)} | call)
        assert state_of(run) == before, "publishing only reads the RUN"
        yield hub, results


def outcome(call: dict[str, Any]) -> dict[str, str | None]:
    try:
        done = publish(**call)
    except PublishError as error:
        return {"error": type(error).__name__, "text": str(error), "commit": None}
    return {"error": None, "text": done.text, "commit": done.commit}


def test_exactly_the_allowed_files_lie_there(published: tuple[Hub, dict[str, Any]]) -> None:
    hub, done = published
    wanted = {
        "me/adapter": ALWAYS | ADAPTER | BASE,
        "me/merged": ALWAYS | {"model.safetensors"},
        "me/narrow": ALWAYS | ADAPTER | BASE,
        "me/narrow_merged": ALWAYS | {"model.safetensors"},
        "me/dropped": ALWAYS | ADAPTER | BASE,
        "me/private": ALWAYS | ADAPTER | BASE,
    }
    for name, files in wanted.items():
        assert set(hub.files(name)) - {".gitattributes"} == files, (name, done)
    assert set(hub.files("me/adapter", "v1")) - {".gitattributes"} == wanted["me/merged"]


def test_repeating_a_push_changes_nothing(published: tuple[Hub, dict[str, Any]]) -> None:
    hub, done = published
    for name in ("adapter", "narrow"):
        assert done[name]["commit"] == done[f"{name} again"]["commit"] is not None
        assert "nothing was changed" in done[f"{name} again"]["text"]
    assert len(hub.repos["model", "me/narrow"].commits) == 2, "the empty one and ours"


def test_a_dropped_connection_shows_no_half_and_the_second_call_completes(
    published: tuple[Hub, dict[str, Any]],
) -> None:
    hub, done = published
    assert done["dropped"]["error"] == "PublishError"
    assert "the same command goes on" in done["dropped"]["text"]
    assert done["dropped again"]["error"] is None, done["dropped again"]
    assert len(hub.repos["model", "me/dropped"].commits) == 2


def test_who_may_write_and_what_is_said_to_others(published: tuple[Hub, dict[str, Any]]) -> None:
    hub, done = published
    for name, words in {
        "no token": ("no token", "hf auth login", "HF_TOKEN", "settings/tokens"),
        "read only": ("may only read", "hf auth login", "HF_TOKEN"),
        "stranger": ("refuses to write", "403"),
        "not private": ("exists and is public",),
        "leak": ("nothing was sent", "recipe.json, line", "secret 'hf_aBc...'"),
    }.items():
        assert done[name]["error"] in ("PublishError", "LeakError"), done[name]
        assert all(word in done[name]["text"] for word in words), done[name]
        assert "\n" not in done[name]["text"] or name == "leak"
    assert hub.repos["model", "me/private"].is_private
    asked = [path for _, path in hub.requests]
    assert not any(
        name in path for path in asked for name in ("me/no_token", "me/read_only", "me/dry", "me/leak")
    )


def test_a_dry_run_lists_files_sizes_and_the_card(run: Path, published: tuple[Hub, dict[str, Any]]) -> None:
    _, done = published
    text = done["dry"]["text"]
    listed = {line.split()[0]: line.split()[1] for line in text.split("\nin all")[0].splitlines()}
    assert set(listed) == ALWAYS | ADAPTER | BASE
    for name in ADAPTER | BASE:
        assert int(listed[name].replace(",", "")) == (run / name).stat().st_size
    assert "## Reporting checklist" in text
    assert str(run.parent) not in text


def test_files_of_others_stay_and_ours_of_before_go(published: tuple[Hub, dict[str, Any]]) -> None:
    hub, _ = published
    files = hub.files("me/foreign")
    assert files["notes.md"] == b"mine"
    assert "model.safetensors" not in files


def test_what_is_pulled_answers_as_the_run_did(
    run: Path, cells: Path, published: tuple[Hub, dict[str, Any]], tmp_path: Path
) -> None:
    hub, _ = published
    predictions = Predictions.from_parquet(run / "predictions" / "test.parquet")
    (tmp_path / "images.json").write_text(json.dumps([str(cells / path) for path in predictions.paths]))
    models = ["me/adapter", "me/merged", "me/narrow", "me/narrow_merged", str(run)]
    environment = os.environ | hub.environment(tmp_path / "home", token=None)
    command = [sys.executable, str(TESTS / "score_pulled.py"), str(tmp_path / "images.json")]
    command += [str(tmp_path / "out.json"), *models]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out.json").read_text())
    assert {found[name]["dtype"] for name in models} == {"torch.float32"}, "narrow files, exact computing"
    for name in ("me/adapter", "me/merged", str(run)):
        scores = [[row[code] for code in predictions.classes] for row in found[name]["scores"]]
        np.testing.assert_allclose(scores, predictions.probabilities, atol=1e-5)
    for name in ("me/narrow", "me/narrow_merged"):
        away = np.abs(np.array(found[name]["logits"]) - predictions.logits).max()
        assert 0 < away < BFLOAT16_SHARE * np.abs(predictions.logits).max(), (name, away)


def test_calibrated_answers_of_what_is_pulled_are_those_of_the_run(
    run: Path,
    cells: Path,
    published: tuple[Hub, dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whole or in a narrower type the weights are others; the calibration fitted for the RUN still belongs to them.

    A probability moves by at most half of what two logits move apart by, that is by the bound on one logit, scaled.
    """
    hub, _ = published
    own = CellClassifier.from_pretrained(run)
    wanted = own.predict(cells, calibrated=True)
    largest = np.abs(Predictions.from_parquet(run / "predictions" / "test.parquet").logits).max()
    bound = BFLOAT16_SHARE * largest * max(SCALE)
    hub.asked_from_here(monkeypatch, tmp_path, WRITE_TOKEN)
    for name, away in {
        "me/adapter": 1e-5, "me/merged": 1e-5, "me/narrow": bound, "me/narrow_merged": bound
    }.items():  # fmt: skip
        pulled = CellClassifier.from_pretrained(name)
        assert (pulled.place.revision() == own.place.revision()) == (name == "me/adapter")
        found = pulled.predict(cells, calibrated=True)
        assert found.are_calibrated
        np.testing.assert_allclose(found.probabilities, wanted.probabilities, atol=away)
        if away < 1e-4:
            assert [cell.ood for cell in found] == [cell.ood for cell in wanted]
        assert {cell.ood for cell in found} <= {True, False}
        assert pulled.calibration.model_revision == own.place.revision()


def test_files_that_are_not_bound_stay(run: Path, tmp_path: Path) -> None:
    """A calibration that somebody put there belongs to nobody; a changed or missing one stops everything."""
    loose = shutil.copytree(run, tmp_path / "loose")
    config = json.loads((loose / "config.json").read_text())
    del config["binding"]["companions"]
    (loose / "config.json").write_text(json.dumps(config))
    text = publish(loose, "me/x", dry_run=True).text
    assert not COMPANIONS & {line.split()[0] for line in text.split("\nin all")[0].splitlines()}
    changed = shutil.copytree(run, tmp_path / "changed")
    (changed / "calibration.json").write_text("{}")
    with pytest.raises(PublishError, match=r"calibration\.json has sha256 \w{64}, .* bound to \w{64}"):
        publish(changed, "me/x", merged=True, dry_run=True)
    (changed / "calibration.json").unlink()
    with pytest.raises(PublishError, match=r"calibration\.json is missing"):
        publish(changed, "me/x", dry_run=True)


def test_narrow_weights_are_half_the_bytes(published: tuple[Hub, dict[str, Any]]) -> None:
    hub, _ = published
    for wide, narrow, file in (
        ("me/adapter", "me/narrow", "adapter/adapter_model.safetensors"),
        ("me/merged", "me/narrow_merged", "model.safetensors"),
    ):
        assert len(hub.files(narrow)[file]) < 0.56 * len(hub.files(wide)[file])
        assert "may differ by 2% of the largest logit" in hub.files(narrow)["README.md"].decode()
        assert "bfloat16" not in hub.files(wide)["README.md"].decode()


def test_the_published_architecture_fits_260_mb_as_an_adapter(
    run: Path, tmp_path: Path, published: tuple[Hub, dict[str, Any]]
) -> None:
    """Every tensor peft would write for cytodino32, counted without weights, and all else as it was really pushed."""
    from peft import get_peft_model_state_dict
    from transformers import DINOv3ViTConfig

    from cytodino_hf.model_builder import build_config, build_on_meta, count_parameters
    from cytodino_hf.recipe import load_recipe
    from cytodino_hf.taxonomy import MLL

    DINOv3ViTConfig(
        patch_size=16, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096,
        num_register_tokens=4, image_size=224,
    ).save_pretrained(tmp_path)  # fmt: skip
    recipe = load_recipe(
        TESTS.parent.parent / "recipes" / "cytodino32.json", ["--model.backbone", str(tmp_path)]
    )
    model = build_on_meta(recipe, build_config(recipe, MLL))
    tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
    weights = 4 * sum(tensor.numel() for tensor in tensors.values())
    hub, _ = published
    others = sum(len(c) for n, c in hub.files("me/adapter").items() if not n.endswith(".safetensors"))
    assert 250e6 < weights + others <= 260e6
    counts = count_parameters(model)
    everything = counts.backbone + counts.lora + counts.head
    assert 4 * everything == pytest.approx(1.47e9, rel=0.01), "what a save of every tensor takes"


def test_a_run_that_is_not_whole_is_refused(run: Path, tmp_path: Path) -> None:
    def spoilt(name: str, file: str, change: Callable[[bytes], bytes]) -> Path:
        copy = shutil.copytree(run, tmp_path / name)
        (copy / file).write_bytes(change((copy / file).read_bytes()))
        return copy

    flipped = spoilt("flipped", "base/model.safetensors", lambda b: b[:-1] + bytes([b[-1] ^ 1]))
    with pytest.raises(PublishError, match=r"base/model\.safetensors has sha256"):
        publish(flipped, "me/x", dry_run=True)
    running = spoilt("running", "run.json", lambda b: b.replace(b"finished", b"running", 1))
    with pytest.raises(PublishError, match="not come to its end"):
        publish(running, "me/x", dry_run=True)
    with pytest.raises(PublishError, match="no such folder"):
        publish(tmp_path / "nowhere", "me/x", dry_run=True)
    with pytest.raises(PublishError, match="USER/NAME"):
        publish(run, "../x", dry_run=True)
    linked = spoilt("linked", "config.json", lambda b: b)
    (tmp_path / "outside.py").write_text("x = 1")
    (linked / "modeling_cytodino.py").unlink()
    (linked / "modeling_cytodino.py").symlink_to(tmp_path / "outside.py")
    with pytest.raises(PublishError, match="is a link"):
        publish(linked, "me/x", dry_run=True)
    named = spoilt(
        "named", "config.json", lambda b: b.replace(b'"transformers_version"', b'"x": "MRN 88412071", "t"')
    )
    with pytest.raises(LeakError, match=r"config\.json, line \d+: patient"):
        publish(named, "me/x", dry_run=True)


def test_a_backbone_goes_through_the_same_function() -> None:
    from cytodino_hf.recipe_checks import EMBEDDED_FOLDER

    done = publish(EMBEDDED_FOLDER, "me/backbone", dry_run=True)
    listed = {line.split()[0] for line in done.text.split("\nin all")[0].splitlines()}
    assert listed == {path.name for path in EMBEDDED_FOLDER.iterdir()}
    with pytest.raises(PublishError, match="as it is"):
        publish(EMBEDDED_FOLDER, "me/backbone", merged=True, dry_run=True)


def test_a_new_kind_of_model_is_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A made-up kind: known by its config.json, with a card of its own; what its pattern does not name stays."""

    def gather(kind: Kind, folder: Path, work: Path, wish: Wish) -> Gathered:
        (work / "README.md").write_text(f"# {wish.repo_id}\n")
        return Gathered(kind.allowed_files(folder) | {"README.md": work / "README.md"} | more)

    def is_one(folder: Path, config: Mapping[str, Any]) -> bool:
        return config["model_type"] == "bag"

    more: dict[str, Path] = {}
    bag = Kind("bag", r"config\.json|bags/\d+\.safetensors", ("README.md",), is_one, gather, ("bag",))
    monkeypatch.setitem(KINDS, bag.name, bag)
    folder = tmp_path / "run" / "bag"
    (folder / "bags").mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "bag"}')
    save_file({"w": np.zeros(2, np.float32)}, folder / "bags" / "7.safetensors")
    for name in ("optimizer.pt", "bags/training_args.bin", "bags/7.safetensors.bak"):
        (folder / name).write_text("must not leave")
    text = publish(tmp_path / "run", "me/bag", dry_run=True).text
    listed = [line.split()[0] for line in text.split("\nin all")[0].splitlines()]
    assert listed == ["README.md", "bags/7.safetensors", "config.json"]
    assert text.endswith("# me/bag\n")
    more["optimizer.pt"] = folder / "optimizer.pt"
    with pytest.raises(PublishError, match=r"nothing of a bag may be called optimizer\.pt"):
        publish(tmp_path / "run", "me/bag", dry_run=True)


def test_the_hub_section_publishes_at_the_end_and_the_same_command_completes_it(
    cells: Path,
    tmp_path: Path,
    run: Path,
    tiny_recipe: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A base of the Hub in DINOv3's architecture: its licence goes along, its weights do not."""
    document = tiny_recipe(cells, tmp_path / "run", hub={"repo_id": "me/end", "private": True})
    del document["model"]["backbone_config"]
    document["model"]["backbone"] = "lab/base"
    licence = b"DINOv3 stand-in licence, ask legal@lab.example\n"
    files = {path.name: path.read_bytes() for path in (run / "base").iterdir()} | {"LICENSE.md": licence}
    with hub_server() as hub:
        commit = hub.commit("lab/base", files)
        hub.fail(r"me/end/commit", DROP, method="POST")
        hub.asked_from_here(monkeypatch, tmp_path, WRITE_TOKEN)
        recipe = parse_recipe(document, source="test")
        with pytest.raises(PublishError, match="me/end: the connection failed"):
            finetune(recipe)
        finetune(recipe)
        begun = hub.requests.count(("POST", "/api/repos/create"))
        monkeypatch.setenv("HF_TOKEN", READ_TOKEN)
        with pytest.raises(PublishError, match="may only read"):
            finetune(recipe)
        assert hub.requests.count(("POST", "/api/repos/create")) == begun == 2
        bound = json.loads(hub.files("me/end")["config.json"])["binding"]["companions"]["files"]
        assert "appearance.json" in bound
        wanted = (ALWAYS - COMPANIONS) | set(bound) | ADAPTER | {"LICENSE.md"}
        assert set(hub.files("me/end")) - {".gitattributes"} == wanted
        assert hub.files("me/end")["LICENSE.md"] == licence
        assert hub.repos["model", "me/end"].is_private
        card = hub.files("me/end")["README.md"].decode()
        assert f"lab/base at commit {commit}" in card
        assert "license_name: dinov3-license" in card
        assert "base_model: lab/base" in card


def test_the_script_and_the_command_are_one(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from cytodino_hf.cli import main, push_to_hub

    said = []
    for call in (lambda a: main(["publish", *a]), push_to_hub):
        with pytest.raises(SystemExit) as ended:
            call([str(run), "--repo-id", "me/demo", "--dry-run"])
        assert not ended.value.code
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    assert "adapter/adapter_model.safetensors" in said[0]
    with pytest.raises(SystemExit) as ended:
        main(["publish", str(run / "report"), "--repo-id", "me/demo"])
    assert ended.value.code == 1
    assert "holds no model of ours" in capsys.readouterr().err

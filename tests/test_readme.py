"""README and guides stay true: commands, paths and Python blocks are executed or checked."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cytodino_hf.cli import COMMANDS
from cytodino_hf.pretraining.recipe import load_pretrain_recipe
from cytodino_hf.recipe import load_recipe

ROOT = Path(__file__).parent.parent
DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    "RESULTS.md",
    "recipes/README.md",
    "docs/data_policy.md",
    "docs/real_images.md",
]
# Names in the text that a user brings or a run makes.
OF_THE_USER = (
    "runs/",
    "my_",
    "cells.csv",
    "path/to/",
    "report/",
    "adapter/",
    "predictions/",
    "base/",
    ".venv",
)


def blocks(document: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / document).read_text(), re.S)


def commands() -> list[tuple[str, str]]:
    lines = [
        (d, line) for d in DOCUMENTS for block in blocks(d, "bash") for line in block.splitlines() if line
    ]
    inline = [
        (d, code)
        for d in DOCUMENTS
        for code in re.findall(r"`((?:cytodino|make|accelerate launch run) [^`]+)`", (ROOT / d).read_text())
    ]
    return lines + inline


@pytest.mark.parametrize(("document", "command"), commands())
def test_every_command_is_one(
    document: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = shlex.split(command, comments=True)
    while "=" in words[0]:  # a variable for this command only
        words = words[1:]
    if words[0] == "make":
        done = subprocess.run(["make", "--dry-run", words[1]], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    elif words[:2] == ["accelerate", "launch"] or words[0] == "torchrun":
        make_user_folders(tmp_path)
        monkeypatch.chdir(tmp_path)
        if words[2:5] == ["-m", "cytodino_hf", "pretrain"]:
            load_pretrain_recipe(ROOT / words[5], [w for w in words[6:] if w != "--dry-run"])
            return
        script = next(number for number, word in enumerate(words) if word.endswith(".py"))
        assert (ROOT / words[script]).is_file()
        options = [w for w in words[script + 2 :] if w != "--dry-run"]
        load_recipe(ROOT / words[script + 1], options)
    elif words[0] == "cytodino":
        name = tuple(w for w in words[1:3] if not w.startswith("-"))
        groups = {known[:1] for known in COMMANDS if len(known) > 1}
        assert name in COMMANDS or name[:1] in COMMANDS or name in groups
    elif words[0] == "python":
        assert (ROOT / words[1]).is_file()
    elif words[0] == "pip":
        assert all((ROOT / w).exists() for w in words[1:] if w in {"constraints.txt", "."})
    else:
        assert words[0] in {"python3", "hf", "awk"}, command


def make_user_folders(folder: Path) -> None:
    for name in (
        "my_cells",
        "path/to/bone_marrow_cell_dataset",
        "path/to/images",
        "path/to/mll7",
        "path/to/more",
    ):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "path/to/mll7/split.csv").touch()
    (folder / "without_BLA.csv").touch()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_path_exists(document: str) -> None:
    text = (ROOT / document).read_text()
    named = re.findall(r"`([\w./*-]+\.(?:py|json|yaml|md|cfg|txt|toml|csv))`|\]\(([^)#:]+)\)", text)
    for path in {a or b for a, b in named}:
        if path.startswith(OF_THE_USER) or "*" in path or path in made_by_a_run() or "my_" in path:
            continue
        assert any(
            (base / path).exists() for base in (ROOT, ROOT / "recipes", ROOT / document.rpartition("/")[0])
        ), path


def made_by_a_run() -> set[str]:
    names = ("config.json", "recipe.json", "environment.json", "split.csv", "run.json")
    of_some_runs = ("rejected.csv", "near_duplicates.csv", "bad_numbers.json", "images.csv", "left_out.csv")
    for_its_users = ("calibration.json", "appearance.json", "review.csv")
    every = {*names, *of_some_runs, *for_its_users}
    return every | {f"RUN/{name}" for name in every}


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory, cells: Path, run: Path) -> Path:
    """A folder like the one README speaks of: runs/demo and my_cells."""
    folder = tmp_path_factory.mktemp("user")
    root = shutil.copytree(cells, folder / "my_cells")
    (root / "LYT" / "LYT_00001.png").rename(root / "LYT" / "cell.png")
    shutil.copytree(run, folder / "runs" / "demo")
    return folder


@pytest.mark.parametrize("block", [b for d in DOCUMENTS for b in blocks(d, "python")])
def test_every_python_block_runs(block: str, workplace: Path) -> None:
    if "cytodino_hf" not in block:  # the demonstration of use without the package
        block = f"import sys\nsys.modules['cytodino_hf'] = None\n{block}"
    done = subprocess.run([sys.executable, "-c", block], cwd=workplace, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_table_of_a_runs_files_is_true(workplace: Path) -> None:
    run = workplace / "runs" / "demo"
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "README.md").read_text(), re.M)
    named = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    assert len(named) >= 8
    # Of another method; of more calibration images than these
    for name in named - {"model.safetensors", "ood.safetensors"}:
        assert list(run.glob(name.rstrip("/"))), name


def test_the_taxonomy_of_the_readme_is_valid(tmp_path: Path) -> None:
    from cytodino_hf.taxonomy import load_taxonomy

    text = " ".join((ROOT / "README.md").read_text().split())
    (shown,) = re.findall(r'`(\{"classes": .*?\}\})`', text)
    path = tmp_path / "my_classes.json"
    path.write_text(shown.replace(", ...", ', {"code": "B", "lineage": "x"}'))
    assert load_taxonomy(str(path)).neighbours("A") == ("B",)


def test_every_recipe_is_in_the_guide() -> None:
    guide = (ROOT / "recipes" / "README.md").read_text()
    for path in (ROOT / "recipes").glob("*.json"):
        assert f"`{path.name}`" in guide
        assert json.loads(path.read_text())["training"]["output_dir"] == f"runs/{path.stem}"

"""The layout of the house, kept by tests: who imports whom, what travels with a model, what stays light."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cytodino_hf.data.sources import SOURCES
from cytodino_hf.losses import LOSSES

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "cytodino_hf"
FILES = sorted(PACKAGE.rglob("*.py"))

# A stage imports only stages before it, or its own.
STAGES = [
    {"environment", "errors", "files", "kept_reports", "other_sets", "page", "taxonomy"},
    {"recipe", "recipe_checks", "recipe_mistakes"},
    {"data"},
    {"model"},
    {"backbones", "binding", "lora", "model_builder", "model_loading"},
    {"losses"},
    {"checkpoints", "training", "trainer"},
    {"evaluation"},
    {"launch", "folder_lock", "run_folder", "memory", "planning", "recovery"},
    {"kept_run", "run_records", "run_report"},
    {"evaluate", "publishing", "seeds_summary", "symmetries_of_run"},
    {"audit", "finetune", "pretraining", "conversion", "prediction", "probing"},
    {"cli_backbones", "cli_benchmark", "cli_data", "cli_evaluate", "cli_predict", "cli_probe", "cli_publish"},
    {"cli", "__main__"},
]
# Imports inside functions that look forward: tables that say what a recipe may name, and the metrics of training.
LOOKS_FORWARD = {
    ("recipe", "data"), ("recipe", "losses"), ("recipe_checks", "evaluation"), ("trainer", "evaluation"),
}  # fmt: skip
# What a file that travels with a model may import: what transformers brings, and peft inside a try.
TRAVELS_WITH = {
    "torch",
    "transformers",
    "numpy",
    "PIL",
    "safetensors",
    "huggingface_hub",
    "peft",
} | sys.stdlib_module_names


def stage(part: str) -> int:
    for number, parts in enumerate(STAGES):
        if part in parts:
            return number
    raise AssertionError(f"{part} has no place in the order of the house")


def part_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(file: Path) -> Iterator[tuple[str, bool]]:
    """(module, is inside a function) of every import but those for annotations only."""
    package = ("cytodino_hf", *file.relative_to(PACKAGE).parent.parts)

    def walk(node: ast.AST, inside: bool) -> Iterator[tuple[str, bool]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
                continue
            if isinstance(child, ast.Import):
                yield from ((alias.name, inside) for alias in child.names)
            elif isinstance(child, ast.ImportFrom) and child.level:
                base = package[: len(package) - child.level + 1]
                if child.module:
                    yield ".".join((*base, child.module)), inside
                else:
                    yield from ((".".join((*base, alias.name)), inside) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                yield child.module or "", inside
            yield from walk(child, inside or isinstance(child, ast.FunctionDef))

    yield from walk(ast.parse(file.read_text()), False)


@pytest.mark.parametrize(
    "file", [f for f in FILES if f.parent != PACKAGE or f.name != "__init__.py"], ids=str
)
def test_imports_follow_the_way_of_the_data(file: Path) -> None:
    part = part_of(file)
    for module, inside in imports(file):
        if not module.startswith("cytodino_hf."):
            continue
        other = module.split(".")[1]
        if stage(other) > stage(part):
            assert inside, f"{file.name} imports {module} on loading, a later stage"
            assert (part, other) in LOOKS_FORWARD, f"{file.name} looks forward to {module}"


@pytest.mark.parametrize("file", sorted((PACKAGE / "model").glob("*.py")), ids=lambda f: f.name)
def test_files_that_travel_with_a_model_stand_alone(file: Path) -> None:
    for module, _ in imports(file):
        if module.startswith("cytodino_hf."):
            assert module.rpartition(".")[0] == "cytodino_hf.model", f"{file.name}: {module}"
        else:
            assert module.split(".")[0] in TRAVELS_WITH, f"{file.name}: {module}"
    lines = (ast.get_docstring(ast.parse(file.read_text())) or "").splitlines()
    assert not any(line.strip().startswith("from .") for line in lines), (
        "confuses the scanner of transformers"
    )


@pytest.mark.parametrize("file", FILES, ids=str)
def test_no_module_is_too_long_and_no_except_is_bare(file: Path) -> None:
    source = file.read_text()
    assert source.count("\n") <= 350, f"{file.name} is more than a person can hold in mind"
    for node in ast.walk(ast.parse(source)):
        bare = isinstance(node, ast.ExceptHandler) and node.type is None
        assert not bare, f"{file.name}:{node.lineno}"


def test_every_public_function_and_class_is_explained() -> None:
    silent = []
    for file in FILES:
        tree = ast.parse(file.read_text())
        if ast.get_docstring(tree) is None:
            silent.append(str(file.relative_to(ROOT)))
        for node in tree.body:
            is_public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
            if is_public and ast.get_docstring(node) is None:
                silent.append(f"{file.relative_to(ROOT)}: {node.name}")
    assert silent == []


@pytest.mark.parametrize("table", [SOURCES, LOSSES], ids=["SOURCES", "LOSSES"])
def test_every_entry_of_a_table_has_its_file_and_its_test(table: dict) -> None:
    for name in table:
        folder = "data/sources" if table is SOURCES else "losses"
        assert (PACKAGE / folder / f"{name}.py").is_file()
        assert (ROOT / "tests" / folder.split("/")[0] / f"test_{name}.py").is_file()
        assert table[name].summary
        for key, field in table[name].options.model_fields.items():
            assert field.description, f"{name}.{key} is not described"


def test_doctests() -> None:
    import doctest
    import importlib

    for file in FILES:
        if ">>>" in file.read_text():
            name = ".".join(("cytodino_hf", *file.relative_to(PACKAGE).with_suffix("").parts))
            assert doctest.testmod(importlib.import_module(name)).failed == 0, name


def test_no_photograph_and_no_address_of_a_machine_is_in_the_repository() -> None:
    import subprocess

    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("not a git checkout")
    files = [ROOT / name for name in tracked.stdout.split("\n") if name and (ROOT / name).is_file()]
    assert [f.name for f in files if f.suffix.lower() in {".jpg", ".jpeg", ".tif", ".tiff", ".bmp"}] == []
    for file in files:
        if file.suffix in {".py", ".md", ".json", ".cfg", ".toml", ".yaml", ".txt"} and file != Path(
            __file__
        ):
            text = file.read_text(encoding="utf-8")
            assert not re.search(r"/(root|home|Users)/\w", text), (
                f"{file.name} names a folder of somebody's machine"
            )

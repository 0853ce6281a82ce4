"""The benchmarks: right arithmetic, a reference that does the published work, results in one form, tables in place."""

from __future__ import annotations

import ast
import inspect
import json
import math
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from cytodino_hf import cli_benchmark
from cytodino_hf.cli import COMMANDS, main

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # benchmarks/ lies in a checkout and is not installed

from benchmarks import data, models, predict, published_data, published_model, rounds, step  # noqa: E402
from benchmarks.harness import check_settings  # noqa: E402
from benchmarks.pictures import load_folder  # noqa: E402
from benchmarks.results import (  # noqa: E402
    MatrixMultiply,
    Result,
    Row,
    new_result,
    to_markdown,
    update_results,
    write_json,
)
from benchmarks.settings import DataSettings, PredictSettings, Settings, StepSettings, command_line  # noqa: E402
from cytodino_hf.errors import CytoDinoError  # noqa: E402

FILES = sorted((ROOT / "benchmarks").rglob("*.py"))


def seconds(*values: float) -> list[rounds.Round]:
    return [rounds.Round(cpu_s=value, wall_s=2 * value) for value in values]


def made_up_result() -> Result:
    # Ours takes half, a third, a quarter, ... of the reference in each round: ratios 2, 3, 4, 5, 6.
    reference, ours = [8.0, 6.0, 8.0, 5.0, 12.0], [4.0, 2.0, 2.0, 1.0, 2.0]
    return new_result(
        "step",
        "A made-up result",
        command="cytodino benchmark step",
        clock="cpu_s",
        settings={"threads": 1, "backbone": "vits"},
        images=None,
        matrix_multiply={"float32": MatrixMultiply(flops=100.0, rounds=seconds(1, 1, 2, 1, 1))},
        rows=[
            Row(table="t", name="reference", against="reference", units=4, rounds=seconds(*reference)),
            Row(
                table="t", name="ours", against="reference", units=2, flops_per_unit=50.0, peak="float32",
                memory_bytes=2**20, rounds=seconds(*ours),
            ),
            Row(table="t", name="too large", against="reference", units=2, failed="does not fit into memory"),
        ],
        notes=["A note."],
    )  # fmt: skip


def test_a_ratio_is_the_median_over_rounds_with_its_interval() -> None:
    result = made_up_result()
    ratio = result.speed_up(result.row("t", "ours"))
    assert ratio is not None
    # Per unit: the reference does 4 in a round, ours 2, so the ratios of the rounds are halved: 1, 1.5, 2, 2.5, 3.
    assert ratio.value == 2.0
    # The median of 5 draws out of five is one of them; by the binomial law it is the least one with P = 0.058 (three
    # or more of five draws hit it), more than 2.5 %, so that the interval is the whole range.
    assert sum(math.comb(5, k) * 0.2**k * 0.8 ** (5 - k) for k in (3, 4, 5)) == pytest.approx(0.05792)
    assert (ratio.low, ratio.high) == (1.0, 3.0)
    assert result.speed_up(result.row("t", "reference")) is None
    assert result.speed_up(result.row("t", "too large")) is None


def test_what_slows_both_in_a_round_leaves_the_ratio_alone() -> None:
    slow = [1.0, 5.0, 2.0, 9.0]
    assert rounds.speed_up([3 * s for s in slow], slow) == rounds.Ratio(3.0, 3.0, 3.0)
    with pytest.raises(ValueError, match="3 rounds"):
        rounds.speed_up([1.0, 2.0, 3.0], [1.0])


def test_the_interval_of_many_rounds_is_that_of_a_median() -> None:
    # 101 ratios 0.00, 0.01, ..., 1.00: the standard deviation of a resampled median is about 1 / (2 f sqrt(n)), f = 1.
    ratio = rounds.speed_up(np.arange(101) / 100, [1.0] * 101)
    half = 1.96 / (2 * math.sqrt(101))
    assert ratio.value == 0.5
    assert ratio.low == pytest.approx(0.5 - half, abs=0.02)
    assert ratio.high == pytest.approx(0.5 + half, abs=0.02)


def test_the_share_of_the_peak_is_taken_round_by_round() -> None:
    result = made_up_result()
    share = result.share_of_peak(result.row("t", "ours"))
    assert share is not None
    # Rates of ours: 2 units x 50 / seconds = 25, 50, 50, 100, 50; peaks: 100, 100, 50, 100, 100.
    expected = [0.25, 0.5, 1.0, 1.0, 0.5]
    assert share.median == statistics.median(expected)
    assert (share.least, share.greatest) == (0.25, 1.0)
    assert result.share_of_peak(result.row("t", "reference")) is None


def test_cells_run_in_turn_and_each_begins_a_round_in_its_turn() -> None:
    calls: list[tuple[str, int]] = []
    cells = {name: (lambda number, name=name: calls.append((name, number))) for name in "abc"}
    found = rounds.interleave(cells, rounds=3, warm_up=1)
    assert [number for _, number in calls] == [-1] * 3 + [0] * 3 + [1] * 3 + [2] * 3
    assert [calls[begin][0] for begin in (3, 6, 9)] == ["a", "b", "c"]
    assert {name: len(times) for name, times in found.items()} == {"a": 3, "b": 3, "c": 3}


def test_results_go_to_json_and_back_and_into_their_place(tmp_path: Path) -> None:
    result = made_up_result()
    write_json(tmp_path / "new" / "result.json", result)
    text = (tmp_path / "new" / "result.json").read_text()
    assert Result.model_validate_json(text) == result
    assert json.loads(text)["rows"][1]["rounds"][4] == {"cpu_s": 2.0, "wall_s": 4.0, "device_s": None}
    page = tmp_path / "RESULTS.md"
    page.write_text("# Results\n\nHow to read.\n")
    update_results(page, result)
    update_results(page, result.model_copy(update={"notes": ["Another note with \\1."]}))
    shown = page.read_text()
    assert shown.startswith("# Results\n\nHow to read.\n")
    assert shown.count("### A made-up result") == 1
    assert "A note." not in shown
    assert "Another note with \\1." in shown
    row = next(line for line in shown.splitlines() if line.startswith("| ours"))
    # 2 s for 2 units: 1,000 ms each; 1 unit a second; twice as fast; 50 % of the peak; 1 MiB.
    assert "1,000 (" in row
    assert row.endswith("| 1.00 | 2.00 (1.00 to 3.00) | 50% | 1 |")
    assert "| too large | does not fit into memory |" in shown


def test_the_reference_does_the_published_ops_in_their_order() -> None:
    def ops(transform: object) -> list[tuple[str, float]]:
        return [(type(op).__name__, op.p) for op in transform.transforms]  # type: ignore[attr-defined]

    training = published_data.training_transform()
    assert ops(training) == [
        ("Resize", 1), ("HorizontalFlip", 0.5), ("VerticalFlip", 0.5), ("Rotate", 0.5), ("OneOf", 0.5),
        ("OneOf", 0.3), ("CLAHE", 0.3), ("Normalize", 1.0), ("ToTensorV2", 1.0),
    ]  # fmt: skip
    resize, rotate, colour, fault, clahe = (training.transforms[i] for i in (0, 3, 4, 5, 6))
    assert (resize.height, resize.width) == (256, 256)
    assert (rotate.limit, rotate.fill) == ((-180, 180), 0)
    jitter, shift = colour.transforms
    assert (jitter.brightness, jitter.contrast) == ((0.9, 1.1), (0.9, 1.1))
    assert (jitter.saturation, jitter.hue) == ((0.85, 1.15), (-0.03, 0.03))
    assert (shift.r_shift_limit, shift.g_shift_limit, shift.b_shift_limit) == ((-15, 15),) * 3
    blur, noise, compression = fault.transforms
    assert blur.blur_limit == (3, 5)
    assert (noise.color_shift, noise.intensity) == ((0.01, 0.05), (0.1, 0.5))
    assert compression.quality_range == (9, 100)
    assert clahe.clip_limit == (1, 2.0)
    # Each choice of a OneOf is equally likely.
    assert colour.transforms_ps == [0.5, 0.5]
    assert fault.transforms_ps == pytest.approx([1 / 3] * 3)
    assert ops(published_data.evaluation_transform()) == [
        ("Resize", 1),
        ("Normalize", 1.0),
        ("ToTensorV2", 1.0),
    ]


def test_both_data_paths_give_the_same_evaluation_picture(
    tmp_path: Path, make_images: Callable[..., Path]
) -> None:
    root = make_images(tmp_path / "images", classes=("BLA", "LYT"), per_class=3, side=250)
    images = load_folder(root)
    paths = [str(root / path) for path in images.column("path")]
    theirs = published_data.PublishedDataset(paths, images.labels, published_data.evaluation_transform())
    ours = data.our_dataset(images, "none", None)
    for row in range(len(ours)):
        item = ours[row]
        pixels = torch.from_numpy(item["pixel_values"]).permute(2, 0, 1)[None]
        # The two ways of resizing round differently: one step of 255, over the smallest deviation.
        difference = (ours.processor.normalize_batch(pixels)[0] - theirs[row][0]).abs().max().item()
        assert difference <= 1.01 / 255 / min(published_data.IMAGE_STD)
        assert item["labels"] == theirs[row][1]


def test_the_reference_model_has_the_published_size() -> None:
    with torch.device("meta"):
        model = models.build_published("vitl")
    sizes = dict.fromkeys(("backbone", "lora", "head", "trained"), 0)
    for name, parameter in model.named_parameters():
        part = "lora" if "lora_" in name else name.partition(".")[0]
        sizes[part] += parameter.numel()
        sizes["trained"] += parameter.numel() if parameter.requires_grad else 0
    # 24 blocks x 64 x (4 x (1024 + 1024) + 2 x (1024 + 4096)); the others as published: 303.13 M and 50.43 M.
    assert sizes["lora"] == 24 * 64 * (4 * 2048 + 2 * 5120)
    assert sizes["backbone"] == pytest.approx(303.13e6, rel=1e-4)
    assert sizes["head"] == pytest.approx(50.43e6, rel=1e-4)
    assert sizes["trained"] == sizes["lora"] + sizes["head"]
    layer = model.head.decoder.layers[0]
    assert len(model.head.decoder.layers) == 4
    assert (layer.multihead_attn.num_heads, layer.linear1.out_features, layer.norm_first) == (4, 2048, True)


def test_operations_are_counted_as_by_hand() -> None:
    width, tokens, rank, blocks = 32, 261, published_model.LORA_RANK, 2
    linear = 4 * width * width + 2 * width * 4 * width
    lora = rank * (4 * 2 * width + 2 * (width + 4 * width))
    attention = 2 * tokens * width  # scores and sums, for each token
    embedding = 2 * 256 * 3 * 16 * 16 * width
    trunk = blocks * 2 * tokens * (linear + lora + attention) + embedding
    # Each layer of the head projects keys and values of all tokens, and sums over them; the query is one token.
    head = 4 * (2 * tokens * (2 * width * width) + 2 * 2 * tokens * width)
    theirs, ours = models.flops_of("tiny", with_backward=False)
    assert theirs == pytest.approx(trunk + head, rel=0.01)
    # Ours weighs the tokens themselves, once for each of four heads of 8.
    assert ours == pytest.approx(trunk + 4 * 4 * (2 * 2 * tokens * width), rel=0.01)
    assert models.flops_of("tiny", with_backward=False, merged=True)[1] < ours


def test_both_models_say_the_same_with_the_same_weights_and_learn_alike(tmp_path: Path) -> None:
    ours = models.build_ours(models.benchmark_recipe("tiny", 2, tmp_path)).eval()
    theirs = models.build_published("tiny").eval()
    models.give_weights(ours, theirs)
    loss = models.published_loss()
    pixels, labels = (
        torch.randn(2, 3, 256, 256, generator=torch.Generator().manual_seed(0)),
        torch.tensor([3, 17]),
    )
    a, b = ours(pixel_values=pixels).logits, theirs(pixels)
    torch.testing.assert_close(a, b, atol=1e-5, rtol=0)
    loss(a, labels).backward()
    loss(b, labels).backward()
    gradients = [
        [
            (n, p.grad)
            for n, p in model.named_parameters()
            if n.endswith("layer.1.mlp.up_proj.lora_B.default.weight")
        ]
        for model in (ours, theirs)
    ]
    assert [len(found) for found in gradients] == [1, 1]
    torch.testing.assert_close(gradients[0][0][1], gradients[1][0][1], atol=1e-6, rtol=1e-4)


def test_a_published_step_is_one_update_of_four_pictures() -> None:
    class Recorded(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(3, 2))
            self.seen: list[int] = []

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            self.seen.append(len(pixels))
            return pixels.mean((2, 3)) @ self.weight

    model = Recorded()
    step = published_model.PublishedStep(model, torch.nn.CrossEntropyLoss())  # type: ignore[arg-type]
    pixels, labels = (
        torch.rand(4, 3, 2, 2, generator=torch.Generator().manual_seed(1)),
        torch.tensor([0, 1, 1, 1]),
    )
    step(pixels, labels)
    assert model.seen == [1, 1, 1, 1]
    # Adam's first step is the rate times the sign of the gradient, here that of the mean loss at equal logits.
    x = pixels.mean((2, 3))
    gradient = x.T @ (0.5 - torch.nn.functional.one_hot(labels, 2).float()) / 4
    torch.testing.assert_close(model.weight.detach(), -3e-4 * gradient.sign(), atol=1e-6, rtol=0)


def test_agreement_is_counted_in_pictures() -> None:
    reference = np.array([[1.0, 0.0], [0.0, 3.0], [2.0, 1.0]])
    ours = np.array([[1.0, 0.0], [0.0, 3.5], [1.0, 1.5]])
    said = predict.compare_logits(reference, ours)
    assert "2 of 3 pictures with equal arg max (66.7%)" in said
    assert "largest difference of a logit 1.0e+00 (median lead of the first class 1, largest logit 3)" in said


def test_the_command_is_repeated_without_folders() -> None:
    settings = DataSettings(images=Path("somewhere") / "mll", images_name="MLL, 1,400 images", memory=False)
    assert command_line("data", settings) == (
        "cytodino benchmark data --no-memory --images ROOT --images-name 'MLL, 1,400 images'"
    )
    quick = check_settings(StepSettings, {"quick": True, "batch_sizes": (64,), "rounds": 9, "compile": True})
    assert command_line("step", quick) == "cytodino benchmark step --quick --device cpu --compile"


@pytest.mark.parametrize(
    ("command", "model"),
    [
        (cli_benchmark.data, DataSettings),
        (cli_benchmark.step, StepSettings),
        (cli_benchmark.predict, PredictSettings),
    ],
    ids=lambda value: value.__name__,
)
def test_the_command_has_the_defaults_of_the_settings(
    command: Callable[..., None], model: type[Settings]
) -> None:
    options = {name: p.default for name, p in inspect.signature(command).parameters.items()}
    assert set(options) - {"json", "results"} == set(model.model_fields)
    for name, field in model.model_fields.items():
        if name != "device":  # found out when it runs
            wanted = field.default
            assert options[name] == (",".join(map(str, wanted)) if isinstance(wanted, tuple) else wanted), (
                name
            )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["step", "--backbone", "vitx"], "--backbone vitx"),
        (["step", "--precisions", "float8"], "--precisions float8"),
        (["predict", "--batch-sizes", "4,many"], "--batch-sizes 4,many: must be whole numbers"),
        (["data", "--images", "no-such-folder"], "no-such-folder"),
    ],
)
def test_mistakes_are_named(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["benchmark", *arguments])
    assert stop.value.code == 1
    assert said in capsys.readouterr().err


def test_outside_a_checkout_the_command_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_benchmark, "_CHECKOUT", tmp_path)
    with pytest.raises(CytoDinoError, match="clone the repository"):
        cli_benchmark.startup(quick=True)


@pytest.mark.parametrize("name", ["data", "step", "predict", "startup"])
def test_every_benchmark_runs_and_writes_both_forms(
    name: str, tmp_path: Path, make_images: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--quick", "--json", str(tmp_path / "out.json"), "--results", str(tmp_path / "RESULTS.md")]
    reads_images = name in ("step", "predict")  # `data` draws its own
    if reads_images:
        root = make_images(tmp_path / "images", side=250, per_class=4)
        options += ["--images", str(root), "--images-name", "coloured squares"]
    try:
        with pytest.raises(SystemExit) as stop:
            main(["benchmark", name, *options])
    finally:
        torch.set_num_threads(1)
    assert not stop.value.code
    result = Result.model_validate_json((tmp_path / "out.json").read_text())
    assert result.benchmark == name
    images = " --images ROOT --images-name 'coloured squares' --device cpu" if reads_images else ""
    assert result.command == f"cytodino benchmark {name} --quick{images}"
    assert str(tmp_path) not in (tmp_path / "out.json").read_text()
    assert all(len(row.rounds) == result.settings["rounds"] for row in result.rows)
    assert all(r.cpu_s >= 0 and r.wall_s > 0 for row in result.rows for r in row.rounds)
    compared = [row for row in result.rows if row.against]
    assert any(row.name == row.against and row.name.startswith("published") for row in compared)
    assert any(row.name.startswith("ours") for row in compared)
    assert to_markdown(result) in capsys.readouterr().out.strip()
    assert to_markdown(result) in (tmp_path / "RESULTS.md").read_text()
    if name == "data":
        assert result.images is not None
        assert "(synthetic)" in result.images.name
    if reads_images:
        assert "Images: coloured squares" in to_markdown(result)
        assert all(result.share_of_peak(row) for row in result.rows)
        assert set(result.matrix_multiply) == {"float32", "bfloat16"}
    if name == "step":
        differences = [float(text.split(")")[0]) for text in result.notes[1].split("difference ")[1:]]
        assert differences[0] < 1e-5  # the same mathematics in float32
        assert differences[1] < 1e-2  # and in bfloat16


@pytest.mark.slow
def test_starting_is_measured_for_every_command(tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["benchmark", "startup", "--rounds", "1", "--json", str(tmp_path / "out.json")])
    assert not stop.value.code
    result = Result.model_validate_json((tmp_path / "out.json").read_text())
    # Help loads nothing heavy: far more than ten times as fast as importing the libraries.
    faster = {row.name: result.speed_up(row) for row in result.rows[1:]}
    assert len(faster) == 3
    assert faster["ours: cytodino --help"].value > 10  # type: ignore[union-attr]


def test_each_cell_is_built_by_its_name_for_its_peak_memory(
    tmp_path: Path, make_images: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CYTODINO_CACHE", str(tmp_path / "cache"))
    root = {"root": str(make_images(tmp_path / "images", side=250, per_class=4))}
    small = {"backbone": "tiny", "batch_sizes": (2,), "precisions": ("bfloat16",)}
    data_settings = DataSettings(pictures=4, batch_size=2).model_dump() | {"kind": "training"} | root
    step_settings = StepSettings(**small, checkpointing=True)  # type: ignore[arg-type]
    predict_settings = PredictSettings(**small)  # type: ignore[arg-type]
    works = [
        data.build(data_settings, name) for name in data._cell_names("training") if "published, batch" in name
    ]
    works.append(data.build(data_settings, "ours, pixels cached"))
    works += [
        step.build(step_settings.model_dump(mode="json") | root, name)
        for name in (step._PUBLISHED, *step._our_cells(step_settings))
    ]
    works += [
        predict.build(predict_settings.model_dump(mode="json") | root, name)
        for name in (predict._PUBLISHED, *predict._our_cells(predict_settings))
    ]
    from_files = predict_settings.model_copy(update={"files": True})
    works += [
        predict.build(from_files.model_dump(mode="json") | root, name)
        for name in (predict._PUBLISHED, *predict._our_cells(from_files))
    ]
    assert len(works) == 10
    for work in works:
        for number in range(2):
            work(number)


def test_peak_memory_is_that_of_the_cell(tmp_path: Path) -> None:
    (tmp_path / "benchmarks").mkdir()
    task = {"module": "hungry", "settings": {"threads": 1}, "name": "64"}
    program = f"""
import sys, types
module = types.ModuleType("benchmarks.hungry")
def build(settings, name):
    return lambda number: bytearray(b"x") * (int(name) * 2**20)
module.build = build
sys.modules["benchmarks.hungry"] = module
from benchmarks.peak import _run
small = _run({task!r} | {{"name": "1"}})
print(_run({task!r}) - small)
"""
    out = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert 60 * 2**20 < int(out.stdout) < 72 * 2**20


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.name)
def test_the_house_holds_for_benchmarks_too(file: Path) -> None:
    tree = ast.parse(file.read_text())
    assert file.read_text().count("\n") <= 350
    assert ast.get_docstring(tree)
    public = [
        n for n in tree.body if isinstance(n, ast.FunctionDef | ast.ClassDef) and not n.name.startswith("_")
    ]
    assert [n.name for n in public if ast.get_docstring(n) is None] == []


def test_results_name_every_command_that_can_be_run_again() -> None:
    text = (ROOT / "RESULTS.md").read_text()
    commands = [line.strip("`") for line in text.splitlines() if line.startswith("`cytodino benchmark ")]
    known = {words[1] for words in COMMANDS if words[0] == "benchmark"}
    assert {"data", "step", "predict", "startup"} <= {command.split()[2] for command in commands} <= known

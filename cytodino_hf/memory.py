"""How much memory a training will take, found by running its steps on tensors without content.

Torch's fake tensors carry shape, type and lifetime but no numbers, so one forward, backward and evaluation of the
largest model takes seconds and no memory. Every storage that comes to life and dies on the way is counted: saved
activations, the weights autocast casts, gradients, temporaries.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .lora import merged_for_evaluation

#: What a step may take of a 16 GB card; the rest is left to the driver and the screen.
CARD_BYTES = 15 * 10**9
# Adam's two moments of a float32 weight.
_MOMENTS = 8
# What the allocators take beyond the tensors, as a share of what comes and goes in a step. CPU: the holes of glibc's
# heap with `use_large_pages`; `tests/test_memory.py` holds the estimate against the peaks of real trainings.
# GPU: assumed for torch's caching allocator, not measured.
_CPU_SLACK, _GPU_SLACK = 0.85, 0.10
# CPU: kernels that are compiled on first use. GPU: context, kernels and workspaces (the usual size, not measured).
_CPU_KERNELS, _GPU_RUNTIME = 50 * 2**20, 2**30


@dataclass(frozen=True)
class Memory:
    """Estimated peak of one training process, bytes.

    Args:
        weights: All weights, with the untouched second copy of the head that peft keeps.
        gradients_and_moments: Of the parameters that train, for AdamW.
        activations: The most that comes and goes in a training step beside those: saved activations, cast weights,
            temporaries.
        evaluation: The same of an evaluation, with the merged copy of the weights; no gradient is held then.
        runtime: What this process held before any model.
    """

    weights: int
    gradients_and_moments: int
    activations: int
    evaluation: int
    runtime: int

    @property
    def on_cpu(self) -> int:
        """Peak of the process on a CPU, with its runtime and the heap's slack."""
        return self._peak(_CPU_SLACK) + self.runtime + _CPU_KERNELS

    @property
    def on_gpu(self) -> int:
        """Peak on a GPU, with its context and the allocator's slack."""
        return self._peak(_GPU_SLACK) + _GPU_RUNTIME

    @property
    def fits_card(self) -> bool:
        """Whether a 16 GB card suffices."""
        return self.on_gpu <= CARD_BYTES

    def _peak(self, slack: float) -> int:
        moments = self.gradients_and_moments * 2 // 3
        training = self.gradients_and_moments + (1 + slack) * self.activations
        evaluation = moments + (1 + slack) * self.evaluation
        return int(self.weights + max(training, evaluation))


def estimate_memory(
    model: nn.Module,
    *,
    image_size_px: int,
    batch_size: int,
    eval_batch_size: int = 1,
    accumulates: bool = False,
    autocast: bool = False,
    checkpointing: bool = False,
    runtime: int = 0,
) -> Memory:
    """Estimate the memory of training from a model without content.

    Args:
        model: On the meta device, in training mode. It is used up: its weights become fake tensors.
        image_size_px: Side of the pictures.
        batch_size: Pictures of one micro-batch.
        eval_batch_size: Pictures of one batch of an evaluation.
        accumulates: Whether a step has several micro-batches, so that gradients are held during a forward pass.
        autocast: Computation in bf16.
        checkpointing: Activations of the backbone are computed again instead of kept.
        runtime: Bytes the process holds before any model.
    """
    if checkpointing:
        model.activation_checkpointing_enable()  # type: ignore[operator]
        model.train()
    dtype = torch.bfloat16 if autocast else None

    def train() -> torch.Tensor:
        pixels = torch.zeros(batch_size, 3, image_size_px, image_size_px)
        labels = torch.zeros(batch_size, dtype=torch.int64)
        with torch.autocast("cpu", dtype=dtype, enabled=autocast):
            logits = model(pixel_values=pixels).logits
        return F.cross_entropy(logits.float(), labels)

    def evaluate() -> None:
        model.eval()
        with merged_for_evaluation(model, dtype), torch.autocast("cpu", dtype=dtype, enabled=autocast):
            model(pixel_values=torch.zeros(eval_batch_size, 3, image_size_px, image_size_px))

    return estimate_step(model, train, evaluate, accumulates=accumulates, runtime=runtime)


def estimate_step(
    model: nn.Module,
    train: Callable[[], torch.Tensor],
    evaluate: Callable[[], None],
    *,
    accumulates: bool,
    runtime: int,
) -> Memory:
    """Estimate the memory of any training from one micro-batch and one batch of an evaluation.

    Args:
        model: On the meta device. It is used up: its weights become fake tensors.
        train: Makes a micro-batch of fake tensors and gives its loss.
        evaluate: Makes a batch of an evaluation and computes its answers; without gradients.
        accumulates: Whether a step has several micro-batches, so that gradients are held during a forward pass.
        runtime: Bytes the process holds before any model.
    """
    with fake_tensors():
        model._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))
        with _Storages() as storages:
            weights = storages.count(model.parameters())
            trainable = [p for p in model.parameters() if p.requires_grad]
            for parameter in trainable if accumulates else ():
                parameter.grad = torch.zeros_like(parameter)
            storages.peak = storages.held
            train().backward()  # type: ignore[no-untyped-call]
            training = storages.peak
            for parameter in trainable:
                parameter.grad = None
            storages.peak = storages.held
            with torch.no_grad():
                evaluate()
            evaluation = storages.peak
    gradients = sum(p.numel() * p.element_size() for p in trainable)
    return Memory(
        weights=weights,
        gradients_and_moments=gradients + _MOMENTS * sum(p.numel() for p in trainable),
        activations=training - weights - gradients,
        evaluation=evaluation - weights,
        runtime=runtime,
    )


@contextmanager
def fake_tensors() -> Iterator[FakeTensorMode]:
    """Torch's fake tensors, of which nothing stays behind when the mode ends.

    DINOv3 keeps the coordinates of its patches for the whole process, by size and device: asked for once with a tensor
    without content, it would give that to every later model.
    """
    from transformers.models.dinov3_vit import modeling_dinov3_vit as dinov3

    kept = dinov3.get_patches_center_coordinates
    dinov3.get_patches_center_coordinates = kept.__wrapped__
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode:
            yield mode
    finally:
        dinov3.get_patches_center_coordinates = kept


class _Storages(TorchDispatchMode):
    """Counts the bytes of all storages alive, and the most there ever were (`peak`)."""

    def __init__(self) -> None:
        super().__init__()
        self.held = self.peak = 0
        self._sizes: dict[int, int] = {}

    def count(self, tensors: Any) -> int:
        """Take note of tensors that were made before; the bytes now held."""
        for tensor in tensors:
            self._note(tensor)
        return self.held

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._note(leaf)
        return result

    def _note(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._sizes:
            self._sizes[key] = storage.nbytes()
            weakref.finalize(storage, self._forget, key)
            self.held += storage.nbytes()
            self.peak = max(self.peak, self.held)

    def _forget(self, key: int) -> None:
        self.held -= self._sizes.pop(key)


def smaller_batch(size: int, accumulation: int) -> tuple[int, int]:
    """The next smaller micro-batch with as many times more accumulation: half, or the largest part that divides.

    Example:
        >>> smaller_batch(16, 1), smaller_batch(9, 2), smaller_batch(5, 1)
        ((8, 2), (3, 6), (1, 5))
    """
    parts = next(n for n in range(2, size + 1) if size % n == 0)
    return size // parts, accumulation * parts

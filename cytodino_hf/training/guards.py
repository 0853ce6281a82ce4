"""Bad numbers: a NaN or infinite loss or gradient stops the run before it touches a weight, and names the images.

On a GPU nothing waits for the check: a flag on the device is raised by the bad step and stays up, fused optimizers skip
every update while it is up, and the host reads the flag of one step while the next is computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import BadNumbersError
from .remedies import Remedies

# Ids and parameters in a message; the file holds all.
_SHOWN_IDS = 8
_SHOWN_PARAMETERS = 2


@dataclass
class StepRecord:
    """What one optimizer step saw; everything stays on the device until something is wrong.

    Args:
        step: Its number, from 1.
        rows: Row numbers of each micro-batch.
        losses: Loss of each micro-batch.
        logits: Logits of each micro-batch.
        total: Sum of losses and gradient norm; None until the step is complete.
        gradient_norm: Before clipping.
    """

    step: int = 0
    rows: list[Tensor | None] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)
    total: Tensor | None = None
    gradient_norm: Tensor | None = None


class NumberGuard:
    """Watches the numbers of a training loop without making the host wait for a GPU.

    Args:
        device: Where the model computes.
        ids_of: Row numbers -> ids of training images.
        kept: What a checkpoint holds of the model, by name: it must be finite when it is trained on or saved.
        remedies: What the user may change.
        processes: Processes that train together; all stop at the same step.
    """

    def __init__(
        self,
        device: torch.device,
        ids_of: Callable[[list[int]], list[str]],
        kept: Callable[[], Mapping[str, Tensor]],
        remedies: Remedies,
        processes: int = 1,
    ) -> None:
        self.device = device
        self.ids_of, self.kept, self.remedies = ids_of, kept, remedies
        self.processes = processes
        self.model: nn.Module | None = None
        self.is_deferred = False
        self._scaled = False
        self._current = StepRecord()
        self._records: list[StepRecord] = []
        self._flag = torch.zeros((), device=device)
        self._mirror = torch.zeros((), pin_memory=device.type == "cuda")
        self._event = torch.cuda.Event() if device.type == "cuda" else None
        self._is_mirrored = False

    def begin(self, model: nn.Module, optimizer: Any, scaler: Any) -> None:
        """Start to watch a training loop.

        Args:
            model: What trains. Its weights must be finite now.
            optimizer: torch's own or accelerate's wrapper. Of a fused one on a GPU the check is put off by one step.
            scaler: Of fp16, or None. Infinite gradients are its business: it skips the step and lowers its scale.

        Raises:
            BadNumbersError: The weights are bad already.
        """
        self.is_deferred = self._is_mirrored = False
        self._current, self._records = StepRecord(), []
        self._flag.zero_()
        self.model = model
        self._scaled = scaler is not None
        self.check_weights("at the start of training")
        inner = getattr(optimizer, "optimizer", optimizer)
        fused = all(group.get("fused") for group in inner.param_groups)
        if self.device.type == "cuda" and fused and not self._scaled:
            self.defer(inner)

    def defer(self, optimizer: torch.optim.Optimizer) -> None:
        """Let a fused optimizer skip its updates on the device while the flag is up; the host looks a step later."""
        self.is_deferred = True
        optimizer.found_inf = self._flag  # type: ignore[attr-defined]  # fused kernels look for it

    def note_batch(self, rows: Tensor | None, loss: Tensor, logits: Tensor) -> None:
        """Remember one micro-batch of the step under way: row numbers (batch,), its loss, logits (batch, classes)."""
        self._current.rows.append(rows)
        self._current.losses.append(loss.detach())
        self._current.logits.append(logits.detach())

    def end_step(self, step: int, gradient_norm: Tensor) -> None:
        """Judge a step whose gradients are complete, before the optimizer uses them.

        Raises:
            BadNumbersError: This step, or the one before it where the check is put off, is bad.
        """
        record, self._current = self._current, StepRecord()
        record.step, record.gradient_norm = step, gradient_norm
        parts = [loss.float() for loss in record.losses] + ([] if self._scaled else [gradient_norm.float()])
        record.total = torch.stack(parts).sum()
        # Stays up once it is up: later steps must not move the weights either.
        self._flag.masked_fill_(~torch.isfinite(record.total), 1.0)
        if self.processes > 1:  # all ranks stop together
            torch.distributed.all_reduce(self._flag, torch.distributed.ReduceOp.MAX)
        self._records = [*self._records[-1:], record]
        if not self.is_deferred:
            self.settle()
            return
        self._read_previous()
        self._mirror.copy_(self._flag, non_blocking=True)
        if self._event is not None:
            self._event.record()
        self._is_mirrored = True

    def settle(self) -> None:
        """Make sure that no step so far was bad; needed before logging, evaluating, saving and the end.

        Raises:
            BadNumbersError: One was.
        """
        if self._value(self._flag):
            self._stop()

    def check_weights(self, when: str) -> None:
        """Refuse weights that are not finite, before they are saved or trained on.

        Raises:
            BadNumbersError: Names the first of them.
        """
        if not (bad := not_finite(self.kept())):
            return
        raise BadNumbersError(
            f"{when} weights are not finite: {_some(bad, _SHOWN_PARAMETERS)}. They were not saved. The newest "
            "checkpoint is older than the damage; where the same command comes back here, start anew with a lower "
            f"{self.remedies.learning_rate} in another training.output_dir.",
            {"when": when, "weights": bad},
        )

    def _read_previous(self) -> None:
        if not self._is_mirrored:
            return
        if self._event is not None:
            self._event.synchronize()  # the step before is over by now, or nearly: this one is queued behind it
        if self._value(self._mirror):
            self._stop()

    @staticmethod
    def _value(flag: Tensor) -> bool:
        # On the CPU by way of numpy: the memory is read, no operator is called.
        return bool(flag.numpy()) if flag.device.type == "cpu" else bool(flag.item())

    def _stop(self) -> None:
        bad = [r for r in self._records if r.total is not None and not math.isfinite(r.total.item())]
        record = bad[0] if bad else self._records[-1]
        findings = self._describe(record)
        if self.processes > 1:
            gathered: list[Any] = [None] * self.processes
            torch.distributed.all_gather_object(gathered, findings)
            findings = _joined(gathered)
        raise BadNumbersError(f"{_message(findings)}\n{self.remedies.numbers}", findings)

    def _describe(self, record: StepRecord) -> dict[str, Any]:
        batches = []
        for rows, loss, logits in zip(record.rows, record.losses, record.logits, strict=True):
            ids = self.ids_of(rows.tolist()) if rows is not None else []
            bad = (~torch.isfinite(logits).flatten(1).all(1)).tolist()
            batches.append(
                {
                    "loss": _plain(loss.item()),
                    "ids": ids,
                    "ids_with_bad_logits": [name for name, is_bad in zip(ids, bad, strict=False) if is_bad],
                }
            )
        norm, model = record.gradient_norm, self.model
        # The gradients at hand are those of the newest step.
        is_newest = record is self._records[-1]
        return {
            "step": record.step,
            "gradient_norm": _plain(norm.item()) if norm is not None else None,
            "micro_batches": batches,
            "gradients": bad_gradients(model) if model is not None and is_newest else None,
            # Not all that is kept: a moving mean takes up the bad numbers of the very step that is told of here.
            "weights": not_finite(dict(model.named_parameters())) if model is not None else [],
        }


class EvaluationGuard:
    """Collects which images of an evaluation got logits that are not finite; the host looks once, at the end."""

    def __init__(self) -> None:
        self._rows: list[Tensor] = []
        self._is_bad: list[Tensor] = []

    def note_batch(self, rows: Tensor | None, logits: Tensor) -> None:
        """Remember a batch: row numbers (batch,), logits (batch, classes)."""
        if rows is not None:
            self._rows.append(rows)
            self._is_bad.append(~torch.isfinite(logits).flatten(1).all(1))

    def finish(
        self, what: str, ids_of: Callable[[list[int]], list[str]], remedy: str, processes: int = 1
    ) -> None:
        """Stop where there was any.

        Args:
            what: Name of the images, for the message.
            ids_of: Row numbers -> ids.
            remedy: What the user may change.
            processes: Processes that evaluate together; all stop.

        Raises:
            BadNumbersError: Names the images.
        """
        rows = torch.cat(self._rows)[torch.cat(self._is_bad)].tolist() if self._rows else []
        if processes > 1:
            gathered: list[Any] = [None] * processes
            torch.distributed.all_gather_object(gathered, rows)
            rows = [row for of_rank in gathered for row in of_rank]
        if rows:
            refuse_bad_logits(what, ids_of(sorted(set(rows))), remedy)


def refuse_bad_logits(what: str, ids: Sequence[str], remedy: str) -> None:
    """Stop because some images got logits that are not finite; an arg max of them would mean nothing.

    Args:
        what: Name of the images, for the message.
        ids: Of those.
        remedy: What the user may change.

    Raises:
        BadNumbersError: Always.
    """
    count = "one image" if len(ids) == 1 else f"{len(ids)} images"
    raise BadNumbersError(
        f"{what}: the model's answer is not finite for {count}: {_some(ids)}. Nothing was chosen or "
        f"reported by it. {remedy}",
        {"evaluation": what, "ids": list(ids)},
    )


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """`torch.nn.utils.clip_grad_norm_` that leaves bad gradients as they are, so that they can still be told apart.

    Args:
        parameters: Whose gradients.
        max_norm: The norm they get at most; 0 clips nothing.

    Returns:
        The norm before.
    """
    found = [p for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in found if p.grad is not None])
    if max_norm > 0:
        # A norm of zero gives the factor one.
        torch.nn.utils.clip_grads_with_norm_(found, max_norm, norm.nan_to_num(0.0, 0.0, 0.0))
    return norm


def bad_gradients(model: nn.Module) -> list[str]:
    """Names of parameters whose gradient is not finite; one wait for the device."""
    return not_finite({name: p.grad for name, p in model.named_parameters() if p.grad is not None})


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of tensors with an entry that is not finite; one wait for the device."""
    # A backbone without register tokens has an empty parameter for them, and nothing has no largest magnitude.
    filled = {name: tensor.detach() for name, tensor in tensors.items() if tensor.numel()}
    if not filled:
        return []
    # The largest magnitude is not finite where any entry is not.
    norms = torch.stack([norm.float() for norm in torch._foreach_norm(list(filled.values()), math.inf)])
    finite = torch.isfinite(norms).tolist()
    return [name for name, is_finite in zip(filled, finite, strict=True) if not is_finite]


def _joined(findings: list[dict[str, Any]]) -> dict[str, Any]:
    batches = [
        batch | {"process": rank} for rank, found in enumerate(findings) for batch in found["micro_batches"]
    ]
    return findings[0] | {"micro_batches": batches}


def suspects_first(findings: dict[str, Any]) -> list[str]:
    """Ids of a bad step: first images with bad logits, then the rest of micro-batches with a bad loss, then all."""
    batches = findings["micro_batches"]
    ordered = [name for batch in batches for name in batch["ids_with_bad_logits"]]
    ordered += [name for batch in batches if isinstance(batch["loss"], str) for name in batch["ids"]]
    ordered += [name for batch in batches for name in batch["ids"]]
    return list(dict.fromkeys(ordered))


def _message(findings: dict[str, Any]) -> str:
    losses = ", ".join(_short(batch["loss"]) for batch in findings["micro_batches"])
    lines = [
        f"step {findings['step']}: a number is not finite (loss {losses}; gradient norm "
        f"{_short(findings['gradient_norm'])}). "
        "The update was not made.",
        f"images of this step, suspects first: {_some(suspects_first(findings))}",
    ]
    if findings["gradients"]:
        lines.append(f"gradients not finite: {_some(findings['gradients'], _SHOWN_PARAMETERS)}")
    if findings["weights"]:
        lines.append(
            f"weights not finite, from an earlier step: {_some(findings['weights'], _SHOWN_PARAMETERS)}"
        )
    return "\n".join(lines)


def _short(value: float | str | None) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _some(names: Sequence[str], shown: int = _SHOWN_IDS) -> str:
    rest = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {rest} more" if rest > 0 else "")


def _plain(value: float) -> float | str:
    # JSON knows no NaN.
    return value if math.isfinite(value) else str(value)

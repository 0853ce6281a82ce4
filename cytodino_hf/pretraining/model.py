"""Student and teacher of iBOT: one sees pictures with holes and small cuts, the other, its moving mean, sees all."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import BackboneUnavailableError
from .heads import IBotHead
from .losses import TeacherTargets, cls_loss, entropy, koleo_loss, patch_loss
from .recipe import ObjectiveSection

# Patches that meet a head are filled up to a multiple of this.
_ROWS = 256


class IBotOutput(NamedTuple):
    """What one batch gives.

    Args:
        loss: What is minimised, mean over pictures.
        parts: `cls`, `patch` and `koleo` before they are weighted.
        teacher_entropy: Mean entropy in nats of the teacher's distribution for one view; 0 where it is sure of one
            prototype, log(prototypes) where it says nothing.
        prototype_entropy: Entropy of the teacher's distribution averaged over the views of this process; 0 where it
            gives one answer to everything.
        teacher_features: The teacher's CLS features (batch x 2, width), the two views of a picture side by side.
    """

    loss: Tensor
    parts: dict[str, Tensor]
    teacher_entropy: Tensor
    prototype_entropy: Tensor
    teacher_features: Tensor


class Branch(nn.Module):
    """A backbone with its heads: the student, or the teacher.

    Args:
        backbone: DINOv3 or DINOv2 ViT of transformers.
        objective: Sizes of the heads.
    """

    def __init__(self, backbone: Any, objective: ObjectiveSection) -> None:
        super().__init__()
        self.backbone = backbone
        sizes = (objective.hidden_dim, objective.bottleneck_dim, objective.out_dim)
        width = backbone.config.hidden_size
        self.cls_head = IBotHead(width, *sizes)
        # One head for both is held once, so that a saved file holds it once.
        self._own_patch_head = IBotHead(width, *sizes) if objective.separate_patch_head else None

    @property
    def patch_head(self) -> IBotHead:
        """The head of the patches, which may be that of the CLS token."""
        return self.cls_head if self._own_patch_head is None else self._own_patch_head

    def patch_logits(self, patches: Tensor) -> Tensor:
        """The patch head's answer to some patches: (rows, width) -> (rows, prototypes)."""
        rows = len(patches)
        # Masked patches are of another number in every step, and for each number the CPU's libraries make kernels anew,
        # which takes a fifth of a step, and keep them.
        return self.patch_head(F.pad(patches, (0, 0, 0, -rows % _ROWS)))[:rows]

    def forward(self, pictures: Tensor, masks: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Features: (views, 3, height, width) -> CLS (views, width), patches (views, patches, width)."""
        tokens = self.backbone(pixel_values=pictures, bool_masked_pos=masks).last_hidden_state
        prefix = 1 + getattr(self.backbone.config, "num_register_tokens", 0)
        return tokens[:, 0], tokens[:, prefix:]


class IBotModel(nn.Module):
    """Student, teacher and what they are compared by.

    The student sees the global views with masked patches replaced by the mask token, and the local views whole; the
    teacher sees the global views whole. Every parameter of the student gets a gradient in every step, also where
    nothing is masked, as training on several processes demands.

    Args:
        backbone: Where both start from; DINOv3 or DINOv2 ViT of transformers. It becomes the student's.
        objective: Section of the recipe.

    Raises:
        BackboneUnavailableError: The backbone has no mask token.

    Source:
        Zhou et al. 2022, iBOT (arXiv 2111.07832), section 3.
    """

    def __init__(self, backbone: Any, objective: ObjectiveSection) -> None:
        super().__init__()
        if backbone.embeddings.mask_token is None:
            raise BackboneUnavailableError(
                "the backbone has no mask token, so its patches cannot be masked; "
                "set use_mask_token to true in its config.json"
            )
        self.objective = objective
        self.student = Branch(backbone, objective)
        self.teacher = copy.deepcopy(self.student).requires_grad_(False).eval()
        set_drop_path(backbone, objective.drop_path)
        targets = (
            objective.out_dim,
            objective.centering,
            objective.centre_momentum,
            objective.sinkhorn_iterations,
        )
        self.cls_targets, self.patch_targets = TeacherTargets(*targets), TeacherTargets(*targets)

    def train(self, mode: bool = True) -> IBotModel:
        """Set the student's mode; the teacher always answers as it would in use."""
        super().train(mode)
        self.teacher.eval()
        return self

    def activation_checkpointing_enable(
        self, activation_checkpointing_kwargs: dict[str, Any] | None = None, **options: Any
    ) -> None:
        """Compute the student's blocks again in the backward pass instead of keeping what is inside them.

        Args:
            activation_checkpointing_kwargs: For `torch.utils.checkpoint.checkpoint`.
            options: As `PreTrainedModel.activation_checkpointing_enable` takes them.
        """
        self.student.backbone.activation_checkpointing_enable(activation_checkpointing_kwargs, **options)

    def forward(
        self,
        global_views: Tensor,
        masks: Tensor,
        local_views: Tensor | None,
        teacher_temperature: float,
    ) -> IBotOutput:
        """Compare student and teacher on one batch.

        Args:
            global_views: Normalised pictures (batch, 2, 3, height, width).
            masks: (batch, 2, patches), True where the student sees the mask token.
            local_views: Normalised smaller pictures (batch, views, 3, height, width), or None.
            teacher_temperature: Divides the teacher's logits.
        """
        images = len(global_views)
        pictures, flat_masks = global_views.flatten(0, 1), masks.flatten(0, 1)
        features, cls_answers, patch_answers = self._ask_teacher(pictures, flat_masks, teacher_temperature)

        student_cls, student_patches = self.student(pictures, flat_masks)
        # (batch x 2, width) -> (batch, 2, width); local views follow
        views = student_cls.unflatten(0, (images, -1))
        all_views = views if local_views is None else torch.cat((views, self._local(local_views)), dim=1)
        temperature = self.objective.student_temperature
        cls_logits = self.student.cls_head(all_views.flatten(0, 1)).unflatten(0, (images, -1))
        patch_logits = self.student.patch_logits(student_patches[flat_masks])
        cls_answers = cls_answers.unflatten(0, (images, -1))
        cls = cls_loss(cls_logits, cls_answers, temperature)
        patch = patch_loss(patch_logits, patch_answers, flat_masks, temperature)
        koleo = self._koleo(views)
        weights = self.objective
        loss = weights.cls_weight * cls + weights.patch_weight * patch + weights.koleo_weight * koleo
        return IBotOutput(
            loss=loss,
            parts={"cls": cls.detach(), "patch": patch.detach(), "koleo": koleo.detach()},
            teacher_entropy=entropy(cls_answers),
            prototype_entropy=entropy(cls_answers.mean(dim=(0, 1))),
            teacher_features=features,
        )

    @torch.no_grad()
    def _ask_teacher(
        self, pictures: Tensor, masks: Tensor, temperature: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """CLS features, and what the student has to match for whole pictures and for masked patches."""
        cls, patches = self.teacher(pictures)
        # Only the places that the student has to fill meet the prototypes: they are most of a head's work.
        patch_logits = self.teacher.patch_logits(patches[masks])
        return (
            cls.float(),
            self.cls_targets(self.teacher.cls_head(cls), temperature),
            self.patch_targets(patch_logits, temperature),
        )

    def _local(self, local_views: Tensor) -> Tensor:
        """The student's CLS features of the local views: (batch, views, width)."""
        cls, _ = self.student(local_views.flatten(0, 1))
        return cls.unflatten(0, (len(local_views), -1))

    def _koleo(self, views: Tensor) -> Tensor:
        """KoLeo of both global views, added up as in DINOv2; where it has no weight it is measured only."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.objective.koleo_weight > 0):
            return torch.stack([koleo_loss(view) for view in views.unbind(dim=1)]).sum()

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """Move every parameter of the teacher to momentum x teacher + (1 - momentum) x student."""
        teacher: list[Tensor] = list(self.teacher.parameters())
        student: list[Tensor] = list(self.student.parameters())
        torch._foreach_lerp_(teacher, student, 1 - momentum)


class DropPath(nn.Module):
    """Leaves a block's update out for some pictures of a batch in training, and scales up the others'.

    Args:
        rate: Share of the pictures.

    Source:
        Huang et al. 2016, Deep networks with stochastic depth (arXiv 1603.09382).
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, update: Tensor) -> Tensor:
        """(views, tokens, width) -> the same, some views 0."""
        if not self.training or self.rate == 0:
            return update
        keep = torch.empty(len(update), 1, 1, device=update.device).bernoulli_(1 - self.rate)
        return update * (keep / (1 - self.rate)).to(update.dtype)


def set_drop_path(backbone: Any, rate: float) -> None:
    """Give the blocks drop path that rises in a straight line from 0 in the first to `rate` in the last.

    It replaces what the backbone's configuration says, which knows one rate for all, and is not saved with it.
    """
    blocks = list(_blocks(backbone))
    for number, block in enumerate(blocks):
        block.drop_path = DropPath(rate * number / max(len(blocks) - 1, 1))


def _blocks(backbone: Any) -> Iterator[Any]:
    return (module for module in backbone.modules() if hasattr(module, "drop_path"))

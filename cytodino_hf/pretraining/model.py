"""Student and teacher of iBOT: one sees pictures with holes and small cuts, the other, its moving mean, sees all."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..errors import BackboneUnavailableError
from .heads import IBotHead
from .losses import TeacherTargets, answers_in_sum, cls_loss, koleo_loss, patch_loss
from .recipe import ObjectiveSection


class IBotOutput(NamedTuple):
    """What one batch gives.

    Args:
        loss: What is minimised, mean over pictures.
        parts: `cls`, `patch` and `koleo` before they are weighted.
        said: What the teacher's answers of `watched_answers` came to, by `answers_in_sum`.
        teacher_features: The teacher's CLS features (batch x 2, width), the two views of a picture side by side.
    """

    loss: Tensor
    parts: dict[str, Tensor]
    said: dict[str, Tensor]
    teacher_features: Tensor


def watched_answers(objective: ObjectiveSection) -> tuple[str, ...]:
    """Which of the teacher's answers, `cls` or `patch`, can show a collapse: those of what the loss trains.

    Patches that share the head of the CLS token share its fate; by themselves they are watched where they have their
    own, or where nothing else trains it.
    """
    has_own = objective.separate_patch_head or not objective.cls_weight
    patches = objective.patch_weight and objective.mask_probability and objective.mask_ratio
    watched = {"cls": objective.cls_weight, "patch": patches and has_own}
    return tuple(name for name, is_watched in watched.items() if is_watched)


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
        self.objective, self.watched = objective, watched_answers(objective)
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
        places: Tensor,
        weights: Tensor,
        local_views: Tensor | None,
        teacher_temperature: float,
    ) -> IBotOutput:
        """Compare student and teacher on one batch; no size depends on a value that only the device knows.

        Args:
            global_views: Normalised pictures (batch, 2, 3, height, width).
            masks: (batch, 2, patches), True where the student sees the mask token.
            places: Where those are in the row of all patches (masked,), filled up, from `masked_places`.
            weights: And what each weighs (masked,); 0: it only fills up.
            local_views: Normalised smaller pictures (batch, views, 3, height, width), or None.
            teacher_temperature: Divides the teacher's logits.
        """
        images = len(global_views)
        pictures = global_views.flatten(0, 1)
        is_row = (weights > 0).to(weights.dtype)
        teacher = self._ask_teacher(pictures, places, is_row, teacher_temperature)

        student_cls, student_patches = self.student(pictures, masks.flatten(0, 1))
        # (batch x 2, width) -> (batch, 2, width); local views follow
        views = student_cls.unflatten(0, (images, -1))
        all_views = views if local_views is None else torch.cat((views, self._local(local_views)), dim=1)
        temperature = self.objective.student_temperature
        cls_logits = self.student.cls_head(all_views.flatten(0, 1)).unflatten(0, (images, -1))
        patch_logits = self.student.patch_head(_at(places, student_patches))
        cls = cls_loss(cls_logits, teacher.cls.unflatten(0, (images, -1)), temperature)
        patch = patch_loss(patch_logits, teacher.patches, weights, temperature)
        koleo = self._koleo(views)
        objective = self.objective
        return IBotOutput(
            loss=objective.cls_weight * cls + objective.patch_weight * patch + objective.koleo_weight * koleo,
            parts={"cls": cls.detach(), "patch": patch.detach(), "koleo": koleo.detach()},
            said=self._in_sum(teacher, is_row),
            teacher_features=teacher.features,
        )

    @torch.no_grad()
    def _ask_teacher(
        self, pictures: Tensor, places: Tensor, is_row: Tensor, temperature: float
    ) -> _TeacherAnswers:
        """CLS features, and what the student has to match for whole pictures and for masked patches."""
        cls, patches = self.teacher(pictures)
        # Only the places that the student has to fill meet the prototypes: they are most of a head's work.
        patch_logits = self.teacher.patch_head(_at(places, patches))
        return _TeacherAnswers(
            features=cls.float(),
            cls=self.cls_targets(self.teacher.cls_head(cls), temperature),
            patches=self.patch_targets(patch_logits, temperature, is_row),
        )

    def _in_sum(self, teacher: _TeacherAnswers, is_row: Tensor) -> dict[str, Tensor]:
        answers: dict[str, tuple[Tensor, Tensor | None]] = {
            "cls": (teacher.cls, None),
            "patch": (teacher.patches, is_row),
        }
        return {name: answers_in_sum(*answers[name]) for name in self.watched}

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


class _TeacherAnswers(NamedTuple):
    """CLS features (views, width); distributions for views (views, prototypes) and for places (masked, prototypes)."""

    features: Tensor
    cls: Tensor
    patches: Tensor


def _at(places: Tensor, patches: Tensor) -> Tensor:
    """Some places of the row of all patches: (views, patches, width) -> (places, width)."""
    return patches.flatten(0, 1).index_select(0, places)


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

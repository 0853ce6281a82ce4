"""Configuration of a CytoDINO classifier: a ViT backbone, a head over its tokens, and where the weights lie."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig


@strict
class CytoDinoConfig(PreTrainedConfig):
    """What is needed to build the model and to find its weights.

    Args:
        backbone_config: Configuration of the ViT backbone (DINOv3 or DINOv2 of transformers).
        head_type: `decoder` (a learned query attends to all tokens, arXiv 2512.17930) or `linear` (on the CLS
            token and the mean of the patch tokens).
        decoder_layers: Blocks of the decoder head.
        decoder_heads: Attention heads of each block.
        decoder_feedforward_ratio: Width of the feed-forward part over the width of the backbone.
        head_dropout: Dropout inside the head.
        position_jitter: Let DINOv3 rescale its position coordinates at random while training.
        taxonomy: What the labels mean (codes, names, lineages, maturation), as `Taxonomy.to_dict` gives it.
        base_model_name_or_path: Hub id of the backbone an adapter belongs to; None where the weights are whole.
        base_model_revision: Commit of that backbone.
        base_subfolder: Folder beside this file that holds the backbone, where it is not on the Hub.
        adapter_subfolder: Folder beside this file with the trained part; None where the weights are whole.
        adapter_type: `lora` (a peft adapter) or `tensors` (only the trained tensors, `trained.safetensors`).
        binding: What the model was made of; compared on every loading (see `binding_cytodino`).
    """

    model_type = "cytodino"
    sub_configs = {"backbone_config": AutoConfig}  # noqa: RUF012 - the form transformers reads

    backbone_config: dict | PreTrainedConfig | None = None
    head_type: str = "decoder"
    decoder_layers: int = 4
    decoder_heads: int = 4
    decoder_feedforward_ratio: float | int = 2
    head_dropout: float | int = 0.2
    position_jitter: bool = False
    taxonomy: dict | None = None
    base_model_name_or_path: str | None = None
    base_model_revision: str | None = None
    base_subfolder: str | None = None
    adapter_subfolder: str | None = None
    adapter_type: str | None = None
    binding: dict | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.backbone_config is None:
            self.backbone_config = CONFIG_MAPPING["dinov3_vit"]()
        elif isinstance(self.backbone_config, dict):
            backbone = dict(self.backbone_config)
            self.backbone_config = CONFIG_MAPPING[backbone.pop("model_type", "dinov3_vit")](**backbone)
        if self.head_type not in ("decoder", "linear"):
            raise ValueError(f"head_type must be 'decoder' or 'linear', not {self.head_type!r}")
        super().__post_init__(**kwargs)
        if self.problem_type is None:  # type: ignore[has-type]
            self.problem_type = "single_label_classification"

    @property
    def hidden_size(self) -> int:
        """Width of the backbone's tokens."""
        return self.backbone_config.hidden_size  # type: ignore[union-attr]

    @property
    def num_prefix_tokens(self) -> int:
        """Tokens before the patches: CLS and registers."""
        return 1 + getattr(self.backbone_config, "num_register_tokens", 0)


CytoDinoConfig.register_for_auto_class()

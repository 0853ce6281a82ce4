"""A finished classifier, by the package's own code: nothing of the model's folder is executed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import ModelUnavailableError
from .model.binding_cytodino import BaseUnavailableError, BindingError, causes_of

if TYPE_CHECKING:
    from .model.image_processing_cytodino import CytoDinoImageProcessor
    from .model.modeling_cytodino import CytoDinoForImageClassification


def load_classifier(
    name: str | Path, **hub: Any
) -> tuple[CytoDinoForImageClassification, CytoDinoImageProcessor]:
    """Model and processor in float32, on the processor, ready to be asked and not to be trained.

    Args:
        name: A RUN, a model's folder, or OWNER/NAME of the Hub.
        hub: More arguments of `from_pretrained` (`revision`, `cache_dir`, `token`).

    Raises:
        ModelUnavailableError: It cannot be had, or base, labels, preprocessing or weights are not what they were.
    """
    import torch

    from .model.image_processing_cytodino import CytoDinoImageProcessor
    from .model.modeling_cytodino import CytoDinoForImageClassification

    with model_explained(str(name)):
        model = CytoDinoForImageClassification.from_pretrained(name, dtype=torch.float32, **hub)
        processor = CytoDinoImageProcessor.from_pretrained(name, **hub)
    return model.eval().requires_grad_(False), processor


@contextmanager
def model_explained(name: str) -> Iterator[None]:
    """Turn the many ways a model can be out of reach into one message with the remedy.

    Args:
        name: Of the model, for the message.

    Raises:
        ModelUnavailableError: Whatever was raised inside about a model that is missing, damaged or not what it was.
    """
    from safetensors import SafetensorError

    try:
        yield
    except (BaseUnavailableError, BindingError) as error:  # they say the remedy themselves
        raise ModelUnavailableError(str(error)) from error
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise ModelUnavailableError(f"model {name} cannot be loaded: {_remedy(error, name)}") from error


def _remedy(error: BaseException, name: str) -> str:
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, OfflineModeIsEnabled

    causes = causes_of(error)
    if Path(name).is_dir() and not (Path(name) / "config.json").is_file():
        return "it has no config.json; give a RUN that is finished, or what was published from one"
    if any(isinstance(c, GatedRepoError) for c in causes):
        return (
            f"access is granted on https://huggingface.co/{name}; ask for it there, then `hf auth login` or set "
            f"HF_TOKEN ({error})"
        )
    if any(isinstance(c, (LocalEntryNotFoundError, OfflineModeIsEnabled)) for c in causes):
        return (
            f"it is not in the local cache; fetch it once with a connection (`hf download {name}`) ({error})"
        )
    return str(error)

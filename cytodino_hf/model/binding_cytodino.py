"""What a model was made of, and the refusal to run it with anything else.

`config.json` holds the binding:

| key | what | compared with |
|---|---|---|
| `labels` | class codes in label order | `id2label` and the codes of `taxonomy` |
| `taxonomy` | sha256 of the taxonomy | `taxonomy` |
| `preprocessing` | every value of `preprocessor_config.json` | that file |
| `weights` | sha256 of each file of weights beside it, that of a base that travels included | those files |
| `base` | Hub id, commit (40 hexadecimal digits) and sha256 of the weights of a base that does not | that base |
| `companions` | sha256 of calibration and the like, and of the weights they were fitted for | those files, where used |
| `recipe`, `data` | sha256 of the recipe, fingerprint of the images | nothing: they say where it came from |

Nothing here needs the package the model was made with. The sha256 of a file is computed when a model is loaded, about
a second for 1 GB; of files above 64 MB it is kept in `cytodino/sha256.json` of the Hugging Face home folder, and taken
from there as long as size and time of the file are the same.
"""

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers.utils import cached_file

PROCESSOR_FILE = "preprocessor_config.json"
#: Files a base may keep its weights in; an index names others.
WHOLE_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
_KEPT_FROM_BYTES = 64 * 2**20
_COMMIT = re.compile(r"[0-9a-f]{40}")


class BindingError(Exception):
    """The model is asked to run with something else than it was made with; names both, and the remedy."""


class BaseUnavailableError(Exception):
    """The base of an adapter cannot be had; says how to get it."""


def make_binding(
    begun: Mapping[str, Any] | None,
    *,
    labels: list[str],
    taxonomy: Mapping[str, Any] | None,
    preprocessing: Mapping[str, Any],
    weights: Mapping[str, str],
) -> dict[str, Any]:
    """The binding of a finished model.

    Args:
        begun: What was known before: `base`, `recipe`, `data`.
        labels: Class codes in label order.
        taxonomy: What they mean.
        preprocessing: Content of `preprocessor_config.json`.
        weights: Path of each file of weights in the folder of the model -> its sha256.
    """
    return {
        "base": None,
        "recipe": None,
        "data": None,
        **(begun or {}),
        "labels": list(labels),
        "taxonomy": digest(taxonomy),
        "preprocessing": dict(preprocessing),
        "weights": dict(weights),
    }


def is_bound(config: Any) -> bool:
    """Whether a configuration says which weights belong to it."""
    return bool((getattr(config, "binding", None) or {}).get("weights"))


def check_binding(path: str, config: Any, hub: Mapping[str, Any]) -> None:
    """Compare a model that is about to be loaded with what it was made of.

    Args:
        path: Folder or Hub id.
        config: Its configuration.
        hub: Arguments of a download.

    Raises:
        BindingError: Something is not what it was; names both values.
        BaseUnavailableError: The base cannot be had.
    """
    if not is_bound(config):
        raise BindingError(
            f"{path}: config.json does not say what this adapter belongs to (`binding` is missing); take the model "
            "from where it was published, or save it anew with the package that trained it"
        )
    bound = config.binding
    _check_labels(path, config, bound)
    found = json.loads(Path(cached_file(path, PROCESSOR_FILE, **hub)).read_text(encoding="utf-8"))
    _check_preprocessing(path, found, bound["preprocessing"])
    for name, wanted in bound["weights"].items():
        folder, _, file = name.rpartition("/")
        there = cached_file(path, file, subfolder=folder, **hub)
        _check_file(
            f"{path}/{name}", there, wanted, "take all files of the model from one place and one revision"
        )
    # Whole weights need no base, wherever they once came from.
    is_adapter = getattr(config, "adapter_subfolder", None) is not None
    if is_adapter and (config.base_model_name_or_path or (bound["base"] or {}).get("id")):
        _check_base(path, config, bound["base"] or {}, hub)


def digest(document: Any) -> str:
    """sha256 of a JSON document, whatever the order of its keys."""
    text = json.dumps(document, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def weights_digests(fetch: Callable[[str], str | None]) -> dict[str, str]:
    """sha256 of each file of weights of a base.

    Args:
        fetch: Name of a file -> where it lies, None where the base has no such file.

    Returns:
        Name of each file -> its sha256; empty where the base has no safetensors weights.
    """
    names = [WHOLE_FILE]
    if fetch(WHOLE_FILE) is None:
        index = fetch(INDEX_FILE)
        if index is None:
            return {}
        shards = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"].values()
        names = [INDEX_FILE, *sorted(set(shards))]
    return {name: kept_sha256(str(fetch(name))) for name in names}


def kept_sha256(path: str) -> str:
    """sha256 of a file; of a large one from the last time, while its size and time are the same."""
    real = os.path.realpath(path)
    state = os.stat(real)
    if state.st_size < _KEPT_FROM_BYTES:
        return _sha256(real)
    place = Path(constants.HF_HOME) / "cytodino" / "sha256.json"
    kept = _read_kept(place)
    if kept.get(real, [])[:2] == [state.st_size, state.st_mtime_ns]:
        return str(kept[real][2])
    found = _sha256(real)
    # A home folder that cannot be written to costs the same second each time, nothing else.
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = place.with_name(f"{place.name}.{os.getpid()}.partial")
        partial.write_text(json.dumps(_read_kept(place) | {real: [state.st_size, state.st_mtime_ns, found]}))
        os.replace(partial, place)
    return found


@contextlib.contextmanager
def access_explained(base: str, revision: str | None) -> Iterator[None]:
    """Turn a failed download of a base into one sentence with the remedy."""
    try:
        yield
    except OSError as error:
        raise BaseUnavailableError(_remedy(error, base, revision)) from error


def causes_of(error: BaseException) -> list[BaseException]:
    """An error and those that led to it, the first cause last."""
    causes: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in causes:
        causes.append(link)
        link = link.__cause__ or link.__context__
    return causes


def _check_labels(path: str, config: Any, bound: Mapping[str, Any]) -> None:
    labels = [config.id2label[label] for label in sorted(config.id2label)]
    taxonomy = getattr(config, "taxonomy", None)
    for name, found in (
        ("id2label", labels),
        ("taxonomy", [row["code"] for row in (taxonomy or {}).get("classes", [])]),
    ):
        if (found or name == "id2label") and found != bound["labels"]:
            raise BindingError(
                f"{path}: the labels of {name} are {found}, the model was trained with {bound['labels']}; put the "
                "labels back in that order (its answers are numbers, the order says what they mean)"
            )
    if digest(taxonomy) != bound["taxonomy"]:
        raise BindingError(
            f"{path}: the taxonomy in config.json has sha256 {digest(taxonomy)}, the model was trained with "
            f"{bound['taxonomy']}; put names, lineages and critical classes back"
        )


def _check_preprocessing(path: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    absent = object()
    for key in sorted({*found, *wanted}):
        if found.get(key, absent) != wanted.get(key, absent):
            here, then = (repr(values[key]) if key in values else "not there" for values in (found, wanted))
            raise BindingError(
                f"{path}: {key} in {PROCESSOR_FILE} is {here}, the model was trained with {then}; put it back "
                "(other pictures, other answers)"
            )


def _check_base(path: str, config: Any, bound: Mapping[str, Any], hub: Mapping[str, Any]) -> None:
    base, revision = config.base_model_name_or_path, config.base_model_revision
    for name, found, wanted in (
        ("base", base, bound.get("id")),
        ("revision", revision, bound.get("revision")),
    ):
        if found != wanted:
            raise BindingError(
                f"{path}: its {name} is {found!r}, the model was trained on {wanted!r}; put it back"
            )
    if not _COMMIT.fullmatch(str(revision)):
        raise BindingError(
            f"{path}: the revision of its base {base} is {revision!r}, which may move; it must be a commit of 40 "
            "hexadecimal digits"
        )
    fetched = {**hub, "revision": revision}
    for name, wanted in bound["weights"].items():
        with access_explained(base, revision):
            there = cached_file(base, name, **fetched)
        remedy = f"delete it from the cache and load again: `hf cache rm model/{base}`"
        _check_file(f"{name} of {base} at {revision}", there, wanted, remedy)


def _check_file(name: str, there: str, wanted: str, remedy: str) -> None:
    found = kept_sha256(there)
    if found != wanted:
        raise BindingError(f"{name} has sha256 {found}, the model was made with {wanted}; {remedy}")


def _remedy(error: BaseException, base: str, revision: str | None) -> str:
    causes = causes_of(error)
    access = f"accept its licence on https://huggingface.co/{base}, then `hf auth login` or set HF_TOKEN"
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        return f"the backbone {base} of this adapter is gated and this account has no access: {access}"
    if any(isinstance(cause, RevisionNotFoundError) for cause in causes):
        return (
            f"the backbone {base} of this adapter has no commit {revision} any more; ask its authors for it"
        )
    if any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
        return (
            f"the backbone {base} of this adapter does not exist on the Hub, or is private and no token is set: "
            "`hf auth login` or set HF_TOKEN"
        )
    if any(isinstance(cause, LocalEntryNotFoundError) for cause in causes) or not causes[1:]:
        return (
            f"the backbone {base} of this adapter is not in the local cache and the Hub is out of reach (offline?): "
            f"fetch it once with a connection, `hf download {base} --revision {revision}`; if it is gated, {access}"
        )
    return f"the backbone {base} of this adapter cannot be fetched ({causes[-1]}); if it is gated, {access}"


def _read_kept(place: Path) -> dict[str, list[Any]]:
    try:
        kept = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # not written yet, or by half: computed anew
    return kept if isinstance(kept, dict) else {}


def _sha256(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

"""What must not leave the machine: secrets, absolute paths, names of hosts and persons, what cameras write, patients.

Every file is looked at before anything is sent: text line by line, the header of safetensors files, the metadata of
pictures, and the names of the files themselves. One finding stops the publication.
"""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import LeakError

_PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".gif")
# What programs write about a picture itself: no person, no place.
_HARMLESS = {
    "dpi", "gamma", "srgb", "chromaticity", "transparency", "background", "aspect", "interlace", "icc_profile",
    "jfif", "jfif_version", "jfif_unit", "jfif_density", "compression",
}  # fmt: skip
_SECRET_NAMES = re.compile(r"(?i)token|secret|password|passwd|api_?key|kaggle_key|credential")
_SHORTEST_SECRET = 8
_PATTERNS: tuple[tuple[str, re.Pattern[str]], ...] = (
    ("secret", re.compile(r"\bhf_[A-Za-z0-9]{8,}|\bapi_org_[A-Za-z0-9]{8,}")),
    ("secret", re.compile(r"\bgh[pousr]_[A-Za-z0-9]{16,}|\bgithub_pat_\w{16,}|\bKGAT_\w{12,}|\bxox[abprs]-[\w-]{10,}")),
    ("secret", re.compile(r"\bAKIA[0-9A-Z]{16}\b|\bAIza[\w-]{30,}|\bsk-[A-Za-z0-9_-]{16,}")),
    ("secret", re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----|\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]{4,}")),
    ("secret", re.compile(r"://[^\s/:@]+:[^\s/@]+@")),
    ("secret", re.compile(
        r"(?i)(?:password|passwd|secret|api[_-]?key|token|bearer)\w*[\"']?\s*[:= ]\s*[\"']?"
        r"(?=[\w+/.-]*\d)(?=[\w+/.-]*[a-z])[\w+/.-]{12,}"
    )),
    ("absolute path", re.compile(r"(?<![\w/:.<>*)\]}&;~-])/(?:[\w.@+~-]+/)+[\w.@+~-]*")),
    ("absolute path", re.compile(r"(?<![\w/:.<>])/(?:home|root|Users|mnt|srv|scratch|media|Volumes)\b")),
    ("absolute path", re.compile(r"(?<![A-Za-z])[A-Za-z]:[\\/]{1,2}\w|\\\\\\*[\w.-]+\\+\w|\bfile://")),
    ("host name", re.compile(
        r"(?i)\b[\w-]+(?:\.[\w-]+)*\.(?:local|lan|internal|intranet|intra|corp|localdomain)\b(?!\()"
    )),
    ("host name", re.compile(
        r"(?<![\d.])(?:10\.\d{1,3}|192\.168|172\.(?:1[6-9]|2\d|3[01]))\.\d{1,3}\.\d{1,3}(?![\d.])"
    )),
    ("person", re.compile(r"\b[\w.+-]+@[\w-]+(?:\.[\w-]+)*\b")),
    ("patient", re.compile(
        r"(?i)\b(?:patient|pat|mrn|pid|accession|fall)[ _-]?(?:id|no|nr|number|nummer)?[\"']?[\s:=#._-]{1,3}[\"']?"
        r"[A-Z]{0,4}-?\d{3,}"
    )),
    ("patient", re.compile(r"(?i)(?<![a-z])(?:patient|mrn)[_-]?\d{2,}")),
    ("patient", re.compile(r"(?i:\bpatient(?:en)?[ _-]?name)\W{1,4}\w|(?i:\bpatient)\s*[:=]\s*[A-ZÄÖÜ][a-zäöüß]+")),
    ("patient", re.compile(
        r"(?i)\b(?:dob|birth ?date|date of birth|born|geb|geburtsdatum)\b\W{0,4}\d{1,4}[./-]\d{1,2}[./-]\d{1,4}"
    )),
    ("patient", re.compile(r"\b[A-ZÄÖÜ][A-Za-zäöüß'-]+\^[A-ZÄÖÜ][A-Za-zäöüß'-]+|\b\d{3}-\d{2}-\d{4}\b")),
)  # fmt: skip


@dataclass(frozen=True)
class Leak:
    """Something that must not leave the machine.

    Args:
        file: Path in the repository.
        place: Line, tag or header; or "its name".
        kind: What it looks like.
        text: What was seen; of a secret only its first characters.
    """

    file: str
    place: str
    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.file}, {self.place}: {self.kind} {self.text!r}"


def refuse_leaks(files: Mapping[str, Path]) -> None:
    """Look at everything that is about to be sent.

    Args:
        files: Path in the repository -> file.

    Raises:
        LeakError: Something was found; says in which file and where, all of it.
    """
    if found := find_leaks(files):
        lines = "\n".join(f"  - {leak}" for leak in found)
        raise LeakError(
            f"nothing was sent: {len(found)} thing(s) that must not leave the machine. Take them out of the files of "
            f"the RUN (names, recipe) and publish again:\n{lines}"
        )


def find_leaks(files: Mapping[str, Path]) -> list[Leak]:
    """Everything that looks like a secret, an absolute path, a host, a person or a patient.

    Args:
        files: Path in the repository -> file.
    """
    patterns = (*_PATTERNS, *_of_this_machine())
    found: dict[Leak, None] = {}
    for name, path in files.items():
        for place, text in [("its name", name), *_texts(path)]:
            found |= dict.fromkeys(_in_text(name, place, text, patterns))
        if path.suffix.lower() in _PICTURES:
            found |= dict.fromkeys(_in_picture(name, path))
    return list(found)


def _in_text(
    name: str, place: str, text: str, patterns: tuple[tuple[str, re.Pattern[str]], ...]
) -> Iterator[Leak]:
    for kind, pattern in patterns:
        for match in pattern.finditer(text):
            seen = match.group(0)
            yield Leak(name, place, kind, f"{seen[:6]}..." if kind == "secret" else seen[:80])


def _texts(path: Path) -> Iterator[tuple[str, str]]:
    """(place, text) of everything in a file that a person could read."""
    if path.suffix.lower() in _PICTURES:
        return
    if path.suffix == ".safetensors":
        with open(path, "rb") as file:
            size = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(size))
        yield "metadata of its header", json.dumps(header.pop("__metadata__", {}), ensure_ascii=False)
        yield "names of its tensors", "\n".join(header)
        return
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
        yield f"line {number}", line


def _in_picture(name: str, path: Path) -> Iterator[Leak]:
    """What a picture says besides its pixels."""
    from PIL import ExifTags, Image

    with Image.open(path) as image:
        image.load()  # text may stand behind the pixels
        for tag, value in image.getexif().items():
            yield Leak(name, f"EXIF {ExifTags.TAGS.get(tag, tag)}", "picture metadata", str(value)[:80])
        for key, value in image.info.items():
            is_ours = key == "Software" and str(value).startswith("Matplotlib")
            if str(key).lower() not in _HARMLESS and not is_ours and key != "exif":
                yield Leak(name, f"text {key}", "picture metadata", str(value)[:80])


def _of_this_machine() -> tuple[tuple[str, re.Pattern[str]], ...]:
    """Patterns for this host's name and for secrets in this process's environment."""
    found = []
    for host in {socket.gethostname(), socket.gethostname().split(".")[0]} - {"", "localhost"}:
        name = re.escape(host)
        # A host whose name is a word ("demo") is only looked for where an address stands.
        as_address = rf"@{name}\b|//{name}\b|\b{name}:\d+"
        anywhere = rf"(?<![\w-]){name}(?![\w-])"
        pattern = as_address if host.isalpha() else anywhere
        found.append(("host name", re.compile(f"(?i){pattern}")))
    for name, value in os.environ.items():
        if _SECRET_NAMES.search(name) and len(value) >= _SHORTEST_SECRET and not os.path.exists(value):
            found.append(("secret", re.compile(re.escape(value))))
    return tuple(found)

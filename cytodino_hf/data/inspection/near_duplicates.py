"""Images that are one picture: copies of a file, equal pixels, and near-duplicates.

An image and its re-compressed, resized, brightened or slightly shifted copy in two folds let a model be tested on
what it learnt by heart. Candidates are pairs whose perceptual hashes differ in few bits, found through an index on
parts of the hash; their thumbnails decide.

The thresholds come from 5,483 real images (seven classes of the MLL set, and 89 blood cells of another laboratory),
which hold no near-duplicate, and altered copies of 600 of them. In all eight orientations the 15 million pairs give
4,684 candidates, the most similar of which reaches .60. The least similar copies, shifted by two pixels both ways,
reach .86; JPEG of quality 30 .92.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .perceptual_hash import LEAST_DETAIL, SYMMETRIES, detail_patterns, similarities, turned, turned_hash

#: Most bits in which the hashes of near-duplicates may differ.
MOST_DIFFERENT_BITS = 12
#: Least similarity of their thumbnails (`similarities`).
LEAST_SIMILARITY = 0.8

# The hash is looked up by its four 16-bit parts. One changed bit in a part is tried too, so that a pair is found for
# certain up to 7 bits and nearly always up to 12; turned copies, where no bit of some part changed (certain up to 3).
_PARTS, _PART_BITS = 4, 16
_CHUNK_PAIRS = 4_000_000
# Of thousands of frames of one picture every pair is alike; a few hundred of each join them all.
_MOST_PARTNERS = 256
_CHUNK_COMPARED = 20_000
# Spares 95 of 100 candidates the dear comparison; copies of the kinds above correlate by .95 and more.
_LEAST_CORRELATION = 0.9
_NO_PAIRS = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float64))


@dataclass(frozen=True)
class Duplicates:
    """Pairs of images that are one picture, and the clusters they form.

    Args:
        first, second: int64 (pairs,), rows of the scan, `first` < `second`. Of many exact copies each is paired with
            the first one alone.
        kinds: (pairs,) "file" (equal bytes), "pixels" (equal pixels in other files) or "near".
        similarity: float64 (pairs,), 1 where the pixels are equal.
        cluster_of: int64 (images,), number of the cluster of each image, from 0; -1 in none. Numbered by the first
            row of each.
    """

    first: np.ndarray
    second: np.ndarray
    kinds: np.ndarray
    similarity: np.ndarray
    cluster_of: np.ndarray

    def clusters(self) -> list[list[int]]:
        """Rows of every cluster, in order."""
        members: dict[int, list[int]] = {}
        for row in np.flatnonzero(self.cluster_of >= 0).tolist():
            members.setdefault(int(self.cluster_of[row]), []).append(row)
        return [members[number] for number in sorted(members)]


def find_duplicates(
    file_sha256: Sequence[bytes],
    pixel_sha256: Sequence[bytes],
    hashes: np.ndarray,
    thumbnails: np.ndarray,
    detail: np.ndarray,
) -> Duplicates:
    """Find exact and near-duplicates among images.

    Args:
        file_sha256, pixel_sha256: Of each image; those of the pixels include the size.
        hashes: uint64 (images,), from `pack_signs`.
        thumbnails: uint8 (images, 32, 32).
        detail: (images,), from `detail_strength`. Pictures without detail are compared by their pixels alone: empty
            fields would all be alike.
    """
    files, pixels = np.array(file_sha256, dtype=object), np.array(pixel_sha256, dtype=object)
    first_of = _first_with_equal(pixels)
    copies = np.flatnonzero(first_of != np.arange(len(first_of)))
    kinds = np.where(files[copies] == files[first_of[copies]], "file", "pixels")
    is_first = first_of == np.arange(len(first_of))
    alone = np.flatnonzero(is_first & (detail >= LEAST_DETAIL))
    near_first, near_second, near = _near_pairs(hashes[alone], thumbnails[alone])
    first = np.concatenate([first_of[copies], alone[near_first]])
    second = np.concatenate([copies, alone[near_second]])
    order = np.lexsort((second, first))
    return Duplicates(
        first=first[order],
        second=second[order],
        kinds=np.concatenate([kinds, np.full(len(near), "near")])[order],
        similarity=np.concatenate([np.ones(len(copies)), near])[order],
        cluster_of=cluster(len(files), first, second),
    )


def cluster(count: int, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Number of the connected part of each of `count` items, -1 for an item that is in no pair."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    graph = coo_matrix((np.ones(len(first), np.int8), (first, second)), shape=(count, count))
    _, parts = connected_components(graph, directed=False)
    _, parts, sizes = np.unique(parts, return_inverse=True, return_counts=True)
    numbers = np.full(len(sizes), -1)
    for part in parts[sizes[parts] > 1].tolist():
        if numbers[part] < 0:
            numbers[part] = numbers.max() + 1
    return numbers[parts]


def _first_with_equal(values: np.ndarray) -> np.ndarray:
    """The first row with the same value, for each row."""
    seen: dict[bytes, int] = {}
    return np.array([seen.setdefault(value, row) for row, value in enumerate(values)], dtype=np.int64)


def _near_pairs(hashes: np.ndarray, thumbnails: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Confirmed pairs (first < second) and their similarity."""
    found = [
        _confirmed(first, second, thumbnails, symmetry)
        for symmetry in SYMMETRIES
        for first, second in _candidates(
            turned_hash(hashes, symmetry), hashes, changed_bits=0 if any(symmetry) else 1
        )
    ]
    first, second, similarity = (np.concatenate(parts) for parts in zip(_NO_PAIRS, *found, strict=True))
    # A picture that is its own mirror image is found more than once: the best counts.
    order = np.lexsort((-similarity, second, first))
    _, once = np.unique(first[order] * len(hashes) + second[order], return_index=True)
    kept = order[once]
    return first[kept], second[kept], similarity[kept]


def _confirmed(
    first: np.ndarray, second: np.ndarray, thumbnails: np.ndarray, symmetry: tuple[bool, bool, bool]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pairs whose thumbnails are alike, the first one turned, and how alike."""
    rough = _correlations(turned(thumbnails[first], symmetry), thumbnails[second])
    first, second = first[rough >= _LEAST_CORRELATION], second[rough >= _LEAST_CORRELATION]
    if not len(first):
        return _NO_PAIRS
    rows, places = np.unique(np.concatenate([first, second]), return_inverse=True)
    patterns = detail_patterns(thumbnails[rows])
    found = similarities(turned(patterns[places[: len(first)]], symmetry), patterns[places[len(first) :]])
    alike = found >= LEAST_SIMILARITY
    return first[alike], second[alike], found[alike]


def _correlations(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Plain correlation of grey values, (pairs,)."""
    one, other = (pictures.reshape(len(pictures), -1).astype(np.float32) for pictures in (first, second))
    one -= one.mean(axis=1, keepdims=True)
    other -= other.mean(axis=1, keepdims=True)
    norms = np.sqrt(np.einsum("pk,pk->p", one, one) * np.einsum("pk,pk->p", other, other))
    correlations: np.ndarray = np.einsum("pk,pk->p", one, other) / np.maximum(norms, 1e-6)
    return correlations


def _candidates(
    asked: np.ndarray, hashes: np.ndarray, changed_bits: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Pairs (row of `asked` < row of `hashes`) whose hashes differ in few bits, in chunks, each pair once."""
    found = [
        pairs
        for part in range(_PARTS)
        for pairs in _equal_part(asked, hashes, part, changed_bits)
        if len(pairs)
    ]
    if not found:
        return
    keys = np.unique(np.concatenate(found))
    for start in range(0, len(keys), _CHUNK_COMPARED):
        yield np.divmod(keys[start : start + _CHUNK_COMPARED], len(hashes))


def _equal_part(asked: np.ndarray, hashes: np.ndarray, part: int, changed_bits: int) -> Iterator[np.ndarray]:
    """Pairs as first * images + second that are equal in one 16-bit part but for `changed_bits`, and near in all."""
    count = len(hashes)
    keys = hashes.view(np.uint16)[part::_PARTS]
    asked_keys = asked.view(np.uint16)[part::_PARTS]
    order = np.argsort(keys, kind="stable")
    sizes = np.bincount(keys, minlength=1 << _PART_BITS)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    flips = [0, *(1 << bit for bit in range(_PART_BITS))] if changed_bits else [0]
    for flip in flips:
        wanted = asked_keys ^ np.uint16(flip)
        ends = np.cumsum(sizes[wanted])
        for low, high in _row_chunks(ends):
            lengths = sizes[wanted[low:high]]
            rows = np.repeat(np.arange(low, high), lengths)
            within = np.arange(len(rows)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
            others = order[np.repeat(starts[wanted[low:high]], lengths) + within]
            ahead = rows < others
            rows, others = rows[ahead], others[ahead]
            near = np.bitwise_count(asked[rows] ^ hashes[others]) <= MOST_DIFFERENT_BITS
            rows, others = rows[near], others[near]
            # Rows stand in order, so the place among a row's partners is counted from its first.
            rank = np.arange(len(rows)) - np.searchsorted(rows, rows)
            kept = rank < _MOST_PARTNERS
            yield rows[kept] * count + others[kept]


def _row_chunks(ends: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges of rows with about `_CHUNK_PAIRS` pairs each, from the running number of pairs."""
    low = 0
    while low < len(ends):
        done = ends[low - 1] if low else 0
        high = max(low + 1, int(np.searchsorted(ends, done + _CHUNK_PAIRS, side="right")))
        yield low, high
        low = high

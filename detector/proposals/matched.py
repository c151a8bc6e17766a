"""A proposal store read by the keys of a data set's images, whatever the images are called in the store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from detector.core.errors import InputError
from detector.core.structures import ImageRecord
from detector.proposals.hashing import file_hash
from detector.proposals.index import Row
from detector.proposals.manifest import load_manifest
from detector.proposals.matching import ImageMatcher, NamedImage
from detector.proposals.segments import Signature
from detector.proposals.store import ProposalStore


class MatchedStore(ProposalStore):
    """A store whose images are looked up by key; ``names`` is what the store calls them where it differs."""

    def __init__(
        self,
        path: Path,
        manifest: Mapping[str, Any],
        names: Mapping[str, str],
        checked: Mapping[int, Signature],
    ) -> None:
        super().__init__(path, manifest, checked)
        self.names = dict(names)

    def __reduce__(self) -> tuple[Callable[..., MatchedStore], tuple[Any, ...]]:
        return _open_matched, (self.path, self.names, self.checked)

    def __contains__(self, image_id: object) -> bool:
        return isinstance(image_id, str) and super().__contains__(self.names.get(image_id, image_id))

    def _row(self, image_id: str) -> Row:
        return super()._row(self.names.get(image_id, image_id))


def match_store(
    store: ProposalStore,
    records: Sequence[ImageRecord],
    everything: Callable[[], Sequence[NamedImage]] = tuple,
) -> ProposalStore:
    """Return ``store`` so that it finds its images by the keys of ``records``.

    An image that the store does not have by its key is searched by the rules of `ImageMatcher`, to which
    ``everything`` goes. If the store knows the content of the image that the boxes were made for, the
    content decides: such an image, found under another name than its key, must have the same content. What
    the store has by a record's key is taken without a look at the content.

    Raises InputError where a name of the store could be two images.
    """
    wanted = {record.key: record for record in records if record.key not in store}
    if not wanted:
        return store
    present = {record.key for record in records} - wanted.keys()
    others = [name for name in store.ids() if name not in present]
    hashed = {name: found for name in others if (found := store.content_hash(name)) is not None}
    names = _match_by_content(hashed, wanted)
    matcher = ImageMatcher(records, everything)
    matched = matcher.match((name for name in store.ids() if name not in hashed), store.path)
    names |= {key: name for name, key in matched.items() if key in wanted and key not in names}
    return MatchedStore(store.path, load_manifest(store.path), names, store.checked) if names else store


def _match_by_content(hashed: Mapping[str, str], wanted: Mapping[str, ImageRecord]) -> dict[str, str]:
    """Return the names of the images of ``wanted`` that have the content of which the store knows."""
    if not hashed:
        return {}
    matcher = ImageMatcher(wanted.values())
    names: dict[str, str] = {}
    for name, content in hashed.items():
        for key in matcher.candidates(name):
            if _content(wanted[key].path) == content:
                names[key] = name
    return names


def _content(path: Path) -> str | None:
    """Return the hash of a file; one that cannot be read is the content of no store."""
    try:
        return file_hash(path)
    except InputError:
        return None


def _open_matched(path: Path, names: Mapping[str, str], checked: Mapping[int, Signature]) -> MatchedStore:
    return MatchedStore(path, load_manifest(path), names, checked)

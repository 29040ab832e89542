"""The lists in an exported file, read line by line against the hashes of its manifest."""

from collections.abc import Iterator

from esper.contracts import ArtifactIntegrityError
from esper.urza import contents
from esper.urza.bundle import BundleReader, room_of
from esper.urza.manifests import MAX_BYTES, LibraryManifest, SignedManifest, parse
from esper.urza.verifying import RunningHash


class Lists:
    """The lists of one file; made by `read_lists`."""

    def __init__(
        self, reader: BundleReader, signed: SignedManifest, manifest: LibraryManifest
    ) -> None:
        self.signed = signed
        self.manifest = manifest
        self._reader = reader
        self._members = {member.name: member for member in manifest.members}
        self._offsets: dict[str, int] = {}
        offset = reader.offset
        for member in manifest.members:
            self._offsets[member.name] = offset
            offset += room_of(member.size_bytes)
        self._end = offset

    def lines(self, name: str) -> Iterator[tuple[str, bytes]]:
        """Give each line of a list, and where it is in words for errors.

        Raises:
            ArtifactIntegrityError: if the list is not there, or, at its end, if it is not the one that
                the manifest names.

        """
        member = self._members[name]
        number = 0
        self._reader.seek(self._offsets[name])
        with RunningHash() as running:
            for number, line in enumerate(self._reader.lines(name, member.size_bytes), 1):
                running.update(line)
                yield f"{self._reader.path}, {name}, line {number}", line
            found = (running.hexdigest(), number)
        if found != (member.sha256, member.num_records):
            raise ArtifactIntegrityError(
                f"{self._reader.path} was changed or damaged: {name} has {found[1]} records and sha256 "
                f"{found[0]}; its manifest says {member.num_records} and {member.sha256}"
            )

    def artifact(self, sha256: str, size_bytes: int) -> Iterator[bytes]:
        """Give the bytes of the next artifact; they begin behind the lists.

        Raises:
            ArtifactIntegrityError: if it is not the next, or, at its end, if the bytes are others.

        """
        with RunningHash() as running:
            for chunk in self._reader.chunks(contents.artifact_name(sha256), size_bytes):
                running.update(chunk)
                yield chunk
            found = running.hexdigest()
        if found != sha256:
            raise ArtifactIntegrityError(
                f"{self._reader.path} was changed or damaged: the bytes in it of artifact {sha256} hash to "
                f"{found}; export the library again"
            )

    def go_behind(self) -> None:
        """Go to where the artifacts begin."""
        self._reader.seek(self._end)

    def end(self) -> None:
        """Pass silently if nothing follows. Raises `ArtifactIntegrityError`."""
        self._reader.end()


def read_lists(reader: BundleReader) -> Lists:
    """Read the manifest, with which the file begins.

    Raises:
        ArtifactIntegrityError: if it is no file of this kind.
        ManifestError: if the manifest was changed, or is of something else.

    """
    content = reader.read(contents.MANIFEST, max_bytes=MAX_BYTES)
    signed = parse(content, where=f"{reader.path}, {contents.MANIFEST}")
    manifest = signed.manifest
    if (
        not isinstance(manifest, LibraryManifest)
        or tuple(member.name for member in manifest.members) != contents.LISTS
    ):
        raise ArtifactIntegrityError(
            f"{reader.path} holds no library that this version knows: its manifest, of "
            f"{manifest.subject}, does not name {', '.join(contents.LISTS)}"
        )
    return Lists(reader, signed, manifest)

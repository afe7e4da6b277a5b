"""A store that lies in S3: its folders brought here, and what is made here carried there.

Results are published whole, by a manifest that is written last. A folder in work is carried over
from time to time under another manifest, so that a task whose pod was killed goes on in the next
pod from the newest checkpoint or the last finished case, not from the beginning.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable
from pathlib import Path

from sssflow.contracts.base import ObjectRef
from sssflow.contracts.tree import FileTree
from sssflow.errors import DataError, SssflowError
from sssflow.storage.places import Place, carried_files, pull_tree, push_tree, read_tree
from sssflow.storage.uri import below

PARTIAL_FILE = "PARTIAL.json"
_PERIOD_S = 30.0
_FIRST_S = 2.0
_LOG = logging.getLogger(__name__)


class Mirror:
    """Folders of one store, between a place and this machine.

    Args:
        place: Where the store lies.
        root: Folder that stands for it here.
        finished: The same place with a cache; None: `place`. Files of unfinished folders change,
            and a cache hands out links to one copy, so that they never go through it.
        period_s: Time between two looks at a folder in work; shorter ones, doubling, come first,
            so that a task that is killed early does not lose all of it.
    """

    def __init__(
        self,
        place: Place,
        root: Path,
        *,
        finished: Place | None = None,
        period_s: float = _PERIOD_S,
    ) -> None:
        self._place = place
        self._finished = finished or place
        self._root = root
        self._period_s = period_s
        self._here: set[Path] = set()
        self._work: _Work | None = None

    def bring(self, folder: Path, wanted: Callable[[str], bool] | None = None) -> bool:
        """Bring a finished result here, once; False if the store has none.

        With `wanted`, which says of a file's name whether it is needed, the others stay there.

        Raises:
            DataError: A file of the result has changed or is missing.
            UnavailableError: The store cannot be used now.
        """
        if folder in self._here:
            return True
        place = self._of(folder, self._finished)
        if pull_tree(place, folder, wanted=wanted or (lambda _: True)) is None:
            return False
        if wanted is None:
            self._here.add(folder)
        return True

    def bring_partial(self, folder: Path) -> None:
        """Bring what a killed task had carried over of a folder.

        A file that does not fit its digest was being replaced at that moment; it is left out, and
        the stage makes it again.
        """
        place = self._of(folder)
        tree = _carried(place)
        for ref in () if tree is None else tree.files:
            try:
                place.get_file(ref, below(ref.uri, base=folder))
            except DataError as error:
                _LOG.warning("%s was not brought back: %s", ref.uri, error.what)
        if tree is not None:
            _LOG.info("brought back %d files of an interrupted task", len(tree.files))

    def begin(self, folder: Path) -> None:
        """Carry the folder over from time to time until `finish` or `abandon`."""
        self.abandon()
        self._work = _Work(self._of(folder), folder, self._period_s)
        self._work.start()

    def finish(self, folder: Path) -> None:
        """Publish a finished folder, and forget what was carried over before."""
        if self._work is not None:
            self._work.stop()
            self._work = None
        place = self._of(folder)
        partial = _carried(place)
        tree = push_tree(folder, place)
        if partial is not None:
            for name in sorted({ref.uri for ref in partial.files} - {r.uri for r in tree.files}):
                place.delete(name)
            place.delete(PARTIAL_FILE)
        self._here.add(folder)

    def abandon(self) -> None:
        """Carry over what there is, for the next try; a failure to do so is told, not raised."""
        if self._work is not None:
            self._work.stop()
            self._work.carry()
            self._work = None

    def address(self, path: Path) -> str:
        """The address in the store of a path here."""
        return f"{self._place.uri}/{path.relative_to(self._root).as_posix()}"

    def path(self, address: str) -> Path | None:
        """The path here of an address in the store; None for another store's address."""
        prefix = f"{self._place.uri}/"
        if not address.startswith(prefix):
            return None
        return below(address.removeprefix(prefix), base=self._root)

    def _of(self, folder: Path, place: Place | None = None) -> Place:
        return (place or self._place).child(folder.relative_to(self._root).as_posix())


def _carried(place: Place) -> FileTree | None:
    """What was carried over of an unfinished folder; None if that is nothing, or not readable.

    It spares work and decides nothing, and another try of the task may be replacing it.
    """
    try:
        return read_tree(place, manifest=PARTIAL_FILE)
    except DataError as error:
        _LOG.warning("The interim state of the task cannot be read: %s", error.what)
        return None


class _Work:
    """The thread that carries one folder over."""

    def __init__(self, place: Place, folder: Path, period_s: float) -> None:
        self._place = place
        self._folder = folder
        self._period_s = period_s
        self._stopped = threading.Event()
        self._seen: dict[str, tuple[tuple[int, int], ObjectRef]] = {}
        self._thread = threading.Thread(target=self._run, name="sssflow-mirror", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        wait_s = min(_FIRST_S, self._period_s)
        while not self._stopped.wait(wait_s):
            self.carry()
            wait_s = min(2 * wait_s, self._period_s)

    def carry(self) -> None:
        """One look: send what is new or has changed, then the manifest."""
        try:
            # A file may be replaced or deleted while it is read: then the next look is for it.
            with contextlib.suppress(FileNotFoundError):
                self._carry()
        except (SssflowError, OSError) as error:
            _LOG.warning("The interim state could not be carried to the store: %s", error)

    def _carry(self) -> None:
        now: dict[str, tuple[tuple[int, int], ObjectRef]] = {}
        for path in carried_files(self._folder):
            name, facts = path.relative_to(self._folder).as_posix(), path.stat()
            mark = (facts.st_size, facts.st_mtime_ns)
            before = self._seen.get(name)
            same = before is not None and before[0] == mark
            now[name] = before if same and before else (mark, self._place.put_file(path, name))
        if now and now != self._seen:
            tree = FileTree(files=tuple(ref for _, (_, ref) in sorted(now.items())))
            self._place.put_bytes(PARTIAL_FILE, tree.to_json().encode())
            self._seen = now

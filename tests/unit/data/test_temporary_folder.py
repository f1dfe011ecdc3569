import pytest

from data.scratch import write_scratch
from data.shard_index import INDEX_SCHEMA
from data.temporary_folder import TemporaryFolderFullError, temporary_folder


def test_a_disk_that_was_full_before_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """`tempfile` writes a few bytes into each folder to choose one, and where none takes them says that no
    file was found: it ended in a traceback.
    """
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("tempfile._candidate_tempdir_list", lambda: ["/proc"])
    message = r"^No usable temporary directory found in \['/proc'\]: make room there, or set TMPDIR"
    with pytest.raises(TemporaryFolderFullError, match=message), temporary_folder("x-"):
        pass
    with pytest.raises(TemporaryFolderFullError, match=message):
        write_scratch(INDEX_SCHEMA, [])

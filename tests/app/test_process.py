from pathlib import Path

from chargegate.app.process import process_name


def test_a_name_is_kept_and_never_shared(tmp_path: Path) -> None:
    with process_name(tmp_path, "worker") as first, process_name(tmp_path, "worker") as second:
        assert first != second
        with process_name(tmp_path, "api") as other:
            assert other not in (first, second)
    with process_name(tmp_path, "worker") as again:
        assert again == first

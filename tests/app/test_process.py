from pathlib import Path

from chargegate.app.process import process_name


def test_a_name_is_kept_and_never_shared(tmp_path: Path) -> None:
    with process_name(tmp_path, "worker") as first, process_name(tmp_path, "worker") as second:
        assert first.name != second.name
        with process_name(tmp_path, "api") as other:
            assert other.name not in (first.name, second.name)
    with process_name(tmp_path, "worker") as again:
        assert again.name == first.name

import pytest

from tests.json_lines import json_lines


@pytest.mark.parametrize("half", ["", '{"webhook": "com', '{"n": "\N{GREEK SMALL LETTER ALPHA}'])
def test_a_line_that_another_process_is_still_writing_is_not_read(tmp_path, half):
    path = tmp_path / "worker.log"
    path.write_bytes(('{"n": 1}\n\n{"n": 2}\n' + half).encode()[: -1 if half else None])
    assert json_lines(path) == [{"n": 1}, {"n": 2}]

import logging

import pytest

from ddpm.runs import log_to


def test_the_log_has_the_messages_of_the_block_and_is_appended_to(tmp_path):
    path, logger = tmp_path / "log.txt", logging.getLogger("somewhere")
    for word in ("first", "second"):
        with log_to(path):
            logger.warning(word)
    logger.warning("outside")
    lines = path.read_text().splitlines()
    assert [line.split(" WARNING ")[1] for line in lines] == ["somewhere: first", "somewhere: second"]


def test_an_exception_adds_its_traceback(tmp_path):
    with pytest.raises(ZeroDivisionError), log_to(tmp_path / "log.txt"):
        1 / 0  # noqa: B018
    text = (tmp_path / "log.txt").read_text()
    assert "ERROR ddpm: failed\nTraceback" in text
    assert text.endswith("ZeroDivisionError: division by zero\n")

"""Keys: who passes, what is kept of them, and what happens while they come, go or are damaged."""

import json
import os
import stat
from datetime import datetime

import pytest

from api.http import bearer_keys
from api.http.bearer_keys import KeyFile, Keys
from utils.errors import IntegrityError, NotFound
from utils.settings import load_settings

NOW = datetime(2026, 11, 22)


@pytest.fixture(autouse=True)
def looks_every_time(monkeypatch):
    monkeypatch.setattr(bearer_keys, "LOOK", 0.0)


@pytest.fixture
def settings(tmp_path):
    return load_settings(env_file=tmp_path / ".env", home=tmp_path, api_key="")


def passes(checked, token):
    return checked.allow(f"Bearer {token}".encode())


def test_without_any_key_everybody_passes(settings):
    assert not Keys(settings).are_needed
    assert Keys(settings).allow(b"")


def test_several_keys_pass_at_once_and_nothing_else_does(settings):
    file = KeyFile(settings)
    tokens = [file.add(name, now=NOW) for name in ("shop", "app", "shop")]
    checked = Keys(settings.model_copy(update={"api_key": type(settings.api_key)("own-key")}))
    assert all(passes(checked, token) for token in [*tokens, "own-key"])
    assert len(set(tokens)) == 3
    wrong = [b"", b"Bearer", b"Bearer ", b"Bearer x", f"Basic {tokens[0]}".encode(), tokens[0].encode(), b"\xff\x00"]
    wrong += [f"Bearer {key.sha256}".encode() for key in file.read()]
    wrong += [f"Bearer {tokens[0][:-1]}".encode(), f"Bearer {tokens[0]}x".encode(), f"Bearer {tokens[0]} x".encode()]
    assert not [each for each in wrong if checked.allow(each)]
    assert checked.allow(f"bearer  {tokens[0]} ".encode())


def test_the_file_holds_hashes_for_its_owner_only(settings):
    token = KeyFile(settings).add("shop", now=NOW)
    path = KeyFile(settings).path
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert token not in path.read_text()
    assert [set(each) for each in json.loads(path.read_text())] == [{"name", "sha256", "created_at"}]


def test_a_key_that_comes_or_goes_is_known_at_the_next_look(settings):
    file, checked = KeyFile(settings), Keys(settings)
    assert checked.allow(b"")
    first = file.add("shop", now=NOW)
    assert not checked.allow(b"")
    assert passes(checked, first)
    second = file.add("shop", now=NOW)
    assert passes(checked, first)
    assert passes(checked, second)
    assert file.remove("shop", older=True) == 1
    assert not passes(checked, first)
    assert passes(checked, second)


def test_with_the_last_key_removed_nobody_passes(settings):
    file, checked = KeyFile(settings), Keys(settings)
    token = file.add("shop", now=NOW)
    assert passes(checked, token)
    file.remove("shop")
    assert not passes(checked, token)
    assert not Keys(settings).allow(b"")


def test_a_file_that_is_damaged_or_lost_changes_nothing_and_opens_nothing(settings, caplog):
    file, checked = KeyFile(settings), Keys(settings)
    token = file.add("shop", now=NOW)
    assert passes(checked, token)
    for damage in ("{", '{"a": 1}', '[{"name": "x"}]', '[{"name": "x", "sha256": "no hex", "created_at": ""}]'):
        file.path.write_text(damage)
        assert passes(checked, token), damage
        assert not checked.allow(b""), damage
        assert not Keys(settings).allow(b""), damage
    assert "stay as they were" in caplog.text
    file.path.unlink()
    assert passes(checked, token)
    assert not checked.allow(b"")


@pytest.mark.skipif(os.getuid() == 0, reason="root reads everything")
def test_a_file_that_can_not_be_read_opens_nothing(settings):
    file = KeyFile(settings)
    file.add("shop", now=NOW)
    file.path.chmod(0)
    assert not Keys(settings).allow(b"")


def test_what_can_not_be_removed_or_read_is_said(settings):
    file = KeyFile(settings)
    with pytest.raises(NotFound, match="'shop'"):
        file.remove("shop")
    file.add("shop", now=NOW)
    with pytest.raises(NotFound, match="older"):
        file.remove("shop", older=True)
    file.path.write_text("[")
    with pytest.raises(IntegrityError, match=r"keys\.json"):
        file.add("app", now=NOW)

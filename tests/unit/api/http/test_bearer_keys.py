"""API keys: the requests that pass, the content of the file, and keys that are added, removed or damaged."""

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
def look_every_time(monkeypatch):
    monkeypatch.setattr(bearer_keys, "LOOK", 0.0)


@pytest.fixture
def settings(tmp_path):
    return load_settings(env_file=tmp_path / ".env", home=tmp_path, api_key="")


def passes(keys, token):
    return keys.allow(f"Bearer {token}".encode())


def test_without_any_key_every_request_passes(settings):
    assert not Keys(settings).are_needed
    assert Keys(settings).allow(b"")


def test_each_of_several_keys_passes_and_no_other_header_does(settings):
    file = KeyFile(settings)
    tokens = [file.add(name, now=NOW) for name in ("shop", "app", "shop")]
    keys = Keys(settings.model_copy(update={"api_key": type(settings.api_key)("own-key")}))
    assert all(passes(keys, token) for token in [*tokens, "own-key"])
    assert len(set(tokens)) == 3
    wrong = [b"", b"Bearer", b"Bearer ", b"Bearer x", f"Basic {tokens[0]}".encode(), tokens[0].encode(), b"\xff\x00"]
    wrong += [f"Bearer {key.sha256}".encode() for key in file.read()]
    wrong += [f"Bearer {tokens[0][:-1]}".encode(), f"Bearer {tokens[0]}x".encode(), f"Bearer {tokens[0]} x".encode()]
    assert not [each for each in wrong if keys.allow(each)]
    assert keys.allow(f"bearer  {tokens[0]} ".encode())


def test_the_file_holds_hashes_for_its_owner_only(settings):
    token = KeyFile(settings).add("shop", now=NOW)
    path = KeyFile(settings).path
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert token not in path.read_text()
    assert [set(each) for each in json.loads(path.read_text())] == [{"name", "sha256", "created_at"}]


def test_an_added_or_removed_key_takes_effect_at_the_next_look(settings):
    file, keys = KeyFile(settings), Keys(settings)
    assert keys.allow(b"")
    first = file.add("shop", now=NOW)
    assert not keys.allow(b"")
    assert passes(keys, first)
    second = file.add("shop", now=NOW)
    assert passes(keys, first)
    assert passes(keys, second)
    assert file.remove("shop", older=True) == 1
    assert not passes(keys, first)
    assert passes(keys, second)


def test_after_removal_of_the_last_key_no_request_passes(settings):
    file, keys = KeyFile(settings), Keys(settings)
    token = file.add("shop", now=NOW)
    assert passes(keys, token)
    file.remove("shop")
    assert not passes(keys, token)
    assert not Keys(settings).allow(b"")


def test_a_damaged_or_lost_file_changes_no_keys_and_lets_no_request_pass(settings, caplog):
    file, keys = KeyFile(settings), Keys(settings)
    token = file.add("shop", now=NOW)
    assert passes(keys, token)
    for damage in ("{", '{"a": 1}', '[{"name": "x"}]', '[{"name": "x", "sha256": "no hex", "created_at": ""}]'):
        file.path.write_text(damage)
        assert passes(keys, token), damage
        assert not keys.allow(b""), damage
        assert not Keys(settings).allow(b""), damage
    assert "stay as they were" in caplog.text
    file.path.unlink()
    assert passes(keys, token)
    assert not keys.allow(b"")


@pytest.mark.skipif(os.getuid() == 0, reason="root reads everything")
def test_an_unreadable_file_lets_no_request_pass(settings):
    file = KeyFile(settings)
    file.add("shop", now=NOW)
    file.path.chmod(0)
    assert not Keys(settings).allow(b"")


def test_errors_name_the_key_or_file_that_is_missing_or_damaged(settings):
    file = KeyFile(settings)
    with pytest.raises(NotFound, match="'shop'"):
        file.remove("shop")
    file.add("shop", now=NOW)
    with pytest.raises(NotFound, match="older"):
        file.remove("shop", older=True)
    file.path.write_text("[")
    with pytest.raises(IntegrityError, match=r"keys\.json"):
        file.add("app", now=NOW)

"""`l2o export`, and what it makes found again on a hub."""

import hashlib
import http.server
import json
import sys
import threading

import equinox as eqx
import pytest
from l2o_cli._app import app
from typer.testing import CliRunner

import l2o_eqx


def l2o_cli(*arguments, code=0):
    result = CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "200"})
    assert result.exit_code == code, (result.output, result.exception)
    return result.output


@pytest.fixture
def exported(tmp_path):
    folder = tmp_path / "mine"
    l2o_cli("export", "quadratic", "--to", folder)
    return folder


def test_a_folder_has_the_file_its_facts_and_a_card(exported):
    assert sorted(path.name for path in exported.iterdir()) == [
        "README.md",
        "optimizer.json",
        "optimizer.safetensors",
    ]
    file = exported / "optimizer.safetensors"
    assert eqx.tree_equal(l2o_eqx.load(file), l2o_eqx.pretrained("quadratic"))
    facts = json.loads((exported / "optimizer.json").read_text())
    assert facts["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert facts["class"] == "l2o_eqx.optimizers:LearnedMomentum" and facts["num_meta_parameters"] == 1507
    assert facts["comparison"] == l2o_eqx.gallery.card("quadratic")["comparison"]
    card = (exported / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: l2o_eqx\n") and "\n# mine\n" in card
    for line in l2o_eqx.gallery.card("quadratic")["not_for"]:
        assert line in card


def test_a_file_alone_has_no_comparison(exported, tmp_path):
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes((exported / "optimizer.safetensors").read_bytes())
    l2o_cli("export", alone, "--to", tmp_path / "other")
    assert "comparison" not in json.loads((tmp_path / "other" / "optimizer.json").read_text())
    assert "baselines" not in (tmp_path / "other" / "README.md").read_text()


def test_the_comparison_of_a_run_is_in_its_card(exported, tmp_path):
    """Of one family, of several, and one that is damaged."""
    found = l2o_eqx.gallery.card("quadratic")["comparison"]
    file = exported / "comparison.json"
    file.write_text(json.dumps(found))
    l2o_cli("export", exported, "--to", tmp_path / "one")
    assert "64 unseen objectives of quadratic, 320 steps" in (tmp_path / "one" / "README.md").read_text()
    summary = {"summary": found["summary"]}
    several = {name: x for name, x in found.items() if name != "summary"}
    file.write_text(json.dumps(several | {"families": {"booth": summary, "beale": summary}}))
    l2o_cli("export", exported, "--to", tmp_path / "several")
    card = (tmp_path / "several" / "README.md").read_text()
    assert "objectives of booth" in card and "objectives of beale" in card
    for damaged in ("{", "[]", "{}", '{"families": [1]}'):
        file.write_text(damaged)
        assert "no comparison of" in l2o_cli("export", exported, "--to", tmp_path / "no", code=2)
    assert not (tmp_path / "no").exists()


def test_what_cannot_be_exported(exported, tmp_path, monkeypatch):
    assert "option '--to'" in l2o_cli("export", "quadratic", "--to", exported, code=2)
    (tmp_path / "text.safetensors").write_text("no")
    l2o_cli("export", tmp_path / "text.safetensors", "--to", tmp_path / "new", code=2)
    (tmp_path / "file").write_text("no")
    assert "cannot be made" in l2o_cli("export", "quadratic", "--to", tmp_path / "file" / "new", code=2)
    # Before any work is done.
    monkeypatch.setattr("l2o_cli._compare.start", lambda **_: pytest.fail("there was work"))
    error = l2o_cli("compare", "quadratic", "--out", tmp_path / "file" / "new", code=2)
    assert f"cannot be made: {tmp_path / 'file'} is no folder" in error
    assert not (tmp_path / "new").exists()
    # Nothing half made is left.
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "mine", "text.safetensors"]


@pytest.fixture
def hub(exported, tmp_path, monkeypatch):
    """A hub on the loopback device, with one repository."""

    class Hub(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            content = (exported / "optimizer.safetensors").read_bytes()
            found = self.path == "/someone/mine/resolve/main/optimizer.safetensors"
            self.send_response(200 if found else 404)
            if found:
                self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
                self.send_header("X-Repo-Commit", "0" * 40)
            else:
                self.send_header("X-Error-Code", "EntryNotFound")
            self.send_header("Content-Length", str(len(content) if found else 0))
            self.end_headers()
            return content if found else b""

        def do_GET(self):
            self.wfile.write(self.do_HEAD())

        def log_message(self, format, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    yield
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_hub_has_what_was_exported(hub):
    assert eqx.tree_equal(l2o_eqx.load("hf://someone/mine"), l2o_eqx.pretrained("quadratic"))
    assert l2o_eqx.load_metadata("hf://someone/mine@main/optimizer.safetensors")["config"]["preset"] == "best"
    assert "LearnedMomentum" in l2o_cli("info", "hf://someone/mine")
    with pytest.raises(FileNotFoundError, match="hf://someone/mine/other.safetensors"):
        l2o_eqx.load("hf://someone/mine/other.safetensors")
    assert "no such file on the hub" in l2o_cli("info", "hf://someone/mine/other", code=2)


@pytest.mark.parametrize("name", ["hf://", "hf://one", "hf://a/b@", "hf://a/b@c@d"])
def test_names_of_another_form(name):
    with pytest.raises(ValueError, match="hf://owner/name"):
        l2o_eqx.load(name)


def test_without_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'l2o-eqx\[hub\]'"):
        l2o_eqx.load("hf://a/b")

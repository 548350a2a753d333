"""The review page's routes and ComfyUI's upload, on a real server: what they do, and what they refuse."""

from __future__ import annotations

import http.client
import json
import uuid
from pathlib import Path
from urllib.parse import quote

import pytest
from comfy_server import ComfyServer
from graphs import node

pytestmark = pytest.mark.comfy
JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def folder(comfy: ComfyServer) -> Path:
    """input/reviewed: two clips, one with a caption, beside a file that nobody may read."""
    from footage import write_video

    folder = comfy.input / "reviewed"
    folder.mkdir()
    for name in ("one", "two"):
        write_video(folder / f"{name}.mp4", frames=12)
    (folder / "one.txt").write_text("a cat walks", encoding="utf-8")
    (comfy.folder / "secret.mp4").write_bytes(b"secret")
    (comfy.folder / "secret.txt").write_text("secret", encoding="utf-8")
    return folder


def ask(comfy: ComfyServer, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None):
    """Status, headers and body of an answer; nothing is added to the request but Host and its length."""
    connection = http.client.HTTPConnection("127.0.0.1", comfy.port, timeout=60)
    try:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def post(comfy: ComfyServer, route: str, folder: str = "input/reviewed", headers: dict | None = None, **fields):
    """Status and JSON of a change."""
    body = json.dumps({"folder": folder, **fields}).encode()
    status, _, told = ask(comfy, "POST", f"/api/video_lora/{route}", body, headers or JSON)
    return status, json.loads(told)


def listed(comfy: ComfyServer) -> dict[str, dict]:
    return {clip["name"]: clip for clip in comfy.get("/api/video_lora/review?folder=input/reviewed")["clips"]}


def test_captions_are_edited_and_clips_left_out(comfy: ComfyServer, folder: Path):
    assert {name: clip["caption"] for name, clip in listed(comfy).items()} == {
        "one.mp4": "a cat walks", "two.mp4": ""}
    change = {"name": "two.mp4", "seen": "", "caption": "two cats\n---\ncats"}
    assert post(comfy, "captions", changes=[change]) == (200, {"changes": [
        {"name": "two.mp4", "before": "", "after": "two cats\n---\ncats"}], "failed": {}})
    status, told = post(comfy, "captions", changes=[change])
    assert status == 200 and told["changes"] == [] and "changed elsewhere" in told["failed"]["two.mp4"]
    status, told = post(comfy, "replace", find="cat", put="dog", match_case=False, whole_words=True)
    assert status == 200 and [change["after"] for change in told["changes"]] == ["a dog walks"]
    assert post(comfy, "trigger", trigger="zoe", insert=True)[0] == 200
    assert (folder / "two.txt").read_text(encoding="utf-8") == "zoe, two cats\n---\nzoe, cats\n"
    assert post(comfy, "trigger", trigger="zoe", insert=False)[0] == 200
    assert (folder / "one.txt").read_text(encoding="utf-8") == "a dog walks\n"
    assert post(comfy, "excluded", names=["one.mp4"], excluded=True) == (200, {})
    assert [name for name, clip in listed(comfy).items() if clip["excluded"]] == ["one.mp4"]

    result = comfy.queue({"clips": node("VLSLoadClips", folder="input/reviewed", trigger=""),
                          "report": node("PreviewAny", source=("clips", 1))})
    assert result.status == "success", result.error
    assert "two cats" in result.text("report") and "one.mp4: left out, excluded" in result.text("report")


def test_clips_are_played_by_parts_and_shown_by_a_still(comfy: ComfyServer, folder: Path):
    data = (folder / "one.mp4").read_bytes()
    place = "folder=input/reviewed&name=one.mp4"
    status, headers, body = ask(comfy, "GET", f"/api/video_lora/clip?{place}")
    assert (status, body, headers["Content-Type"]) == (200, data, "video/mp4")
    assert headers["X-Content-Type-Options"] == "nosniff"
    status, headers, body = ask(comfy, "GET", f"/api/video_lora/clip?{place}", headers={"Range": "bytes=10-19"})
    assert (status, body, headers["Content-Range"]) == (206, data[10:20], f"bytes 10-19/{len(data)}")
    status, headers, body = ask(comfy, "GET", f"/api/video_lora/still?{place}")
    assert (status, headers["Content-Type"], body[:2]) == (200, "image/jpeg", b"\xff\xd8")


@pytest.mark.parametrize("name", [
    "../../secret.mp4", "..%2f..%2fsecret.mp4", "/etc/passwd", "one.txt", "_excluded.txt", "gone.mp4", "", "one.mp4\0",
    "..\\..\\secret.mp4", "out.mp4", "C:/one.mp4", "one.mp4/",
])
def test_only_clips_of_the_folder_are_reached(comfy: ComfyServer, folder: Path, name: str):
    link = folder / "out.mp4"
    link.symlink_to(comfy.folder / "secret.mp4")
    try:
        for route in ("clip", "still"):
            status, _, body = ask(comfy, "GET", f"/api/video_lora/{route}?folder=input/reviewed&name={quote(name)}")
            assert status == 400 and b"secret" not in body.replace(b"secret.mp4", b"")
        assert "out.mp4" not in listed(comfy)
        status, told = post(comfy, "captions", changes=[{"name": name, "seen": "", "caption": "mine"}])
        assert status == 200 and told["changes"] == [] and list(told["failed"]) == [name]
        assert post(comfy, "excluded", names=[name], excluded=True)[0] == 400
    finally:
        link.unlink()
    assert (comfy.folder / "secret.txt").read_text(encoding="utf-8") == "secret"


@pytest.mark.parametrize("place", ["", "..", "input/..", "output", "../models", "/", "input/way_out", "input/none"])
def test_only_dataset_folders_are_reached(comfy: ComfyServer, folder: Path, place: str):
    link = comfy.input / "way_out"
    link.symlink_to(comfy.folder, target_is_directory=True)
    try:
        for route in ("review", "clip", "still"):
            assert ask(comfy, "GET", f"/api/video_lora/{route}?folder={quote(place)}&name=secret.mp4")[0] == 400
        change = {"name": "secret.mp4", "seen": "secret", "caption": "mine"}
        assert post(comfy, "captions", folder=place, changes=[change])[0] == 400
        assert post(comfy, "trigger", folder=place, trigger="zoe", insert=True)[0] == 400
    finally:
        link.unlink()
    assert (comfy.folder / "secret.txt").read_text(encoding="utf-8") == "secret"


@pytest.mark.parametrize(
    ("headers", "status"),
    [({**JSON, "Origin": "http://evil.example"}, 403), ({**JSON, "Origin": "null"}, 403),
     ({**JSON, "Sec-Fetch-Site": "cross-site"}, 403),
     ({**JSON, "Origin": "http://evil.example", "Host": "pc:8188"}, 403),
     ({"Content-Type": "text/plain"}, 415), ({"Content-Type": "application/x-www-form-urlencoded"}, 415), ({}, 415)],
    ids=["another site", "no site", "cross-site", "another site, not on loopback", "plain text", "a form", "no type"],
)
def test_what_another_site_can_send_is_refused(comfy: ComfyServer, folder: Path, headers: dict, status: int):
    before = listed(comfy)
    body = json.dumps({"folder": "input/reviewed", "trigger": "evil", "insert": True}).encode()
    assert ask(comfy, "POST", "/api/video_lora/trigger", body, headers)[0] == status
    assert listed(comfy) == before


def test_a_page_of_this_server_is_let_in(comfy: ComfyServer, folder: Path):
    headers = {**JSON, "Origin": f"http://127.0.0.1:{comfy.port}"}
    assert post(comfy, "excluded", headers=headers, names=["two.mp4"], excluded=False) == (200, {})


@pytest.mark.parametrize(
    ("route", "body", "status", "words"),
    [("captions", b"{", 400, "cannot be read as JSON"), ("captions", b"[]", 400, "must be a JSON object"),
     ("captions", b"[" * 100_000, 400, "cannot be read"), ("captions", b"{}", 400, "lacks 'folder'"),
     ("captions", b'{"folder": "input/reviewed"}', 400, "lacks 'changes'"),
     ("captions", b'{"folder": "input/reviewed", "changes": [1]}', 400, "must be objects"),
     ("excluded", b'{"folder": "input/reviewed", "names": [1], "excluded": true}', 400, "must be texts"),
     ("trigger", b'{"folder": "input/reviewed", "trigger": " ", "insert": true}', 400, "empty"),
     ("replace", b" " * (9 << 20), 413, "larger than 8 MB")],
    ids=["broken", "a list", "deep", "nothing", "no changes", "numbers", "a number", "no word", "too large"],
)
def test_requests_that_make_no_sense_get_a_sentence(comfy: ComfyServer, folder: Path, route, body, status, words):
    answered, _, told = ask(comfy, "POST", f"/api/video_lora/{route}", body, JSON)
    assert answered == status and words in json.loads(told)["error"]


def test_uploads_go_to_a_dataset_folder(comfy: ComfyServer, folder: Path):
    clip = (folder / "one.mp4").read_bytes()
    edge = uuid.uuid4().hex
    parts = [f'name="{name}"\r\n\r\n{value}'.encode() for name, value in
             (("type", "input"), ("subfolder", "fresh/3_portraits"))]
    parts.append(b'name="image"; filename="walk.mp4"\r\nContent-Type: video/mp4\r\n\r\n' + clip)
    body = b"".join(b"--%s\r\nContent-Disposition: form-data; %s\r\n" % (edge.encode(), part) for part in parts)
    status, _, told = ask(comfy, "POST", "/api/upload/image", body + b"--%s--\r\n" % edge.encode(),
                          {"Content-Type": f"multipart/form-data; boundary={edge}"})
    assert status == 200 and json.loads(told)["name"] == "walk.mp4"
    assert (comfy.input / "fresh/3_portraits/walk.mp4").read_bytes() == clip
    answer = comfy.get("/api/video_lora/review?folder=input/fresh")
    assert [(clip["name"], clip["caption"]) for clip in answer["clips"]] == [("3_portraits/walk.mp4", "")]

"""Captions over HTTP: both protocols, whatever goes wrong with servers, and what must never leave the machine."""

import base64
import io
import json
import logging
import pickle
import socket
import time
import traceback
import wave
from email.utils import formatdate

import pytest
import requests
import torch
from caption_server import Answer, caption_server, chat, fails, gemini
from PIL import Image

from video_lora_studio.training import CaptionService, ServiceConfig
from video_lora_studio.training.dataset.captioners import service as service_module
from video_lora_studio.training.dataset.captioners.captioner import CaptionError, Shown
from video_lora_studio.training.dataset.captioners.destination import destination

KEY = "sk-very-secret-0123456789"
VARIABLES = ("OPENAI_API_KEY", "GEMINI_API_KEY", "VIDEO_LORA_API_KEY", "VIDEO_LORA_CAPTION_HOSTS")
BOTH = pytest.mark.parametrize("service", ["OpenAI-compatible", "Gemini"])


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No key and no further host but those a test sets; short waits."""
    proxies = [name for word in ("http", "https", "all") for name in (f"{word}_proxy", f"{word}_PROXY".upper())]
    for name in (*VARIABLES, *proxies, "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(service_module, "FIRST_WAIT", 0.02)


@pytest.fixture
def nothing_sent(monkeypatch):
    """Any look-up of a name and any connection fails the test."""
    def refuse(*_, **__):
        raise AssertionError("something was sent")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)


class Sent:
    """Stands where requests hands over to the network; keeps what it would have sent."""

    def __init__(self, monkeypatch, body):
        self.requests, self.options = [], []

        def send(_, request, **options):
            self.requests.append(request)
            self.options.append(options)
            response = requests.Response()
            response.status_code, response.request, response.url = 200, request, request.url
            response.raw = io.BytesIO(json.dumps(body).encode())
            return response

        monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", send)


def shown(frames=3, **more):
    pictures = torch.arange(frames, dtype=torch.uint8)[:, None, None, None].expand(-1, 48, 64, 3) * 50
    return Shown(frames=pictures, fps=2.0, instruction="Describe it.", max_tokens=100, **more)


def caption_service(server=None, service="OpenAI-compatible", check=lambda: None, **more):
    config = {"service": service, "model": "a-model", **({"address": server.url} if server else {}), **more}
    return CaptionService(ServiceConfig(**config), check)


def good(service, text="A cat."):
    return chat(text) if service == "OpenAI-compatible" else gemini(text)


def everything(error):
    """All that could be printed of an error, its causes and contexts included."""
    found, seen = [], set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        found += [str(error), repr(error), repr(vars(error)), *map(str, error.args)]
        found += traceback.format_exception(error)
        error = error.__cause__ or error.__context__
    return "\n".join(found)


def test_openai_question_has_frames_sound_and_instruction_in_order():
    sound = torch.stack([torch.full((1600,), 0.5), torch.full((1600,), 0.1)])
    with caption_server(chat("A cat walks.")) as server:
        writer = caption_service(server, address=f"{server.url}/v1/", sound=True)
        assert writer.caption(shown(sound=sound, seed=7)) == "A cat walks."
    (request,) = server.requests
    assert request["path"] == "/v1/chat/completions"
    assert "authorization" not in request["headers"]
    body = request["json"]
    assert (body["model"], body["max_tokens"], body["seed"], body["stream"]) == ("a-model", 100, 7, False)
    content = body["messages"][0]["content"]
    assert [part["type"] for part in content] == ["image_url"] * 3 + ["input_audio", "text"]
    assert "3 images" in content[-1]["text"] and "0.50 seconds" in content[-1]["text"]
    assert content[-1]["text"].endswith("Describe it.")
    for place, part in enumerate(content[:3]):
        head, _, data = part["image_url"]["url"].partition(",")
        picture = Image.open(io.BytesIO(base64.b64decode(data)))
        assert head == "data:image/jpeg;base64" and picture.size == (64, 48)
        assert abs(picture.getpixel((30, 20))[0] - 50 * place) <= 3
    with wave.open(io.BytesIO(base64.b64decode(content[3]["input_audio"]["data"]))) as heard:
        assert (heard.getframerate(), heard.getnchannels(), heard.getnframes()) == (16000, 1, 1600)
        assert int.from_bytes(heard.readframes(1), "little", signed=True) == round(0.3 * 32767)


def test_gemini_question_has_inline_frames_and_sound():
    with caption_server(gemini("A dog ", "runs.", thought="Let me think.")) as server:
        writer = caption_service(server, "Gemini", address=f"{server.url}/v1beta", model="models/gemini-2.5-flash")
        assert writer.caption(shown(sound=torch.zeros(2, 1600), seed=3)) == "A dog runs."
    (request,) = server.requests
    assert request["path"] == "/v1beta/models/gemini-2.5-flash:generateContent"
    parts = request["json"]["contents"][0]["parts"]
    assert [part.get("inlineData", {}).get("mimeType") for part in parts] == ["image/jpeg"] * 3 + ["audio/wav", None]
    assert parts[-1]["text"].endswith("Describe it.")
    assert request["json"]["generationConfig"] == {"maxOutputTokens": 100, "seed": 3}


def test_a_picture_is_not_called_a_frame():
    with caption_server(chat("A cat.")) as server:
        caption_service(server).caption(shown(frames=1))
    assert server.requests[0]["json"]["messages"][0]["content"][-1]["text"] == "Describe it."


@BOTH
@pytest.mark.parametrize("trouble", [
    fails(429, headers={"Retry-After": "0.3"}), fails(503, headers={"Retry-After": "0.3"}), fails(500), fails(502),
    fails(408), Answer(529, "<html>overloaded</html>"), Answer(drop=True),
], ids=["429", "503", "500", "502", "408", "529", "dropped"])
def test_passing_trouble_is_waited_out(service, trouble):
    with caption_server(trouble, trouble, good(service)) as server:
        assert caption_service(server, service).caption(shown()) == "A cat."
    assert len(server.requests) == 3
    gaps = [after["time"] - before["time"] for before, after in zip(server.requests, server.requests[1:], strict=False)]
    wanted = [0.3, 0.3] if "Retry-After" in trouble.headers else [0.02, 0.04]
    assert all(gap >= least for gap, least in zip(gaps, wanted, strict=True)), gaps


def test_waits_asked_for_as_a_date_or_in_googles_details_are_kept():
    date = formatdate(time.time() + 2, usegmt=True)
    details = [{"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "0.4s"}]
    with caption_server(
        fails(429, headers={"Retry-After": date}), fails(429, details=details), gemini("A cat.")
    ) as server:
        assert caption_service(server, "Gemini").caption(shown()) == "A cat."
    times = [request["time"] for request in server.requests]
    assert times[1] - times[0] > 0.5 and 0.4 <= times[2] - times[1] < 2


@BOTH
@pytest.mark.parametrize(("answer", "told"), [
    (fails(500, "the GPU is on fire"), "HTTP 500, the GPU is on fire"),
    (fails(400, "too many images"), "HTTP 400, too many images"),
    (fails(413), "HTTP 413"),
    (Answer(body="<html>hello"), "did not answer the way"),
    (Answer(body='{"choices": [{"mess'), "did not answer the way"),
    (Answer(body=[]), "did not answer the way"),
    (Answer(body={"choices": [], "candidates": []}), "did not answer the way"),
    (Answer(body={"choices": [{"message": "x"}], "candidates": ["x"]}), "did not answer the way"),
    (Answer(body={"choices": [None], "candidates": [None]}), "did not answer the way"),
    (Answer(body={"choices": [{"message": {"content": 7}}],
                  "candidates": [{"content": {"parts": [{"text": 7}]}}]}), "did not answer the way"),
    (Answer(body="\ufffd" * 5_000_000), "did not answer the way"),
], ids=["500", "400", "413", "html", "cut", "list", "empty", "text", "null", "number", "huge"])
def test_one_clip_without_a_caption_is_told(service, answer, told):
    with caption_server(answer) as server, pytest.raises(CaptionError, match=told):
        caption_service(server, service).caption(shown())
    assert len(server.requests) == (5 if answer.status == 500 else 1)


@pytest.mark.parametrize(("service", "answer", "told"), [
    ("OpenAI-compatible", chat(""), "the answer is empty$"),
    ("OpenAI-compatible", chat(None), "the answer is empty$"),
    ("OpenAI-compatible", chat("", "length", reasoning_content="hm"), "raise Longest caption"),
    ("OpenAI-compatible", chat(None, refusal="I will not."), "the model refused: I will not."),
    ("OpenAI-compatible", chat("half", "content_filter"), "content rules"),
    ("Gemini", gemini(), "the answer is empty$"),
    ("Gemini", gemini(finish="MAX_TOKENS"), "raise Longest caption"),
    ("Gemini", gemini("x", finish="SAFETY"), "content rules"),
    ("Gemini", Answer(body={"candidates": [{"finishReason": "PROHIBITED_CONTENT"}]}), "content rules"),
    ("Gemini", Answer(body={"promptFeedback": {"blockReason": "SAFETY"}}), r"refused the clip \(SAFETY\)"),
])
def test_empty_and_refused_answers_are_told(service, answer, told):
    with caption_server(answer) as server, pytest.raises(CaptionError, match=told):
        caption_service(server, service).caption(shown())
    assert len(server.requests) == 1


def test_content_in_parts_is_read():
    with caption_server(chat([{"type": "text", "text": "A "}, {"type": "text", "text": "cat."}])) as server:
        assert caption_service(server).caption(shown()) == "A cat."


@BOTH
@pytest.mark.parametrize(("answer", "told"), [
    (fails(401), "wants a key"),
    (fails(403), "wants a key"),
    (fails(400, details=[{"reason": "API_KEY_INVALID"}]), "wants a key"),
    (fails(404, "model 'a-model' not found"), "HTTP 404, model 'a-model' not found"),
    (fails(402, "no credit"), "HTTP 402, no credit"),
    (fails(429, "spent", type="insufficient_quota"), "HTTP 429, spent"),
    (fails(429, headers={"Retry-After": "7200"}), "asks to wait 120 minutes"),
    (fails(429, headers={"Retry-After": "9" * 400}), "HTTP 429|asks to wait"),
], ids=["401", "403", "key", "404", "402", "quota", "two hours", "for ever"])
def test_what_no_clip_survives_stops_the_run(service, answer, told):
    with caption_server(answer) as server, pytest.raises(ValueError, match=told):
        caption_service(server, service).caption(shown())


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects_are_not_followed(status):
    with caption_server(chat("stolen")) as thief:
        answer = Answer(status, "", {"Location": f"{thief.url}/v1/chat/completions"})
        with caption_server(answer) as server, pytest.raises(ValueError, match="not followed") as caught:
            caption_service(server).caption(shown())
    assert not isinstance(caught.value, CaptionError)
    assert len(server.requests) == 1 and not thief.requests


def test_nobody_there_and_nobody_answering(monkeypatch):
    with caption_server(chat("x")) as server:
        pass
    with pytest.raises(ValueError, match="Is the server running") as caught:
        caption_service(server).caption(shown())
    assert not isinstance(caught.value, CaptionError)
    monkeypatch.setattr(service_module, "PATIENCE", (1.0, 0.2))
    with caption_server(Answer(delay=0.6)) as server:
        with pytest.raises(CaptionError, match="no answer in time"):
            caption_service(server).caption(shown())
        assert len(server.requests) == 2
    with caption_server(Answer(headers={"Content-Length": "100"})) as server, pytest.raises(CaptionError, match="time"):
        caption_service(server).caption(shown())


def test_after_close_it_can_be_used_again():
    with caption_server(chat("A cat.")) as server:
        writer = caption_service(server)
        assert [writer.caption(shown()), writer.close(), writer.caption(shown())] == ["A cat.", None, "A cat."]


def test_requests_a_minute_are_kept():
    with caption_server(chat("A cat.")) as server:
        writer = caption_service(server, requests_per_minute=200)
        for _ in range(3):
            writer.caption(shown())
    times = [request["time"] for request in server.requests]
    assert all(after - before >= 0.28 for before, after in zip(times, times[1:], strict=False)), times


@pytest.mark.parametrize("answer", [Answer(delay=5), fails(429, headers={"Retry-After": "30"})], ids=["asking", "wait"])
def test_cancel_is_heard_while_waiting(answer):
    begun = time.monotonic()

    def check():
        if time.monotonic() - begun > 0.3:
            raise InterruptedError("stopped")

    with caption_server(answer) as server, pytest.raises(InterruptedError):
        caption_service(server, check=check).caption(shown())
    assert time.monotonic() - begun < 2


def test_before_tells_requests_size_tokens_and_cost():
    writer = caption_service(price_in=2.0, price_out=8.0, address="http://127.0.0.1:9/v1")
    pictures = Shown(frames=torch.zeros(16, 360, 640, 3, dtype=torch.uint8), fps=3.0, instruction="x" * 400)
    told = writer.before(50, pictures)
    assert told.startswith("50 requests to 127.0.0.1:9: about 4.")
    assert "240,800 tokens in" not in told  # the instruction counts as well
    tokens = 50 * (16 * -(-640 * 360 // 784) + len(pictures.timed_instruction) // 4)
    assert f"{tokens:,} tokens in and at most 12,800 of captions out" in told
    assert f"about {(tokens * 2 + 12_800 * 8) / 1e6:.2f} at the prices set" in told
    assert "price" not in caption_service(address="http://127.0.0.1:9").before(1, pictures)


def test_too_much_for_one_request_is_not_sent(monkeypatch, nothing_sent):
    monkeypatch.setattr(service_module, "LARGEST_QUESTION", 1000)
    with pytest.raises(CaptionError, match="show fewer frames"):
        caption_service().caption(shown())


@pytest.mark.parametrize("address", [
    "http://127.0.0.1:11434/v1", "http://localhost:1234/v1", "http://LOCALHOST:1234", "http://[::1]:8080/v1/",
    "http://10.0.0.8:8000", "http://172.16.3.4:8000/v1", "http://192.168.1.20/v1", "https://192.168.1.20:8443/v1",
    "http://[fd12:3456::7]:8000/v1", "http://127.8.9.1:1",
])
def test_own_network_is_taken_and_gets_no_key(address, monkeypatch):
    for name in VARIABLES[:3]:
        monkeypatch.setenv(name, KEY)
    sent = Sent(monkeypatch, chat("A cat.").body)
    assert caption_service(address=address).caption(shown()) == "A cat."
    assert "Authorization" not in sent.requests[0].headers
    assert KEY not in str(sent.requests[0].headers) + sent.requests[0].url + str(sent.requests[0].body)


REFUSED = [
    "http://evil.example/v1", "https://evil.example/v1", "http://8.8.8.8/v1", "https://8.8.8.8/v1",
    "http://2130706433/v1", "http://0x7f000001/v1", "http://0177.0.0.1/v1", "http://127.1/v1",
    "http://0.0.0.0:8000", "http://169.254.169.254/latest", "http://100.64.0.1", "http://[::ffff:127.0.0.1]:80/v1",
    "http://[::]/", "http://[fe80::1]/", "http://[2001:db8::1]/", "http://172.32.0.1", "http://11.0.0.1",
    "http://localhost.evil.example", "http://127.0.0.1.evil.example", "http://nas.local:8000",
    "https://api.openai.com.evil.example/v1", "https://evil-api.openai.com/v1",
    "https://api.openai.com:8443/v1", "http://api.openai.com/v1", "http://api.openai.com:443/v1",
    "https://generativelanguage.googleapis.com.evil.example", "http://generativelanguage.googleapis.com/v1beta",
]
MALFORMED = [
    "127.0.0.1:11434", "ftp://127.0.0.1", "file:///etc/passwd", "http://", "http://127.0.0.1:0", "http://127.0.0.1:99999",
    "http://user:" + KEY + "@127.0.0.1/v1", "http://127.0.0.1@evil.example/", "http://127.0.0.1\\@evil.example/",
    "https://api.openai.com@evil.example/v1", "https://api.openai.com/v1?key=" + KEY, "http://127.0.0.1/#" + KEY,
    "http://127.0.0.1\n.evil.example/", "http://127.0.0.1%2f.evil.example/", "http://127。0。0。1/", "http://ⓛocalhost/",
    "http://127.0.0.1./v1", "http://localhost.", "https://api.openai.com./v1",
    "http://[::1%25eth0]/", "http://[::1/", "http://[1]/", "http://127.0.0.1/a b", "http://127.0.0.1//evil.example/x?y",
]


@pytest.mark.parametrize("address", REFUSED)
def test_other_hosts_are_refused_before_anything_is_sent(address, nothing_sent, monkeypatch):
    for name in VARIABLES[:3]:
        monkeypatch.setenv(name, KEY)
    monkeypatch.setenv("VIDEO_LORA_CAPTION_HOSTS", "captions.example.org")
    with pytest.raises(ValueError, match="^Address: (no footage is sent to|footage is sent to .* only by https)"):
        caption_service(address=address)


@pytest.mark.parametrize("address", MALFORMED)
def test_addresses_that_are_not_plain_are_refused_and_not_repeated(address, nothing_sent):
    with pytest.raises(ValueError, match="Address") as caught:
        caption_service(address=address)
    assert KEY not in everything(caught.value)


def test_a_name_is_not_judged_by_what_it_resolves_to(monkeypatch):
    """A stranger's name may resolve to a private address now, and to the stranger's a moment later."""
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(2, 1, 6, "", ("127.0.0.1", 80))])
    with pytest.raises(ValueError, match="no footage is sent to rebind.example"):
        destination("http://rebind.example/v1")


@pytest.mark.parametrize(("hosts", "address", "allowed"), [
    ("captions.example.org", "https://captions.example.org/v1", True),
    ("CAPTIONS.example.org:8443", "https://captions.example.org:8443/v1", True),
    ("https://captions.example.org", "https://captions.example.org/v1", True),
    ("a.example, captions.example.org;b.example", "https://captions.example.org", True),
    ("http://nas.local:8000", "http://nas.local:8000/v1", True),
    ("http://8.8.8.8", "http://8.8.8.8/v1", True),
    ("[2001:DB8::1]", "https://[2001:db8:0::1]/v1", True),
    ("captions.example.org", "http://captions.example.org/v1", False),
    ("captions.example.org:8443", "https://captions.example.org/v1", False),
    ("http://nas.local:8000", "http://nas.local:8001/v1", False),
    ("captions.example.org", "https://sub.captions.example.org/v1", False),
    ("http://api.openai.com", "http://api.openai.com/v1", False),
])
def test_the_owner_of_the_machine_allows_hosts_by_name(hosts, address, allowed, monkeypatch):
    monkeypatch.setenv("VIDEO_LORA_CAPTION_HOSTS", hosts)
    if not allowed:
        with pytest.raises(ValueError, match="Address"):
            destination(address)
        return
    assert destination(address).key_variable == "VIDEO_LORA_API_KEY"


def test_a_list_of_hosts_that_is_none_is_told(monkeypatch):
    monkeypatch.setenv("VIDEO_LORA_CAPTION_HOSTS", "https://user@host")
    with pytest.raises(ValueError, match="VIDEO_LORA_CAPTION_HOSTS must hold hosts"):
        destination("http://127.0.0.1")


KEYS = dict(zip(VARIABLES, ("openai-key-1111", "gemini-key-2222", "own-key-3333"), strict=False))


@pytest.mark.parametrize(("address", "service", "header", "variable"), [
    ("https://api.openai.com/v1", "OpenAI-compatible", "Authorization", "OPENAI_API_KEY"),
    ("", "Gemini", "x-goog-api-key", "GEMINI_API_KEY"),
    ("https://generativelanguage.googleapis.com/v1beta/openai", "OpenAI-compatible", "Authorization", "GEMINI_API_KEY"),
    ("https://captions.example.org/v1", "OpenAI-compatible", "Authorization", "VIDEO_LORA_API_KEY"),
    ("http://127.0.0.1:8001/v1", "OpenAI-compatible", "Authorization", "VIDEO_LORA_API_KEY"),
    ("http://127.0.0.1:8002/v1", "OpenAI-compatible", "", ""),
    ("", "OpenAI-compatible", "", ""),
])
def test_every_key_goes_in_a_header_to_its_host_only(address, service, header, variable, monkeypatch, tmp_path):
    for name, key in KEYS.items():
        monkeypatch.setenv(name, key)
    monkeypatch.setenv("VIDEO_LORA_CAPTION_HOSTS", "captions.example.org, 127.0.0.1:8001")
    netrc = tmp_path / "netrc"
    netrc.write_text("default login somebody password netrc-secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    sent = Sent(monkeypatch, good(service).body)
    caption_service(address=address, service=service).caption(shown())
    (request,) = sent.requests
    found = {name: value for name, value in request.headers.items() if any(key in value for key in KEYS.values())}
    bearer = "Bearer " if header == "Authorization" else ""
    assert found == ({header: bearer + KEYS[variable]} if header else {})
    assert not any(key in request.url or key.encode() in request.body for key in KEYS.values())
    assert header == "Authorization" or "Authorization" not in request.headers
    assert sent.options[0]["verify"] is True


def test_known_services_need_their_key_before_anything_is_sent(nothing_sent):
    writer = caption_service(address="https://api.openai.com/v1")
    for call in (lambda: writer.before(1, shown()), lambda: writer.caption(shown())):
        with pytest.raises(ValueError, match="set the environment variable OPENAI_API_KEY"):
            call()


def test_thinking_has_room_at_the_known_services(monkeypatch):
    for name in VARIABLES[:2]:
        monkeypatch.setenv(name, KEY)
    sent = Sent(monkeypatch, chat("A cat.").body)
    caption_service(address="https://api.openai.com/v1").caption(shown())
    body = json.loads(sent.requests[0].body)
    assert body["max_completion_tokens"] > 1000 and not {"max_tokens", "seed", "temperature"} & set(body)
    sent = Sent(monkeypatch, gemini("A cat.").body)
    caption_service(service="Gemini").caption(shown())
    assert json.loads(sent.requests[0].body)["generationConfig"]["maxOutputTokens"] > 1000


def test_own_network_is_reached_without_a_proxy(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example:3128")
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    sent = Sent(monkeypatch, chat("A cat.").body)
    caption_service(address="http://192.168.1.20:8000/v1").caption(shown())
    assert not sent.options[0]["proxies"]
    caption_service(address="https://api.openai.com/v1").caption(shown())
    assert sent.options[1]["proxies"]["https"] == "http://proxy.example:3128"


@BOTH
@pytest.mark.parametrize("answer", [
    fails(401, f"Incorrect API key provided: {KEY}"), fails(400, f"key {KEY}"), fails(500, f"key {KEY}"),
    fails(404, f"key {KEY}"), fails(429, KEY, type="insufficient_quota"), Answer(400, f"Bearer {KEY}"),
    Answer(302, "", {"Location": f"http://x/?key={KEY}"}), Answer(body=f"{KEY}"), Answer(drop=True),
    Answer(body={"promptFeedback": {"blockReason": KEY}, "choices": [{"message": {"refusal": KEY}}]}),
], ids=["401", "400", "500", "404", "quota", "text", "redirect", "malformed", "dropped", "refusal"])
def test_a_key_is_in_no_error_and_no_log(service, answer, monkeypatch, caplog):
    caplog.set_level(logging.DEBUG)
    with caption_server(answer) as server:
        monkeypatch.setenv("VIDEO_LORA_CAPTION_HOSTS", "127.0.0.1")
        monkeypatch.setenv("VIDEO_LORA_API_KEY", KEY)
        writer = caption_service(server, service)
        told = writer.before(1, shown())
        with pytest.raises(ValueError) as caught:
            writer.caption(shown())
    assert KEY in str(server.requests[0]["headers"])  # it was sent, as it should be
    logged = "\n".join(f"{record.getMessage()} {vars(record)}" for record in caplog.records)
    assert KEY not in everything(caught.value) + logged + told + repr(writer) + writer.title + repr(vars(writer))


def test_a_key_that_a_server_repeats_is_not_in_the_caption(monkeypatch):
    with caption_server(chat(f"A cat holds a note: Bearer {KEY}.")) as server:
        monkeypatch.setenv("VIDEO_LORA_CAPTION_HOSTS", "127.0.0.1")
        monkeypatch.setenv("VIDEO_LORA_API_KEY", KEY)
        assert caption_service(server).caption(shown()) == "A cat holds a note: Bearer [key]."


@pytest.mark.parametrize("key", ["two\nlines-secret", "schlüssel-secret", "with blank-secret", "a\x00b-secret"])
def test_what_cannot_be_a_key_is_told_without_it(key, monkeypatch, nothing_sent):
    monkeypatch.setattr("os.environ", {"OPENAI_API_KEY": key})
    with pytest.raises(ValueError, match="OPENAI_API_KEY is not a key") as caught:
        caption_service(address="https://api.openai.com/v1").caption(shown())
    assert "secret" not in everything(caught.value)


def test_settings_hold_no_key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    config = ServiceConfig(model="gpt-5-mini", address="https://api.openai.com/v1")
    CaptionService(config).before(1, shown())
    assert KEY.encode() not in pickle.dumps(config)
    assert not [name for name in ServiceConfig.__dataclass_fields__ if "key" in name or "token" in name]


@pytest.mark.parametrize("model", ["", "  "])
def test_a_model_must_be_named(model):
    with pytest.raises(ValueError, match="Model is empty"):
        caption_service(model=model)


@pytest.mark.parametrize("model", ["../../v1/secret", "a:b", "x?key=1", "a/b", "x#y"])
def test_a_gemini_models_name_cannot_lead_elsewhere(model):
    with pytest.raises(ValueError, match="not a name of a Gemini model"):
        caption_service(service="Gemini", model=model)

"""Where footage may be sent, and with which key. Nothing is looked up or sent here.

The address of a service comes from a workflow, and workflows come from strangers. So footage goes only to numbers of
this machine and of private networks, to the two services below, and to hosts that the owner of this machine has named
in an environment variable; and a key only to the host it belongs to. Names are never judged by what they resolve to:
whoever owns a name decides that, and may decide otherwise a moment later.
"""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass

HOSTS_VARIABLE = "VIDEO_LORA_CAPTION_HOSTS"
KEY_VARIABLE = "VIDEO_LORA_API_KEY"
SERVICES = {"api.openai.com": "OPENAI_API_KEY", "generativelanguage.googleapis.com": "GEMINI_API_KEY"}
"""Known services and the environment variables that their keys are in."""

# Loopback, RFC 1918 and RFC 4193. Link-local addresses are not among them: clouds answer there with their secrets.
OWN_NETWORKS = tuple(
    ipaddress.ip_network(network)
    for network in ("127.0.0.0/8", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "::1/128", "fc00::/7")
)
_HOST = r"(?P<host>\[[0-9a-f:.]+\]|[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?)(?::(?P<port>\d{1,5}))?"
_ADDRESS = re.compile(rf"(?P<scheme>https?)://{_HOST}(?P<path>(?:/[A-Za-z0-9._~-]+)*)/?", re.IGNORECASE)
_ENTRY = re.compile(rf"(?:(?P<scheme>https?)://)?{_HOST}/?", re.IGNORECASE)
PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, kw_only=True)
class Destination:
    """An address that footage may be sent to."""

    url: str
    """Scheme, host, port and path, put together anew from their checked parts; no slash at the end."""
    host: str
    """Host, and port where it is not the usual one."""
    key_variable: str
    """The environment variable with the key that goes there; empty where none may."""
    known: bool
    """One of SERVICES, which answer nobody without a key."""
    own_network: bool
    """This machine or a private network, by its number."""

    def key(self) -> str:
        """The key that goes to this host, read anew each time so that it is kept nowhere; empty where there is none.

        Raises ValueError, naming only the variable, where a known service has none or it cannot be a key.
        """
        key = os.environ.get(self.key_variable, "").strip() if self.key_variable else ""
        if self.known and not key:
            raise ValueError(
                f"{self.host} needs a key: set the environment variable {self.key_variable} and start ComfyUI again."
            )
        if key and not re.fullmatch(r"[\x21-\x7e]+", key):
            raise ValueError(f"What is in the environment variable {self.key_variable} is not a key: copy it again.")
        return key


def destination(address: str) -> Destination:
    """The place behind an address. Raises ValueError where footage must not go there, or it is no plain address."""
    found = _ADDRESS.fullmatch(address.strip())
    if found is None:  # what was given is not repeated: it may hold a key
        raise ValueError(
            "Address must read like http://127.0.0.1:11434/v1: no user name, key, '?' or '#' in it. "
            "Keys are taken from environment variables only."
        )
    scheme, (host, number), port = found["scheme"].lower(), _host(found["host"]), _port(found)
    shown = host if port == PORTS[scheme] else f"{host}:{port}"
    own = host == "localhost" or any(number in network for network in OWN_NETWORKS if number)
    known = host in SERVICES and port == PORTS[scheme]
    entries = [entry for entry in _entries() if entry["host"] == host and entry["port"] in (None, port)]
    if not (own or known or entries):
        raise ValueError(
            f"Address: no footage is sent to {shown}. It may go to this machine and to private networks (by number, "
            f"such as 192.168.1.20), to {' and '.join(SERVICES)}, and to hosts named in the environment variable "
            f"{HOSTS_VARIABLE}."
        )
    if scheme == "http" and not own and (known or not any(entry["scheme"] == "http" for entry in entries)):
        raise ValueError(f"Address: footage is sent to {shown} only by https://.")
    return Destination(
        url=f"{scheme}://{shown}{found['path']}", host=shown, known=known, own_network=own,
        key_variable=SERVICES[host] if known else KEY_VARIABLE if entries else "",
    )


def _host(text: str) -> tuple[str, ipaddress.IPv4Address | ipaddress.IPv6Address | None]:
    """A host as it is written in addresses, lower case, and its number where it is one."""
    bare = text.strip("[]").lower()
    try:
        number = ipaddress.ip_address(bare)
    except ValueError:
        if text.startswith("["):
            raise ValueError("Address: what is between the brackets is not an IPv6 number.") from None
        return bare, None
    return (f"[{number}]" if number.version == 6 else str(number)), number


def _port(found: re.Match) -> int:
    port = int(found["port"]) if found["port"] else PORTS[found["scheme"].lower()]
    if not 0 < port < 65536:
        raise ValueError("Address: the number of the port must be between 1 and 65535.")
    return port


def _entries() -> list[dict]:
    """What the owner of this machine allows: `host`, `host:port`, or `http://host:port` to allow it without TLS."""
    entries = []
    for entry in filter(None, re.split(r"[,;\s]+", os.environ.get(HOSTS_VARIABLE, ""))):
        found = _ENTRY.fullmatch(entry)
        if found is None:
            raise ValueError(
                f"The environment variable {HOSTS_VARIABLE} must hold hosts separated by commas, such as "
                "captions.example.org or http://nas.local:8000."
            )
        scheme = (found["scheme"] or "").lower()
        port = int(found["port"]) if found["port"] else PORTS.get(scheme)
        entries.append({"scheme": scheme, "host": _host(found["host"])[0], "port": port})
    return entries

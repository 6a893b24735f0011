"""Interfaces, the machine's own name, the port."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Iterable

import psutil

from clusters.doctor.finding import Finding, failed, ok, warning
from parallel.launch import INTERFACES, PreflightError, check_free, check_interfaces

IPFamilies = (socket.AF_INET, socket.AF_INET6)


def check_sockets(backends: Iterable[str] = tuple(INTERFACES)) -> list[Finding]:
    """The interfaces that are chosen for gloo and nccl."""
    found = []
    for backend in backends:
        variable = INTERFACES[backend]
        value = os.environ.get(variable, "")
        try:
            check_interfaces(backend)
        except PreflightError as error:
            said, _, remedy = str(error).rpartition(": ")
            found.append(failed(f"{backend} interface", said, "", remedy))
        else:
            found.append(ok(f"{backend} interface", f"{variable}={value}" if value else f"{variable} is not set"))
    return found


def check_hostname(is_one_of_many: bool, name: str = "") -> list[Finding]:
    """gloo and NCCL tell the other ranks the address that the machine's own name leads to, unless an interface is chosen."""
    name = name or socket.gethostname()
    chosen = [variable for variable in INTERFACES.values() if os.environ.get(variable)]
    own = own_addresses()
    reached = ", ".join(sorted(address for address in own if not _is_loop(address))[:2]) or "none"
    remedy = (
        f"in /etc/hosts give {name} the address that the others reach (here: {reached}), not 127.0.1.1; or choose an interface "
        "(GLOO_SOCKET_IFNAME, NCCL_SOCKET_IFNAME)"
    )
    weak = failed if is_one_of_many and not chosen else warning
    try:
        addresses = sorted({str(found[4][0]) for found in socket.getaddrinfo(name, None)})
    except OSError:
        return [weak("hostname", f"{name} leads nowhere", "an address of this machine", remedy)]
    text = f"{name} is {', '.join(addresses)}"
    if all(_is_loop(address) for address in addresses):
        if not is_one_of_many:
            return [ok("hostname", f"{text}: other machines could not reach it")]
        return [weak("hostname", text, "an address that other machines reach", remedy)]
    if not own & set(addresses):
        return [weak("hostname", text, "an address of this machine", remedy)]
    return [ok("hostname", text)]


def check_port(port: int) -> list[Finding]:
    try:
        check_free(port)
    except PreflightError as error:
        said, _, remedy = str(error).partition(": ")
        return [failed("port", said, f"a free port where ranks meet, not {port}", remedy)]
    return [ok("port", f"{port} is free")]


def own_addresses() -> set[str]:
    interfaces = psutil.net_if_addrs().values()
    return {a.address.partition("%")[0] for addresses in interfaces for a in addresses if a.family in IPFamilies}


def _is_loop(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback

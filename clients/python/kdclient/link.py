# SPDX-License-Identifier: Apache-2.0
"""One connection, on an asyncio loop: frames in and out, credits, pings. It knows requests by their ids and nothing of questions."""
from __future__ import annotations

import asyncio
import collections
import itertools
import re
import ssl
from dataclasses import dataclass
from typing import Deque, Dict, Optional

from . import frame
from .checksum import Piece
from .errors import KdError
from .frame import Header, Info, Kind

HELLO_BYTES = 1024    # of any body before WELCOME
MAX_PING_BYTES = 64
MAX_PONGS = 16    # on their way to a server that does not read; the next is left out
TLS_ALERT = 0x15    # first byte of what a TLS server says to who speaks something else
ENDS_OR_ANSWERS = (Kind.ANSWER, Kind.TOKENS, Kind.DONE, Kind.ERROR, Kind.REPLY, Kind.PONG)


class Receiver:
    """Who is told about one request, on the loop. Either `take` gets its last frame, or `fail` is called, once."""

    credited = True    # holds a credit, which its last frame gives back

    def take(self, kind: Kind, body: bytes, answer: Optional[frame.Answer]) -> None:
        """A frame of the request; a KdError raised here ends the connection."""
        raise NotImplementedError

    def fail(self, error: KdError) -> None:
        """The connection is lost."""
        raise NotImplementedError


def _trust(ca: Optional[str]) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca)
    except (OSError, ValueError) as error:
        raise KdError("invalid", "%s: %s" % (ca, error), "ca") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


@dataclass(frozen=True)
class Address:
    """unix:PATH, tcp:HOST:PORT or, encrypted, tls:HOST:PORT (also [V6])"""
    path: Optional[str]
    host: str
    port: int
    context: Optional[ssl.SSLContext] = None    # with tls: whom it trusts
    name: Optional[str] = None    # and whom the certificate must be for

    @staticmethod
    def parse(text: str, ca: Optional[str] = None, server_name: Optional[str] = None) -> Address:
        found = re.fullmatch(r"(tcp|tls):(?:\[([^\]]+)\]|([^:\[\]]+)):(\d{1,5})", text)
        if (ca or server_name) and not (found and found.group(1) == "tls"):
            raise KdError("invalid", "%r is not encrypted: tls:HOST:PORT is expected with it" % text, "ca" if ca else "server_name")
        if text.startswith("unix:") and len(text) > 5:
            return Address(text[5:], "", 0)
        if not found or not 0 < int(found.group(4)) < 65536:
            raise KdError("invalid", "%r is not unix:PATH, tcp:HOST:PORT or tls:HOST:PORT" % text, "address")
        host, port = found.group(2) or found.group(3), int(found.group(4))
        return Address(None, host, port, _trust(ca), server_name or host) if found.group(1) == "tls" else Address(None, host, port)


# What OpenSSL calls X509_V_ERR_*; anything else about a certificate is a matter of trust.
CERTIFICATE_FAULTS = {9: "is not valid yet", 10: "has expired", 23: "was revoked", 26: "is not for servers", 62: "is for another name",
                      64: "is for another name"}


def _tls_error(address: Address, error: ssl.SSLError) -> KdError:
    if isinstance(error, ssl.SSLCertVerificationError):
        what = CERTIFICATE_FAULTS.get(error.verify_code, "is not trusted (%s)" % error.verify_message)
        return KdError("unauthorized", "the certificate of %s %s" % (address.name, what), "address")
    if error.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "UNSUPPORTED_PROTOCOL", "PACKET_LENGTH_TOO_LONG"):
        return KdError("invalid", "what the server says is not TLS: is it tcp:, not tls:?", "address")
    return KdError("invalid", "the TLS handshake failed: %s" % (error.reason or error), "address")


class Link(asyncio.BufferedProtocol):
    """After `lost` is set nothing works any more and every request has been told."""

    def __init__(self, max_body_bytes: int, silence: Optional[float]) -> None:
        self.loop = asyncio.get_running_loop()
        self.max_body_bytes = max_body_bytes
        self.silence = silence
        self.info: Optional[Info] = None
        self.lost: Optional[KdError] = None
        self.draining = False
        self.credits: Optional[asyncio.Semaphore] = None
        self.closed = asyncio.Event()
        self._transport: Optional[asyncio.Transport] = None
        self._receivers: Dict[int, Receiver] = {}
        self._ids = itertools.count(1)
        self._welcome: asyncio.Future[Info] = self.loop.create_future()
        self._writable = asyncio.Event()
        self._writable.set()
        self._header_bytes = bytearray(frame.HEADER_BYTES)
        self._header: Optional[Header] = None
        self._into = memoryview(self._header_bytes)
        self._filled = 0
        self._heard = self.loop.time()    # something it owes
        self._asked_life: Optional[float] = None    # when
        self._written = 0    # bytes given to the transport
        self._pong_ends: Deque[int] = collections.deque(maxlen=MAX_PONGS)    # how many those were behind each
        self._watch: Optional[asyncio.TimerHandle] = None

    @staticmethod
    async def open(address: Address, token: str, teacher: bytes, max_body_bytes: int, silence: Optional[float]) -> Link:
        """Connects and is welcomed, or raises KdError; the caller sets the time limit."""
        loop = asyncio.get_running_loop()
        greeting = frame.hello(token, teacher)

        def factory() -> Link:
            return Link(max_body_bytes, silence)
        try:
            if address.path is not None:
                _, link = await loop.create_unix_connection(factory, address.path)
            else:
                _, link = await loop.create_connection(factory, address.host, address.port, ssl=address.context, server_hostname=address.name)
        except ssl.SSLError as error:
            raise _tls_error(address, error) from None
        except OSError as error:
            raise KdError("unavailable", "no connection: %s" % error, "address") from None
        try:
            link.send(Kind.HELLO, 0, greeting)
            link.info = await link._welcome
        except BaseException:
            link.close()
            raise
        link.credits = asyncio.Semaphore(link.info.credits)
        return link

    # ---- requests

    def start(self, kind: Kind, body: bytes, receiver: Receiver) -> int:
        """Sends a request, for which the caller holds a credit (a PING needs none); the last frame of the request gives it back."""
        self.check()
        if self.info is not None and len(body) > self.info.max_body_bytes:       # a server hangs up on it, and on all others'
            raise KdError("too_large", "a request of %d bytes, the server takes %d" % (len(body), self.info.max_body_bytes))
        request_id = next(self._ids)
        if not self._receivers:
            self._heard = self.loop.time()
        self._receivers[request_id] = receiver
        self._keep_watch()
        self.send(kind, request_id, body)
        return request_id

    def cancel(self, request_id: int) -> None:
        if request_id in self._receivers and self.lost is None:
            self.send(Kind.CANCEL, request_id)

    def check(self) -> None:
        if self.lost is not None:
            raise KdError(*self.lost.args)    # a new one: an exception keeps the frames of all who raised it
        if self.draining:
            raise KdError("unavailable", "the server is stopping and takes no new requests")

    async def drain(self) -> None:
        """Waits until what was sent has mostly left."""
        await self._writable.wait()

    def send(self, kind: Kind, request_id: int, body: bytes = b"") -> None:
        if self._transport is not None:
            data = frame.encode(kind, request_id, body)
            self._written += len(data)
            self._transport.write(data)

    def _return_ping(self, request_id: int, body: bytes) -> None:
        assert self._transport is not None
        ends = self._pong_ends
        if len(ends) < MAX_PONGS or ends[0] <= self._written - self._transport.get_write_buffer_size():
            self.send(Kind.PONG, request_id, body)
            ends.append(self._written)

    def close(self) -> None:
        self._lose(KdError("unavailable", "the connection was closed"))

    # ---- what asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Optional[Exception]) -> None:
        if not self._welcome.done() and self._header is None and self._filled and self._header_bytes[0] == TLS_ALERT:
            self._lose(KdError("invalid", "the server speaks TLS there: tls:HOST:PORT is expected", "address"))
        self._lose(KdError("unavailable", "the connection was lost%s" % (": %s" % exc if exc else "")))
        self.closed.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def eof_received(self) -> bool:
        return False

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._into[self._filled:]

    def buffer_updated(self, nbytes: int) -> None:
        self._filled += nbytes
        if self._header is not None:
            self._hear(self._header)
        if self._filled < len(self._into):
            return
        try:
            if self._header is None:
                self._take_header()
            else:
                self._take_body(self._header, bytes(self._into))
        except KdError as error:
            self._lose(error)

    # ---- frames

    def _hear(self, header: Header) -> None:
        """A server that owes answers and sends pings instead is as good as silent."""
        if header.kind in ENDS_OR_ANSWERS:
            self._heard = self.loop.time()
            self._asked_life = None

    def _await(self, header: Optional[Header], into: bytearray) -> None:
        self._header, self._into, self._filled = header, memoryview(into), 0

    def _take_header(self) -> None:
        header = frame.decode_header(bytes(self._into), self.max_body_bytes if self._welcome.done() else HELLO_BYTES)
        self._hear(header)
        if header.body_bytes:
            self._await(header, bytearray(header.body_bytes))
        else:
            self._take_body(header, b"")

    def _take_body(self, header: Header, body: bytes) -> None:
        self._await(None, self._header_bytes)
        answer = None
        if header.kind == Kind.ANSWER:
            answer, piece = frame.decode_answer(body)
            frame.check_body(header, piece)
        else:
            frame.check_body(header, Piece.of(body))
        self._dispatch(Kind(header.kind), header.request_id, body, answer)

    def _dispatch(self, kind: Kind, request_id: int, body: bytes, answer: Optional[frame.Answer]) -> None:
        if not self._welcome.done():
            self._greeted(kind, request_id, body)
        elif kind == Kind.PING and len(body) <= MAX_PING_BYTES:
            self._return_ping(request_id, body)
        elif kind == Kind.PONG and request_id == 0:
            pass    # of our own question whether the server lives
        elif kind == Kind.GOAWAY:
            self.draining = True
        elif kind == Kind.ERROR and request_id == 0:
            raise frame.decode_error(body)[1]
        elif kind in ENDS_OR_ANSWERS and request_id in self._receivers:
            over = kind in (Kind.DONE, Kind.REPLY, Kind.PONG) or (kind == Kind.ERROR and frame.decode_error(body)[0] == frame.WHOLE_REQUEST)
            receiver = self._receivers.pop(request_id) if over else self._receivers[request_id]
            if over and receiver.credited and self.credits is not None:
                self.credits.release()
            try:
                receiver.take(kind, body, answer)
            except KdError as error:
                receiver.fail(error)    # if that was its last frame, _lose no longer knows it
                raise
        else:
            raise KdError("corrupt", "the server sent %s for request %d" % (kind.name, request_id), "frame")

    def _greeted(self, kind: Kind, request_id: int, body: bytes) -> None:
        if kind == Kind.ERROR:
            raise frame.decode_error(body)[1]
        if kind != Kind.WELCOME or request_id:
            raise KdError("corrupt", "the server sent %s instead of a welcome" % kind.name, "frame")
        self._welcome.set_result(frame.decode_welcome(body))

    def _lose(self, error: KdError) -> None:
        if self.lost is not None:
            return
        self.lost = error
        if self._watch is not None:
            self._watch.cancel()
        if not self._welcome.done():
            self._welcome.set_exception(error)
        receivers, self._receivers = self._receivers, {}
        for receiver in receivers.values():
            if self.credits is not None:
                self.credits.release()    # whoever waits for one finds the connection lost
            receiver.fail(error)
        self._writable.set()
        if self._transport is not None:
            self._transport.abort()

    # ---- a server that is silent while it owes answers is asked whether it lives

    def _keep_watch(self) -> None:
        if self.silence is not None and self._watch is None and self.lost is None:
            self._watch = self.loop.call_later(self.silence / 4, self._look)

    def _look(self) -> None:
        self._watch = None
        if not self._receivers or self.lost is not None or self.silence is None:
            return
        now = self.loop.time()
        quiet = now - self._heard
        if self._asked_life is not None and now - self._asked_life > self.silence:    # asked first: the loop may have stood still
            self._lose(KdError("unavailable", "no answer came from the server for %g s, not even one to a ping" % quiet))
            return
        if quiet > self.silence and self._asked_life is None:
            self._asked_life = now
            self.send(Kind.PING, 0, b"alive?")
        self._keep_watch()


async def open_link(address: Address, token: Optional[str], teacher: bytes, connect_timeout: Optional[float], max_body_bytes: int,
                    silence: Optional[float]) -> Link:
    try:
        return await asyncio.wait_for(Link.open(address, token or "", teacher, max_body_bytes, silence), connect_timeout)
    except asyncio.TimeoutError:
        raise KdError("deadline", "not connected and welcomed within %g s" % (connect_timeout or 0), "address") from None



"""HTTP/3 with aioquic.

`server IP PORT CERT KEY` names each client in its answer; `client IP PORT LOCAL_PORT` prints that line.
"""

import asyncio
import sys

from aioquic.asyncio import QuicConnectionProtocol, connect, serve
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import ProtocolNegotiated

# More than a few datagrams: their size is what a load balancer's header may break.
PADDING = b"." * 100_000


class Server(QuicConnectionProtocol):
    http = None
    peer = None

    def datagram_received(self, data, addr):
        self.peer = addr
        super().datagram_received(data, addr)

    def quic_event_received(self, event):
        if isinstance(event, ProtocolNegotiated):
            self.http = H3Connection(self._quic)
        for http_event in self.http.handle_event(event) if self.http else []:
            if isinstance(http_event, HeadersReceived):
                stream = http_event.stream_id
                who = f"{self.peer[0]} {self.peer[1]}\n".encode()
                self.http.send_headers(stream, [(b":status", b"200")])
                self.http.send_data(stream, who + PADDING, end_stream=True)
                self.transmit()


class Client(QuicConnectionProtocol):
    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.http = H3Connection(self._quic)
        self.body = b""
        self.ended = asyncio.get_running_loop().create_future()

    def quic_event_received(self, event):
        for http_event in self.http.handle_event(event):
            if isinstance(http_event, DataReceived):
                self.body += http_event.data
                if http_event.stream_ended and not self.ended.done():
                    self.ended.set_result(None)

    async def get(self, host):
        stream = self._quic.get_next_available_stream_id()
        request = {":method": "GET", ":scheme": "https", ":authority": host, ":path": "/"}
        headers = [(name.encode(), value.encode()) for name, value in request.items()]
        self.http.send_headers(stream, headers, end_stream=True)
        self.transmit()
        await asyncio.wait_for(self.ended, 15)
        return self.body


async def run_server(ip, port, cert, key):
    configuration = QuicConfiguration(is_client=False, alpn_protocols=H3_ALPN)
    configuration.load_cert_chain(cert, key)
    await serve(ip, int(port), configuration=configuration, create_protocol=Server)
    await asyncio.Future()


async def run_client(ip, port, local):
    configuration = QuicConfiguration(is_client=True, alpn_protocols=H3_ALPN, verify_mode=0)
    async with connect(
        ip, int(port), configuration=configuration, create_protocol=Client, local_port=int(local)
    ) as client:
        body = await client.get(ip)
        print(body.split(b"\n")[0].decode(), len(body.split(b"\n")[1]))


asyncio.run({"server": run_server, "client": run_client}[sys.argv[1]](*sys.argv[2:]))

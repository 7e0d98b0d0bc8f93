"""A balancer's host that sends what it should not.

Usage: forge.py forge HOST PORT: exchanges on one connection, and sends packets with its addresses and ports, and
                                 numbers that neither end has. Prints the client and how many exchanges there were.
       forge.py forget HOST PORT: opens three connections from one port, each with a client of its own, and forgets
                                  each without a word. Prints the clients that the service has named.
"""
import random
import socket
import struct
import sys
import time

TCP_REPAIR = 19
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
PORT = 41_000


def checksum(data):
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def segment(source, target, sequence, acknowledgement, flags, payload=b""):
    def packed(check):
        head = (source[1], target[1], sequence, acknowledgement, 5 << 4, flags, 65535, check, 0)
        return struct.pack("!HHIIBBHHH", *head) + payload

    addresses = socket.inet_aton(source[0]) + socket.inet_aton(target[0])
    pseudo = addresses + struct.pack("!BBH", 0, socket.IPPROTO_TCP, 20 + len(payload))
    return packed(checksum(pseudo + packed(0)))


def connect(target, client):
    connection = socket.create_connection(target, timeout=20, source_address=("203.0.113.1", PORT))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(f"PROXY TCP4 {client[0]} {target[0]} {client[1]} {target[1]}\r\n".encode())
    named = b""
    while not named.endswith(b"\n"):
        named += connection.recv(1)
    return connection, named.decode().strip()


def forge(target):
    connection, named = connect(target, ("192.0.2.44", 40_321))
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP)
    source = connection.getsockname()
    chance = random.Random(1)
    exchanges = 0

    def number():
        return chance.randrange(1 << 32)

    def exchange(times):
        nonlocal exchanges
        for _ in range(times):
            connection.sendall(b"ping")
            answer = b""
            while len(answer) < 4:
                piece = connection.recv(4 - len(answer))
                if not piece:
                    sys.exit(f"ended after {exchanges} exchanges")
                answer += piece
            exchanges += 1

    exchange(100)
    time.sleep(0.1)
    for flags in (RST, SYN, FIN | ACK, ACK, PSH | ACK, RST | ACK, SYN | ACK, FIN | RST):
        for _ in range(500):
            payload = b"forged" if flags & PSH else b""
            raw.sendto(segment(source, target, number(), number(), flags, payload), (target[0], 0))
        exchange(25)
    # Two looks of a second each at what was seen.
    time.sleep(2.5)
    exchange(100)
    connection.shutdown(socket.SHUT_WR)
    rest = b""
    while piece := connection.recv(100):
        rest += piece
    # The digest of everything that was sent.
    print(f"{named}: {exchanges} exchanges, then {'the end' if len(rest) == 32 else rest}")


def forget(target):
    names = []
    for number in range(3):
        connection, named = connect(target, (f"192.0.2.{44 + number}", 40_321 + number))
        names.append(named)
        for _ in range(20):
            connection.sendall(b"ping")
            connection.recv(4)
        time.sleep(0.1)
        # In repair mode it is closed without a packet.
        connection.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
        connection.close()
    print(", ".join(names))


{"forge": forge, "forget": forget}[sys.argv[1]]((sys.argv[2], int(sys.argv[3])))

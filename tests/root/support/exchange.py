"""Connections whose bytes are checked, at both ends.

Usage: exchange.py serve PORT
       exchange.py load HOST PORT CONNECTIONS BYTES AT_ONCE

The server names the client whom it sees, sends back what it receives, and ends with the SHA-256 of all of it.
The load sends version 1 headers with a client of its own for each connection, in pieces and with pauses, and
prints how many connections were right, or what was wrong with the first one.
"""
import hashlib
import random
import socket
import sys
import threading
import time


def answer(connection, client):
    try:
        connection.sendall(f"{client[0]} {client[1]}\n".encode())
        digest = hashlib.sha256()
        while piece := connection.recv(65536):
            digest.update(piece)
            connection.sendall(piece)
        connection.sendall(digest.digest())
        connection.shutdown(socket.SHUT_WR)
        connection.close()
    except OSError as error:
        print(f"server, {client}: {error}", flush=True)


def serve(port):
    listener = socket.create_server(("127.0.0.1", port), backlog=4096)
    print("up", flush=True)
    while True:
        threading.Thread(target=answer, args=listener.accept(), daemon=True).start()


def exactly(connection, length):
    received = b""
    while len(received) < length:
        piece = connection.recv(min(65536, length - len(received)))
        if not piece:
            raise EOFError(f"ended after {len(received)} of {length} bytes")
        received += piece
    return received


def exchange(address, number, size):
    chance = random.Random(number)
    client = (f"192.0.2.{1 + number % 250}", 10_000 + number % 50_000)
    with socket.create_connection(address, timeout=60) as connection:
        header = f"PROXY TCP4 {client[0]} 198.51.100.1 {client[1]} 443\r\n"
        connection.sendall(header.encode())
        line = b""
        while not line.endswith(b"\n"):
            line += exactly(connection, 1)
        if line != f"{client[0]} {client[1]}\n".encode():
            raise ValueError(f"the service saw {line}, not {client}")
        sent, received = hashlib.sha256(), hashlib.sha256()

        def send():
            left, rests = size, True
            while left:
                if rests and left <= size // 2:
                    # However busy the machine is, a connection is not over before it can be handed over.
                    time.sleep(0.05)
                    rests = False
                piece = chance.randbytes(min(left, chance.randint(1, max(2, size // 10))))
                sent.update(piece)
                connection.sendall(piece)
                left -= len(piece)
                if chance.random() < 0.1:
                    time.sleep(chance.random() / 100)

        sender = threading.Thread(target=send)
        sender.start()
        left = size
        while left:
            piece = exactly(connection, min(left, 32768))
            received.update(piece)
            left -= len(piece)
        sender.join()
        connection.shutdown(socket.SHUT_WR)
        digest = exactly(connection, 32)
        if connection.recv(1):
            raise ValueError("more than was sent came back")
        if not digest == sent.digest() == received.digest():
            raise ValueError("other bytes came than were sent")


def load(address, count, size, at_once):
    numbers, wrong, lock = iter(range(count)), [], threading.Lock()

    def work():
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            try:
                exchange(address, number, size)
            except Exception as error:
                wrong.append(f"connection {number}: {error!r}")

    workers = [threading.Thread(target=work) for _ in range(at_once)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    print(f"{count - len(wrong)} right, {len(wrong)} wrong {wrong[:3]}")


if sys.argv[1] == "serve":
    serve(int(sys.argv[2]))
else:
    host, port, count, size, at_once = sys.argv[2], *map(int, sys.argv[3:7])
    load((host, port), count, size, at_once)

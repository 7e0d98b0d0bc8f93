"""Connections through a proxy that exchange short messages without a pause.

Usage: pingpong.py PROXY SERVICE CONNECTIONS SECONDS (two ports of 127.0.0.1). Prints how many connections were right.
"""
import os
import select
import socket
import sys
import time

SIZE = 64


def serve(listener, count):
    """Sends back what every connection receives."""
    poll, connections = select.epoll(), {}
    for _ in range(count):
        connection, _address = listener.accept()
        poll.register(connection, select.EPOLLIN)
        connections[connection.fileno()] = connection
    while connections:
        for fd, _event in poll.poll():
            piece = connections[fd].recv(SIZE)
            if piece:
                connections[fd].sendall(piece)
            else:
                connections.pop(fd).close()


def exchange(proxy, count, seconds):
    """How many connections got back everything that they sent, in its order."""
    poll, connections, sent, received = select.epoll(), {}, {}, {}

    def send(fd):
        sent[fd] += 1
        connections[fd].sendall(sent[fd].to_bytes(SIZE, "big"))

    for index in range(count):
        connection = socket.create_connection(("127.0.0.1", proxy))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        fd = connection.fileno()
        connections[fd], sent[fd], received[fd] = connection, 0, b""
        connection.sendall(f"PROXY TCP4 192.0.2.{1 + index} 198.51.100.1 40000 443\r\n".encode())
        poll.register(connection, select.EPOLLIN)
    for fd in connections:
        send(fd)
    until, waiting, right = time.monotonic() + seconds, set(connections), 0
    while waiting:
        events = poll.poll(5)
        if not events:
            break
        for fd, _event in events:
            received[fd] += connections[fd].recv(SIZE)
            if len(received[fd]) < SIZE:
                continue
            is_right = received[fd] == sent[fd].to_bytes(SIZE, "big")
            received[fd] = b""
            if is_right and time.monotonic() < until:
                send(fd)
            else:
                right += is_right
                waiting.discard(fd)
    return right


proxy, service, count, seconds = map(int, sys.argv[1:5])
with socket.create_server(("127.0.0.1", service)) as listener:
    if os.fork() == 0:
        serve(listener, count)
        os._exit(0)
    print(f"{exchange(proxy, count, seconds)} right")
os.wait()

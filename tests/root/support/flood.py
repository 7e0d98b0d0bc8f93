"""Connections through a proxy that are full in both directions, and whose bytes are counted at both ends.

Usage: flood.py PROXY SERVICE CONNECTIONS ROUNDS (two ports of 127.0.0.1). Sends for a second in each round,
and waits five for the rest. Prints how many connections were right, and what was wrong with the first ones.
"""
import socket
import sys
import threading
import time

PIECE = b"\x5a" * (1 << 18)


def send(connection, until, sent, index):
    while time.monotonic() < until:
        sent[index] += connection.send(PIECE)
    connection.shutdown(socket.SHUT_WR)


def receive(connection, received, index):
    room = bytearray(1 << 20)
    while count := connection.recv_into(room):
        received[index] += count


def run(ends, seconds):
    """Both ends of every connection send and receive; what was sent and received at each."""
    for end in ends:
        end.settimeout(seconds + 5)
    sent, received, failed = [0] * len(ends), [0] * len(ends), []
    until = time.monotonic() + seconds

    def guarded(act, *arguments):
        try:
            act(*arguments)
        except OSError as error:
            failed.append(repr(error))

    threads = []
    for index, end in enumerate(ends):
        threads.append(threading.Thread(target=guarded, args=(send, end, until, sent, index)))
        threads.append(threading.Thread(target=guarded, args=(receive, end, received, index)))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sent, received, failed


proxy, service, count, rounds = map(int, sys.argv[1:5])
right, wrong = 0, []
with socket.create_server(("127.0.0.1", service)) as listener:
    for number in range(rounds):
        ends = []
        for index in range(count):
            client = socket.create_connection(("127.0.0.1", proxy))
            port = 20_000 + number * count + index
            client.sendall(f"PROXY TCP4 192.0.2.{1 + index} 198.51.100.1 {port} 443\r\n".encode())
            accepted, address = listener.accept()
            if address != (f"192.0.2.{1 + index}", port):
                sys.exit(f"the service saw {address}")
            ends += [client, accepted]
        sent, received, failed = run(ends, 1)
        for client in range(0, len(ends), 2):
            counts = (sent[client], received[client + 1], sent[client + 1], received[client])
            if counts[0] == counts[1] and counts[2] == counts[3] and not failed:
                right += 1
            else:
                wrong.append((number, counts, failed))
        for end in ends:
            end.close()
print(f"{right} right, {len(wrong)} wrong {wrong[:3]}")

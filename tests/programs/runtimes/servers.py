# asyncio and socketserver: servers and clients over TCP, UDP and local sockets, processes, signals, executors.
import asyncio
import concurrent.futures
import os
import selectors
import signal
import socket
import socketserver
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


async def echo(reader, writer):
    while line := await reader.readline():
        writer.write(line.upper())
        await writer.drain()
    writer.close()


async def talk(open_connection, lines):
    reader, writer = await open_connection
    answers = []
    for line in lines:
        writer.write(line + b'\n')
        answers.append((await reader.readline()).strip())
    writer.close()
    await writer.wait_closed()
    return answers


class Datagrams(asyncio.DatagramProtocol):
    def connection_made(self, transport):
        self.transport = transport

    def datagram_received(self, data, address):
        self.transport.sendto(data[::-1], address)


class Answer(asyncio.DatagramProtocol):
    def __init__(self):
        self.answer = asyncio.get_running_loop().create_future()

    def datagram_received(self, data, address):
        self.answer.set_result(data)


async def asynchronous():
    loop = asyncio.get_running_loop()
    server = await asyncio.start_server(echo, '127.0.0.1', 0)
    address = server.sockets[0].getsockname()
    clients = (talk(asyncio.open_connection(*address), [b'client %d' % i, b'again']) for i in range(30))
    print(await asyncio.gather(*clients))
    server.close()
    await server.wait_closed()
    local = await asyncio.start_unix_server(echo, 'socket', limit=1 << 20)
    [answer] = await talk(asyncio.open_unix_connection('socket', limit=1 << 20), [b'long' * 100000])
    print(len(answer), answer[:8])
    local.close()
    transport, _ = await loop.create_datagram_endpoint(Datagrams, local_addr=('127.0.0.1', 0))
    client, protocol = await loop.create_datagram_endpoint(Answer, remote_addr=transport.get_extra_info('sockname'))
    client.sendto(b'datagram')
    print(await protocol.answer)
    client.close()
    transport.close()
    pipe = asyncio.subprocess.PIPE
    processes = [await asyncio.create_subprocess_exec('sh', '-c', f'read x; echo $x; exit {i}', stdin=pipe, stdout=pipe)
                 for i in range(5)]
    outputs = await asyncio.gather(*(process.communicate(b'line\n') for process in processes))
    print(outputs, [process.returncode for process in processes])
    process = await asyncio.create_subprocess_shell('echo ready; exec sleep 1000', stdout=pipe)
    await process.stdout.readline()
    process.terminate()
    print(await process.wait())
    got = loop.create_future()
    loop.add_signal_handler(signal.SIGUSR1, got.set_result, 'signal')
    os.kill(os.getpid(), signal.SIGUSR1)
    print(await got)
    with concurrent.futures.ProcessPoolExecutor(2) as pool:
        print(await asyncio.gather(*(loop.run_in_executor(pool, pow, 3, n) for n in range(6))))
    print(await asyncio.gather(*(asyncio.to_thread(sum, range(n)) for n in range(1000, 1005))))
    try:
        await asyncio.wait_for(asyncio.Event().wait(), 0.05)
    except asyncio.TimeoutError:
        print('timeout')


class Upper(socketserver.StreamRequestHandler):
    def handle(self):
        for line in self.rfile:
            self.wfile.write(line.upper())


class Page(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.path.encode())

    def log_message(self, *_):
        pass


def ask(address, text):
    with socket.create_connection(address, 100) as client:
        client.sendall(text)
        client.shutdown(socket.SHUT_WR)
        return b''.join(iter(lambda: client.recv(1000), b''))


def serve(server, body):
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            print(list(pool.map(body, range(8))))
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def selecting():
    selector = selectors.DefaultSelector()
    listener = socket.create_server(('127.0.0.1', 0))
    listener.setblocking(False)
    selector.register(listener, selectors.EVENT_READ)
    clients = [socket.create_connection(listener.getsockname(), 100) for _ in range(10)]
    for i, client in enumerate(clients):
        client.sendall(b'x' * (i + 1))
        client.shutdown(socket.SHUT_WR)
    sizes = {}
    while len(sizes) < len(clients) or any(not done for _, done in sizes.values()):
        for key, _ in selector.select():
            if key.fileobj is listener:
                accepted = listener.accept()[0]
                selector.register(accepted, selectors.EVENT_READ)
                sizes[accepted] = 0, False
            else:
                data = key.fileobj.recv(4)
                size, _ = sizes[key.fileobj]
                sizes[key.fileobj] = size + len(data), not data
                if not data:
                    selector.unregister(key.fileobj)
    print(sorted(sizes.values()))
    for one in [*sizes, *clients, listener]:
        one.close()


if __name__ == '__main__':
    asyncio.run(asynchronous())
    for kind in (socketserver.ThreadingTCPServer, socketserver.ForkingTCPServer):
        server = kind(('127.0.0.1', 0), Upper)
        serve(server, lambda i: ask(server.server_address, b'line %d\nend' % i))
    server = ThreadingHTTPServer(('127.0.0.1', 0), Page)
    serve(server, lambda i: urllib.request.urlopen(f'http://127.0.0.1:{server.server_port}/{i}').read())
    selecting()

# multiprocessing by each of its start methods, which are the arguments.
import multiprocessing
import sys
import time
from multiprocessing import shared_memory


def square(x):
    return x * x


def serve(tasks, results, begin):
    begin.wait()
    for task in iter(tasks.get, None):
        results.put((task, task * task))


def count(lock, value, rounds):
    for _ in range(rounds):
        with lock:
            value.value += 1


def reverse(connection):
    while (message := connection.recv()) is not None:
        connection.send(message[::-1])
    connection.close()
    sys.exit(7)


def change(name):
    shared = shared_memory.SharedMemory(name=name)
    shared.buf[5100:5105] = bytes(shared.buf[0:5])[::-1]
    shared.close()


def meet(barrier, places):
    places.put(barrier.wait(100))


def enter(numbers, names, i):
    numbers.append(i)
    names[i] = str(i)


def together(processes):
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def basic(c):
    tasks, results, begin = c.Queue(), c.Queue(), c.Event()
    servers = [c.Process(target=serve, args=(tasks, results, begin)) for _ in range(3)]
    for server in servers:
        server.start()
    for task in [*range(200), *[None] * 3]:
        tasks.put(task)
    begin.set()
    print(sum(results.get()[1] for _ in range(200)))
    for server in servers:
        server.join()
    ours, theirs = c.Pipe()
    process = c.Process(target=reverse, args=(theirs,))
    process.start()
    theirs.close()
    for message in ('abc', list(range(10)), 'x' * 100000 + 'y'):
        ours.send(message)
        print(ours.recv()[0])
    ours.send(None)
    process.join()
    print(process.exitcode)
    shared = shared_memory.SharedMemory(create=True, size=10000)
    shared.buf[0:5] = b'12345'
    print(together([c.Process(target=change, args=(shared.name,))]), bytes(shared.buf[5100:5105]))
    shared.close()
    shared.unlink()
    process = c.Process(target=time.sleep, args=(1000,))
    process.start()
    process.terminate()
    process.join()
    print(process.exitcode)


def more(c):
    lock, value = c.Lock(), c.Value('i', 0, lock=False)
    print(together([c.Process(target=count, args=(lock, value, 200)) for _ in range(4)]), value.value)
    with c.Pool(3) as pool:
        print(sum(pool.map(square, range(500), 20)), pool.apply_async(square, (9,)).get(100))
        print(sorted(pool.imap_unordered(square, range(9))))
    barrier, places = c.Barrier(3), c.Queue()
    processes = [c.Process(target=meet, args=(barrier, places)) for _ in range(3)]
    print(together(processes), sorted(places.get() for _ in processes))
    with c.Manager() as manager:
        numbers, names = manager.list(), manager.dict()
        print(together([c.Process(target=enter, args=(numbers, names, i)) for i in range(4)]))
        print(sorted(numbers), sorted(names.items()))


if __name__ == '__main__':
    for method in sys.argv[1:]:
        context = multiprocessing.get_context(method)
        print(method, flush=True)
        basic(context)
        if method == 'fork':
            more(context)

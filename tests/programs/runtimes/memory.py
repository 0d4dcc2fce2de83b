# Maps that processes share, and C functions that are called and call back.
import ctypes
import mmap
import os
import struct
import tempfile
import threading

# A mapping without a file, counted up by processes that hand the turn on through pipes.
counter = mmap.mmap(-1, 8192)
ends = [os.pipe() for _ in range(4)]
for i in range(3):
    if os.fork() == 0:
        for _ in range(50):
            os.read(ends[i][0], 1)
            value = struct.unpack_from('<q', counter, 4096)[0]
            struct.pack_into('<q', counter, 4096, value + i + 1)
            os.write(ends[i + 1][1], b'x')
        os._exit(0)
for _ in range(50):
    os.write(ends[0][1], b'x')
    os.read(ends[3][0], 1)
print(struct.unpack_from('<q', counter, 4096), [os.wait()[1] for _ in range(3)])

# A file that processes share, mapped before they part.
with tempfile.TemporaryFile(dir='.') as file:
    file.truncate(20000)
    shared = mmap.mmap(file.fileno(), 0)
    for i in range(5):
        if os.fork() == 0:
            shared[i * 4000:i * 4000 + 5] = b'part%d' % i
            os._exit(0)
    for _ in range(5):
        os.wait()
    print([bytes(shared[i * 4000:i * 4000 + 5]) for i in range(5)])
    shared.flush()
    print(os.pread(file.fileno(), 5, 8000), shared.find(b'part3'))
    shared.move(100, 0, 5)
    shared.resize(40000)
    print(len(shared), bytes(shared[100:105]), os.fstat(file.fileno()).st_size)
    shared.close()

with tempfile.TemporaryDirectory(dir='.') as directory:
    names = [tempfile.mkstemp(dir=directory)[1] for _ in range(20)]
    print(len(set(names)), {oct(os.stat(name).st_mode) for name in names})
    with tempfile.SpooledTemporaryFile(100, dir=directory) as spooled:
        spooled.write(b'x' * 1000)
        spooled.seek(995)
        print(spooled.read(), len(os.listdir(directory)))
print(os.path.exists(directory))

libc = ctypes.CDLL(None, use_errno=True)
COMPARE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_int))
numbers = (ctypes.c_int * 500)(*((i * 7919) % 1009 for i in range(500)))
libc.qsort(numbers, len(numbers), ctypes.sizeof(ctypes.c_int), COMPARE(lambda a, b: a[0] - b[0]))
print(list(numbers) == sorted(numbers), numbers[0], numbers[499])
print(libc.open(b'/no/such', 0), os.strerror(ctypes.get_errno()))
libc.strtod.restype = ctypes.c_double
end = ctypes.c_char_p()
print(libc.strtod(b'2.5e3rest', ctypes.byref(end)), end.value)
text = ctypes.create_string_buffer(100)
print(libc.snprintf(text, 100, b'%d %s %.3f', 42, b'text', ctypes.c_double(1 / 3)), text.value)


class Pair(ctypes.Structure):
    _fields_ = [('quotient', ctypes.c_int), ('remainder', ctypes.c_int)]


libc.div.restype = Pair
pair = libc.div(47, 5)
print(pair.quotient, pair.remainder)

# Threads of C that call into Python.
START = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
called = []


@START
def start(argument):
    called.append((argument, threading.current_thread() is threading.main_thread()))
    return argument * 2


threads = [ctypes.c_ulong() for _ in range(8)]
for i, thread in enumerate(threads):
    libc.pthread_create(ctypes.byref(thread), None, start, ctypes.c_void_p(i + 1))
libc.pthread_join.argtypes = ctypes.c_ulong, ctypes.c_void_p
returned = ctypes.c_void_p()
for thread in threads:
    libc.pthread_join(thread, ctypes.byref(returned))
print(sorted(called), returned.value)

# Code that is made at run time: mov eax, 42; ret.
code = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
code.write(b'\xb8\x2a\0\0\0\xc3')
print(ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))())

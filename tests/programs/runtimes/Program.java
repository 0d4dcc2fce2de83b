// Threads, garbage collection under load, exceptions, processes, files and sockets.
import java.io.*;
import java.net.*;
import java.nio.channels.FileChannel;
import java.nio.file.*;
import java.util.*;
import java.util.concurrent.*;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.stream.*;

public class Program {
    static class Own extends RuntimeException {
        Own(String message, Throwable cause) {
            super(message, cause);
        }
    }

    static int dive(int depth) {
        if (depth == 0) throw new IllegalStateException("bottom");
        return dive(depth - 1) + 1;
    }

    static int endless(int depth) {
        return endless(depth + 1) + 1;
    }

    static void threads() throws Exception {
        ExecutorService pool = Executors.newFixedThreadPool(8);
        List<Future<Long>> sums = new ArrayList<>();
        for (int i = 0; i < 40; i++) {
            int factor = i;
            sums.add(pool.submit(() -> LongStream.range(0, 20000).map(n -> n * factor % 7).sum()));
        }
        long sum = 0;
        for (Future<Long> one : sums) sum += one.get();
        pool.shutdown();
        System.out.println(sum + " " + pool.awaitTermination(60, TimeUnit.SECONDS));

        AtomicInteger atomic = new AtomicInteger();
        int[] guarded = {0};
        Object lock = new Object();
        Thread[] threads = new Thread[50];
        for (int i = 0; i < threads.length; i++) {
            threads[i] = new Thread(() -> {
                for (int k = 0; k < 200; k++) {
                    atomic.incrementAndGet();
                    synchronized (lock) {
                        guarded[0]++;
                    }
                }
            });
            threads[i].start();
        }
        for (Thread thread : threads) thread.join();
        System.out.println(atomic + " " + guarded[0]);

        SynchronousQueue<Integer> queue = new SynchronousQueue<>();
        Thread producer = new Thread(() -> {
            try {
                for (int i = 0; i < 200; i++) queue.put(i);
            } catch (InterruptedException error) {
                throw new Own("producer", error);
            }
        });
        producer.start();
        int taken = 0;
        for (int i = 0; i < 200; i++) taken += queue.take();
        producer.join();
        System.out.println(taken);

        Thread sleeper = new Thread(() -> {
            try {
                Thread.sleep(1000000);
            } catch (InterruptedException error) {
                System.out.println("interrupted");
            }
        });
        sleeper.start();
        sleeper.interrupt();
        sleeper.join();
        System.out.println(IntStream.range(0, 100000).parallel().mapToLong(n -> n * 3L % 11).sum());
    }

    static void memory() {
        Deque<byte[]> kept = new ArrayDeque<>();
        long sum = 0;
        for (int i = 0; i < 3000; i++) {
            byte[] block = new byte[50000];
            block[i] = (byte) i;
            if (i % 10 == 0) kept.add(block);
            if (kept.size() > 100) kept.remove();
            sum += block[i];
        }
        Map<String, List<Integer>> lists = new HashMap<>();
        for (int i = 0; i < 200000; i++) lists.computeIfAbsent("k" + i % 1000, key -> new ArrayList<>()).add(i);
        System.out.println(sum + " " + kept.size() + " " + lists.get("k7").size());
        lists = null;
        System.gc();
        try {
            List<long[]> blocks = new ArrayList<>();
            while (true) blocks.add(new long[1 << 20]);
        } catch (OutOfMemoryError error) {
            System.out.println("out of memory");
        }
    }

    static void exceptions() throws Exception {
        try {
            try {
                dive(30);
            } catch (IllegalStateException error) {
                throw new Own("outer", error);
            }
        } catch (Own error) {
            Throwable cause = error.getCause();
            System.out.println(error.getMessage() + " " + cause.getMessage() + " " + cause.getStackTrace().length);
        }
        // Compiled code leaves the test for null to the fault that it makes.
        int length = 0;
        for (int i = 0; i < 20000; i++) {
            String text = i % 100 == 0 ? null : "x";
            try {
                length += text.length();
            } catch (NullPointerException error) {
                length += 1000;
            }
        }
        System.out.println(length);
        try {
            System.out.println(1 / (length - length));
        } catch (ArithmeticException error) {
            System.out.println(error.getMessage());
        }
        Runnable overflow = () -> {
            try {
                endless(0);
            } catch (StackOverflowError error) {
                System.out.println("overflow");
            }
        };
        overflow.run();
        Thread thread = new Thread(overflow);
        thread.start();
        thread.join();
    }

    static String all(InputStream stream) throws IOException {
        return new String(stream.readAllBytes()).trim();
    }

    static void processes() throws Exception {
        Process shell = new ProcessBuilder("sh", "-c", "read x; echo got $x; echo err >&2; exit 7").start();
        try (Writer input = new OutputStreamWriter(shell.getOutputStream())) {
            input.write("line\n");
        }
        System.out.println(all(shell.getInputStream()) + " " + all(shell.getErrorStream()) + " " + shell.waitFor());
        Process sleep = new ProcessBuilder("sleep", "1000").start();
        System.out.println(sleep.isAlive() + " " + sleep.toHandle().isAlive());
        sleep.destroy();
        System.out.println(sleep.waitFor());
        Process killed = new ProcessBuilder("sh", "-c", "seq 20000; kill -9 $$").redirectOutput(new File("seq")).start();
        System.out.println(killed.waitFor() + " " + Files.size(Path.of("seq")));
        try {
            new ProcessBuilder("/no/such").start();
        } catch (IOException error) {
            System.out.println(error.getMessage());
        }
        List<ProcessBuilder> builders = List.of(new ProcessBuilder("seq", "100"), new ProcessBuilder("tail", "-n1"));
        System.out.println(all(ProcessBuilder.startPipeline(builders).get(1).getInputStream()));
    }

    static void files() throws IOException {
        Path directory = Files.createDirectories(Path.of("d/e"));
        for (int i = 0; i < 20; i++) Files.writeString(directory.resolve("f" + i), "x".repeat(i * 100));
        try (Stream<Path> walk = Files.walk(Path.of("d"))) {
            System.out.println(walk.sorted().map(Path::toString).collect(Collectors.joining(" ")));
        }
        try (RandomAccessFile file = new RandomAccessFile("mapped", "rw")) {
            var map = file.getChannel().map(FileChannel.MapMode.READ_WRITE, 0, 10000);
            map.put(5000, (byte) 42);
            map.force();
            file.seek(5000);
            System.out.println(file.read());
        }
        Files.move(directory.resolve("f3"), Path.of("moved"));
        System.out.println(Files.size(Path.of("moved")) + " " + Files.exists(directory.resolve("f3")));
    }

    static void answer(Socket socket) throws IOException {
        try (socket) {
            String line = new BufferedReader(new InputStreamReader(socket.getInputStream())).readLine();
            socket.getOutputStream().write((new StringBuilder(line).reverse() + "\n").getBytes());
        }
    }

    static void sockets() throws Exception {
        try (ServerSocket server = new ServerSocket(0, 5, InetAddress.getLoopbackAddress())) {
            Thread thread = new Thread(() -> {
                try {
                    for (int i = 0; i < 5; i++) answer(server.accept());
                } catch (IOException error) {
                    throw new Own("server", error);
                }
            });
            thread.start();
            for (int i = 0; i < 5; i++) {
                try (Socket socket = new Socket(server.getInetAddress(), server.getLocalPort())) {
                    socket.getOutputStream().write(("hello" + i + "\n").getBytes());
                    System.out.println(all(socket.getInputStream()));
                }
            }
            thread.join();
        }
    }

    public static void main(String[] arguments) throws Exception {
        threads();
        memory();
        exceptions();
        processes();
        files();
        sockets();
        Runtime.getRuntime().addShutdownHook(new Thread(() -> System.out.println("hook")));
        throw new Own("the end", null);
    }
}

// Goroutines, garbage collection, panics, processes, sockets and files.
package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

func check(err error) {
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(3)
	}
}

type tree struct{ left, right *tree }

func grow(depth int) *tree {
	if depth == 0 {
		return &tree{}
	}
	return &tree{grow(depth - 1), grow(depth - 1)}
}

func (t *tree) count() int {
	if t.left == nil {
		return 1
	}
	return 1 + t.left.count() + t.right.count()
}

func goroutines() {
	squares := make(chan int)
	var all sync.WaitGroup
	for i := 0; i < 1000; i++ {
		all.Add(1)
		go func(i int) {
			defer all.Done()
			squares <- i * i
		}(i)
	}
	go func() {
		all.Wait()
		close(squares)
	}()
	sum := 0
	for square := range squares {
		sum += square
	}
	fmt.Println("sum", sum)

	var lock sync.Mutex
	count := 0
	for i := 0; i < 50; i++ {
		all.Add(1)
		go func() {
			defer all.Done()
			for k := 0; k < 200; k++ {
				lock.Lock()
				count++
				lock.Unlock()
				if k%50 == 0 {
					runtime.Gosched()
				}
			}
		}()
	}
	all.Wait()
	fmt.Println("count", count)

	// A goroutine that calls nothing is preempted by a signal.
	var stop atomic.Bool
	var turns int
	before := runtime.GOMAXPROCS(1)
	go func() {
		for !stop.Load() {
			turns++
		}
	}()
	time.Sleep(20 * time.Millisecond)
	stop.Store(true)
	runtime.GOMAXPROCS(before)
	fmt.Println("preempted")

	// Each of these holds a thread until all do.
	var ready sync.WaitGroup
	ready.Add(40)
	for i := 0; i < 40; i++ {
		all.Add(1)
		go func() {
			defer all.Done()
			runtime.LockOSThread()
			ready.Done()
			ready.Wait()
		}()
	}
	all.Wait()
	within, cancel := context.WithTimeout(context.Background(), 20*time.Millisecond)
	defer cancel()
	<-within.Done()
	fmt.Println(within.Err())
}

func memory() {
	var kept [10]*tree
	total := 0
	for i := 0; i < 60; i++ {
		grown := grow(12)
		total += grown.count()
		kept[i%10] = grown
	}
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	fmt.Println(total, stats.NumGC > 1, kept[3].count())
	debug.FreeOSMemory()
	block := make([]byte, 100<<20)
	for i := 0; i < len(block); i += 1 << 20 {
		block[i] = 1
	}
	fmt.Println(len(block), bytes.Count(block, []byte{1}))
}

func panics() {
	try := func(name string, body func()) {
		defer func() { fmt.Println(name, recover()) }()
		body()
	}
	var none *tree
	var unmade map[string]int
	var empty []int
	try("nil", func() { _ = none.left.right })
	try("map", func() { unmade["a"] = 1 })
	try("index", func() { _ = empty[100] })
	try("divide", func() { fmt.Println(1 / len(empty)) })
	try("own", func() { panic(errors.New("mine")) })
	var deep func(int) int
	deep = func(n int) int {
		if n == 0 {
			return 0
		}
		return deep(n-1) + 1
	}
	fmt.Println(deep(500000))
}

func processes() {
	out, err := exec.Command("sh", "-c", "cat; echo err >&2; exit 4").CombinedOutput()
	fmt.Printf("%q %v\n", out, err)
	upper := exec.Command("tr", "a-z", "A-Z")
	upper.Stdin = strings.NewReader("through a pipe")
	out, err = upper.Output()
	fmt.Printf("%q %v\n", out, err)
	var all sync.WaitGroup
	results := make([]string, 12)
	for i := range results {
		all.Add(1)
		go func(i int) {
			defer all.Done()
			out, err := exec.Command("sh", "-c", fmt.Sprintf("echo %d; exit %d", i, i%3)).Output()
			results[i] = fmt.Sprint(strings.TrimSpace(string(out)), err)
		}(i)
	}
	all.Wait()
	fmt.Println(strings.Join(results, "|"))
	within, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
	defer cancel()
	fmt.Println(exec.CommandContext(within, "sleep", "1000").Run())
	_, err = exec.LookPath("no-such-program")
	fmt.Println(err)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR1, syscall.SIGHUP)
	check(syscall.Kill(os.Getpid(), syscall.SIGUSR1))
	fmt.Println(<-signals)
	check(exec.Command("sh", "-c", "kill -HUP $PPID").Run())
	fmt.Println(<-signals)
}

func echo(network, address string) net.Listener {
	listener, err := net.Listen(network, address)
	check(err)
	go func() {
		for {
			connection, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer connection.Close()
				for lines := bufio.NewScanner(connection); lines.Scan(); {
					fmt.Fprintln(connection, strings.ToUpper(lines.Text()))
				}
			}()
		}
	}()
	return listener
}

func network() {
	listener := echo("tcp", "127.0.0.1:0")
	var all sync.WaitGroup
	answers := make([]string, 20)
	for i := range answers {
		all.Add(1)
		go func(i int) {
			defer all.Done()
			connection, err := net.Dial("tcp", listener.Addr().String())
			check(err)
			defer connection.Close()
			fmt.Fprintf(connection, "client %d\n", i)
			answers[i], err = bufio.NewReader(connection).ReadString('\n')
			check(err)
		}(i)
	}
	all.Wait()
	sort.Strings(answers)
	fmt.Printf("%q\n", answers)
	quiet, err := net.Dial("tcp", listener.Addr().String())
	check(err)
	check(quiet.SetReadDeadline(time.Now().Add(30 * time.Millisecond)))
	_, err = quiet.Read(make([]byte, 1))
	fmt.Println(errors.Is(err, os.ErrDeadlineExceeded))
	quiet.Close()
	listener.Close()
	_, err = listener.Accept()
	fmt.Println(errors.Is(err, net.ErrClosed))

	local := echo("unix", "socket")
	connection, err := net.Dial("unix", "socket")
	check(err)
	fmt.Fprintln(connection, strings.Repeat("long ", 10000))
	check(connection.(*net.UnixConn).CloseWrite())
	answer, err := io.ReadAll(connection)
	fmt.Println(len(answer), err)
	local.Close()
}

func files() {
	check(os.MkdirAll("d/e", 0o755))
	for i := 0; i < 10; i++ {
		check(os.WriteFile(filepath.Join("d/e", fmt.Sprint("f", i)), bytes.Repeat([]byte{byte(i)}, i*1000), 0o640))
	}
	check(filepath.WalkDir("d", func(path string, _ os.DirEntry, err error) error {
		fmt.Print(path, " ")
		return err
	}))
	fmt.Println()
	file, err := os.OpenFile("f", os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	check(err)
	check(file.Truncate(8192))
	mapped, err := syscall.Mmap(int(file.Fd()), 0, 8192, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	check(err)
	copy(mapped[4090:], "across a page")
	check(syscall.Munmap(mapped))
	text := make([]byte, 13)
	_, err = file.ReadAt(text, 4090)
	fmt.Println(string(text), err)
	_, err = os.Open("none")
	fmt.Println(err, errors.Is(err, os.ErrNotExist))
	check(os.Rename("f", "g"))
	status, err := os.Stat("g")
	check(err)
	fmt.Println(status.Mode(), status.Size())
}

func main() {
	goroutines()
	memory()
	panics()
	processes()
	network()
	files()
	os.Exit(6)
}

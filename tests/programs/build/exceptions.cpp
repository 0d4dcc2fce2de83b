// Exceptions that cross frames, threads and futures; condition variables; the end by terminate.
#include <atomic>
#include <condition_variable>
#include <future>
#include <iostream>
#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

struct Noisy {
    std::string name;
    ~Noisy() {
        if (std::uncaught_exceptions()) std::cout << "unwound " << name << "\n";
    }
};

struct Deep : std::runtime_error {
    int level;
    explicit Deep(int level) : std::runtime_error("deep " + std::to_string(level)), level(level) {}
};

static int dive(int level) {
    Noisy noisy{std::to_string(level)};
    if (level == 0) throw Deep(7);
    return dive(level - 1) + 1;
}

int main() {
    try {
        dive(5);
    } catch (const Deep &error) {
        std::cout << error.what() << "\n";
    }

    std::atomic<long> caught{0};
    std::mutex mutex;
    std::map<int, std::string> seen;
    std::vector<std::thread> threads;
    for (int i = 0; i < 16; i++)
        threads.emplace_back([&, i] {
            for (int k = 0; k < 200; k++) {
                try {
                    if (k % 3) throw Deep(k);
                    throw std::out_of_range("range");
                } catch (const Deep &error) {
                    caught += error.level;
                } catch (const std::exception &) {
                    caught += 1;
                }
            }
            thread_local std::string own = "thread " + std::to_string(i);
            std::lock_guard<std::mutex> guard(mutex);
            seen[i] = own;
        });
    for (auto &thread : threads) thread.join();
    std::cout << caught << " " << seen.size() << " " << seen[7] << "\n";

    auto future = std::async(std::launch::async, []() -> int { throw std::logic_error("from a future"); });
    try {
        future.get();
    } catch (const std::logic_error &error) {
        std::cout << error.what() << "\n";
    }

    std::condition_variable changed;
    int turn = 0;
    std::string order;
    auto play = [&](int me, char letter) {
        for (int k = 0; k < 100; k++) {
            std::unique_lock<std::mutex> guard(mutex);
            changed.wait(guard, [&] { return turn == me; });
            order += letter;
            turn = !me;
            changed.notify_all();
        }
    };
    std::thread first(play, 0, 'a'), second(play, 1, 'b');
    first.join();
    second.join();
    std::cout << order.substr(0, 10) << order.size() << "\n";

    std::set_terminate([] {
        std::cout << "terminate" << std::endl;
        std::_Exit(9);
    });
    std::thread([] { throw 1; }).join();
}

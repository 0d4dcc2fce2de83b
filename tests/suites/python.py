"""Runs modules of the interpreter's own test suite and writes how each test ended.

python.py RESULTS MODULE[:PATTERN]... [-PATTERN...]

RESULTS gets a line `ended NAME` for each test; what the tests print goes where it goes. A module is
one of the package `test`; a pattern is one of shell's for names `Class.test` of the module before it;
`-PATTERN` leaves tests out, by their full names.
"""

import fnmatch
import importlib
import os
import sys
import unittest
from test import support


class Results(unittest.TestResult):
    """Writes each test's ending as soon as it is known."""

    def __init__(self, out):
        super().__init__()
        self.out = out
        self.ended = {}
        self.opened = {}

    def startTest(self, test):
        super().startTest(test)
        self.opened[test.id()] = True
        print("##", test.id(), flush=True)

    def put(self, test, ended):
        # A part that fails is the test's ending, whatever the others do.
        rank = ["ok", "skipped", "xfail", "xpass", "FAIL", "ERROR"]
        name = test.id()
        if rank.index(ended) >= rank.index(self.ended.get(name, "ok")):
            self.ended[name] = ended

    def stopTest(self, test):
        super().stopTest(test)
        self.write(test.id())

    def write(self, name):
        self.out.write(f"{self.ended.pop(name, 'ok')} {name}\n")
        self.out.flush()

    def trouble(self, test, ended, kind, error):
        print(ended, test.id(), self._exc_info_to_string(error, test), sep="\n", flush=True)
        self.put(test, ended)
        if test.id() not in self.opened:
            # Not a test: the preparation of a class or of a module.
            self.write(test.id())

    def addError(self, test, error):
        self.trouble(test, "ERROR", "error", error)

    def addFailure(self, test, error):
        self.trouble(test, "FAIL", "failure", error)

    def addSubTest(self, test, subtest, error):
        if error is not None:
            failed = issubclass(error[0], test.failureException)
            self.trouble(test, "FAIL" if failed else "ERROR", "part", error)

    def addSkip(self, test, reason):
        self.put(test, "skipped")
        if test.id() not in self.opened:
            self.write(test.id())

    def addExpectedFailure(self, test, error):
        self.put(test, "xfail")

    def addUnexpectedSuccess(self, test):
        self.put(test, "xpass")


def tests_of(suite):
    for item in suite:
        if isinstance(item, unittest.TestSuite):
            yield from tests_of(item)
        else:
            yield item


def main():
    out = open(sys.argv[1], "w")
    os.set_inheritable(out.fileno(), False)
    left_out = [word[1:] for word in sys.argv[2:] if word.startswith("-")]
    # Not what needs the network, much memory or much time.
    support.use_resources = ["cpu", "subprocess"]
    support.verbose = 0
    results = Results(out)
    for word in sys.argv[2:]:
        if word.startswith("-"):
            continue
        module, _, pattern = word.partition(":")
        loaded = importlib.import_module("test." + module)
        suite = unittest.defaultTestLoader.loadTestsFromModule(loaded)
        chosen = unittest.TestSuite()
        for test in tests_of(suite):
            name = test.id().removeprefix(f"test.{module}.")
            wanted = not pattern or fnmatch.fnmatch(name, pattern)
            if wanted and not any(fnmatch.fnmatch(test.id(), out) for out in left_out):
                chosen.addTest(test)
        chosen.run(results)
    out.write("end\n")
    out.flush()


main()

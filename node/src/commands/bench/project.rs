//! A generated project of C files.

use std::fmt::Write;
use std::io;
use std::path::Path;

const MAKEFILE: &str = "\
objects := $(patsubst %.c,%.o,$(wildcard f*.c))
prog: main.o $(objects)
\t$(CC) -o $@ $^
%.o: %.c all.h
\t$(CC) -O1 -Wall -c -o $@ $<
";

/// Writes `count` files with a function each, a program that calls them all, and a Makefile.
///
/// # Errors
/// As writing files.
pub fn write(directory: &Path, count: u32) -> io::Result<()> {
    let mut header = String::new();
    let mut calls = String::new();
    for i in 1..=count {
        std::fs::write(directory.join(format!("f{i}.c")), file(i))?;
        let _ = writeln!(header, "int f{i}(int);");
        let _ = writeln!(calls, "    sum += f{i}((int)(sum % 1000));");
    }
    std::fs::write(directory.join("all.h"), header)?;
    let main = format!(
        "#include <stdio.h>\n#include \"all.h\"\n\nint main(void) {{\n    long sum = 0;\n{calls}    \
         printf(\"%ld\\n\", sum);\n    return 0;\n}}\n"
    );
    std::fs::write(directory.join("main.c"), main)?;
    std::fs::write(directory.join("Makefile"), MAKEFILE)
}

/// A function that sorts and prints, so that the compiler has headers to read and code to make.
fn file(i: u32) -> String {
    format!(
        "#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include \"all.h\"

static int compare(const void *a, const void *b) {{ return *(const int *)a - *(const int *)b; }}

int f{i}(int x) {{
    int values[64];
    char text[32];
    for (int k = 0; k < 64; k++) values[k] = (x * 31 + k * {i}) % 97;
    qsort(values, 64, sizeof *values, compare);
    snprintf(text, sizeof text, \"%d\", values[{place}]);
    return (int)strlen(text) * 100 + values[{i} % 64];
}}
",
        place = i % 64
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_calls_every_file() {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), 3).unwrap();
        let read = |name: &str| std::fs::read_to_string(directory.path().join(name)).unwrap();
        for i in 1..=3 {
            assert!(read("main.c").contains(&format!("sum += f{i}(")));
            assert!(read("all.h").contains(&format!("int f{i}(int);")));
            assert!(read(&format!("f{i}.c")).contains(&format!("int f{i}(int x) {{")));
        }
        assert!(read("Makefile").contains("\n\t$(CC) -o $@ $^\n"));
    }
}

# A project of 60 files with a library, built in parallel, taken apart, rebuilt in part, and run.
set -e
export LC_ALL=C
for i in $(seq 60); do
    cat > f$i.c << C
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "all.h"

static int compare(const void *a, const void *b) { return *(const int *)a - *(const int *)b; }

int f$i(int x) {
    int v[64];
    char text[32];
    for (int k = 0; k < 64; k++) v[k] = (x * 31 + k * $i) % 97;
    qsort(v, 64, sizeof *v, compare);
    snprintf(text, sizeof text, "%d", v[$i % 64]);
    return (int)strlen(text) * 100 + v[$i] + $i;
}
C
done
for i in $(seq 60); do echo "int f$i(int);"; done > all.h
{
    echo '#include <stdio.h>'
    echo '#include "all.h"'
    echo 'int main(void) { long s = 0;'
    for i in $(seq 60); do echo "s += f$i((int)(s % 1000));"; done
    echo 'printf("%ld\n", s); return (int)(s % 50); }'
} > main.c
cat > Makefile << 'M'
objects := $(patsubst %.c,%.o,$(wildcard f*.c))
prog: main.o libf.a
	$(CC) -o $@ main.o -L. -lf
libf.a: $(objects)
	ar rcsD $@ $(sort $^)
%.o: %.c all.h
	$(CC) -O1 -Wall -c -o $@ $<
M
make -s -j4
ar t libf.a | sort | tr '\n' ' '
nm prog | grep -c ' T f'
ld -r -o part.o f1.o f2.o f3.o
nm part.o | grep ' T '
make -q && echo 'up to date'
rm f7.o
make -q || echo "status $?"
make -j4 -n | sort
echo 'int f8(int x) { return x + }' > f8.c
make -s -k -j4 2> errors || echo "status $?"
grep -c error: errors
rm errors
./prog || echo "status $?"

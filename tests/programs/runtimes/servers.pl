# Servers that fork and that select, pools of processes, threads, and processes with three pipes.
use strict;
use warnings;
use threads;
use threads::shared;
use Thread::Queue;
use Fcntl ':flock';
use IO::Handle;
use IO::Select;
use IO::Socket::INET;
use IO::Socket::UNIX;
use IPC::Open3;
use POSIX ':sys_wait_h';
use Symbol 'gensym';
$| = 1;

# A server that forks for each client.
my $server = IO::Socket::INET->new(Listen => 20, LocalAddr => '127.0.0.1', ReuseAddr => 1) or die $!;
my $parent = fork // die;
if (!$parent) {
    local $SIG{CHLD} = sub { 1 while waitpid(-1, WNOHANG) > 0 };
    for (my $served = 0; $served < 12;) {
        my $client = $server->accept or next;
        $served++;
        next if fork // die;
        while (my $line = <$client>) { print $client scalar reverse($line =~ s/\n//r), "\n" }
        exit 0;
    }
    exit 0;
}
my @clients = map { IO::Socket::INET->new(PeerAddr => '127.0.0.1', PeerPort => $server->sockport) or die $! } 1 .. 12;
for my $i (1 .. 3) {
    for my $n (0 .. $#clients) { $clients[$n]->print("client $n line $i\n"); $clients[$n]->flush }
    print join('|', map { chomp(my $line = readline $_); $line } @clients), "\n";
}
close $_ for @clients;
waitpid $parent, 0;
print "server $?\n";

# A server that selects, and clients that are processes.
my $local = IO::Socket::UNIX->new(Local => 'socket', Listen => 20) or die $!;
for my $n (1 .. 6) {
    next if fork // die;
    my $socket = IO::Socket::UNIX->new(Peer => 'socket') or die $!;
    syswrite $socket, "process $n\n";
    exit(<$socket> eq "PROCESS $n\n" ? $n : 99);
}
my $select = IO::Select->new($local);
for (my $left = 6; $left;) {
    for my $ready ($select->can_read) {
        if ($ready == $local) { $select->add(scalar $local->accept); next }
        if (sysread $ready, my $text, 100) { syswrite $ready, uc $text; next }
        $select->remove($ready);
        close $ready;
        $left--;
    }
}
my @statuses;
while (wait > 0) { push @statuses, $? >> 8 }
print "@{[sort @statuses]}\n";

# A pool of processes that takes numbers from one pipe and locks to add to a file.
pipe my $read, my $write or die;
open my $sum, '+>', 'sum' or die;
print $sum '0';
$sum->flush;
for (1 .. 4) {
    next if fork // die;
    close $write;
    open my $own, '+<', 'sum' or die;
    while (sysread $read, my $number, 4) {
        flock $own, LOCK_EX;
        seek $own, 0, 0;
        my $old = <$own>;
        seek $own, 0, 0;
        print $own $old + $number;
        flock $own, LOCK_UN;
    }
    exit 0;
}
close $read;
syswrite $write, sprintf '%4d', $_ for 1 .. 200;
close $write;
1 while wait > 0;
seek $sum, 0, 0;
print <$sum>, "\n";

# Threads, which copy the interpreter.
my $tasks = Thread::Queue->new(1 .. 60);
$tasks->end;
my $total :shared = 0;
my @threads = map {
    threads->create(sub {
        my $done = 0;
        while (defined(my $task = $tasks->dequeue)) { lock $total; $total += $task; $done++ }
        return $done;
    })
} 1 .. 5;
my $done = 0;
$done += $_->join for @threads;
print "$done $total\n";

my $pid = open3(my $in, my $out, my $err = gensym, 'sh', '-c', 'cat; echo err >&2; exit 9');
print $in "to the shell\n";
close $in;
print <$out>, <$err>;
waitpid $pid, 0;
print $? >> 8, "\n";
local $SIG{ALRM} = sub { die "alarm\n" };
alarm 1;
eval { my $line = <STDIN>; print defined $line ? 'a line' : 'end of file', "\n"; wait; sleep 100 };
print $@;

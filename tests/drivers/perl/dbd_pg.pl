# DBD::Pg at its defaults: it prepares on the server what is prepared, under names of its own.
use strict;
use warnings;
use utf8;

use DBD::Pg qw(:pg_types :async);
use DBI;
use JSON::PP;
use Time::HiRes qw(sleep time);

my $table = $ENV{DRIVER_TABLE};
my $unicode = "Grüße, 世界 🐘";
my $json = JSON::PP->new->ascii->canonical;
$| = 1;

sub session {
    my %options = @_;
    return DBI->connect("dbi:Pg:", undef, undef, { RaiseError => 1, PrintError => 0, AutoCommit => 1, %options });
}

sub equal {
    my ($got, $expected) = @_;
    my ($one, $other) = map { ref $_ ? $json->encode($_) : $_ // "undef" } $got, $expected;
    die sprintf("got %.200s, expected %.200s", $one, $other) unless $one eq $other;
}

sub value {
    my ($session, $sql, @parameters) = @_;
    my ($one) = $session->selectrow_array($sql, undef, @parameters);
    return $one;
}

sub fails {
    my ($session, $sqlstate, $work) = @_;
    die "it didn't fail with $sqlstate" if eval { $work->(); 1 };
    equal($session->state, $sqlstate);
}

sub noted {
    my ($number) = @_;
    return scalar @{ session()->selectall_arrayref("SELECT id FROM $table WHERE id = ? FOR SHARE", undef, $number) };
}

my @checks = (
    connect => sub {
        my $session = session();
        equal(value($session, "SELECT 1"), 1);
        die "an old server" unless $session->{pg_server_version} >= 150000;
    },
    types => sub {
        my $session = session();
        my @values = (
            [ "integer", 2**31 - 1 ],
            [ "bigint", "-9007199254740993" ],
            [ "numeric", "12345678901234567890.0987654321" ],
            [ "text", $unicode ],
            [ "timestamptz", "2026-01-02 03:04:05.678901+00" ],
            [ "jsonb", '{"a": [1, null]}' ],
            [ "integer[]", [ 1, 2, undef ] ],
            [ "text[]", [ "a", undef, 'with "quotes", {braces}' ] ],
            [ "boolean", 1 ],
            [ "date", undef ],
        );
        $session->do("SET timezone = 'UTC'");
        for my $each (@values) {
            my ($type, $one) = @$each;
            equal(value($session, "SELECT ?::$type", $one), $one);
        }
        my $bytes = "\x00\xff'\\";
        my $statement = $session->prepare("SELECT ?::bytea");
        $statement->bind_param(1, $bytes, { pg_type => PG_BYTEA });
        $statement->execute;
        equal($statement->fetchrow_array, $bytes);
    },
    prepared => sub {
        my $session = session();
        my $plus = $session->prepare("SELECT ?::integer + 1");
        my $joined = $session->prepare("SELECT ?::text || 'x'");
        for my $number (0 .. 19) {
            $session->begin_work if $number % 3 == 0;
            equal($session->selectrow_array($plus, undef, $number), $number + 1);
            equal($session->selectrow_array($joined, undef, $number), "${number}x");
            $session->commit if $number % 3 == 0;
        }
    },
    commit => sub {
        my $session = session(AutoCommit => 0);
        $session->do("INSERT INTO $table VALUES (?, ?)", undef, 100, "kept");
        $session->commit;
        equal(noted(100), 1);
    },
    rollback => sub {
        my $session = session(AutoCommit => 0);
        $session->do("INSERT INTO $table VALUES (?, ?)", undef, 200, "gone");
        $session->rollback;
        equal(noted(200), 0);
    },
    savepoint => sub {
        my $session = session();
        $session->begin_work;
        $session->do("INSERT INTO $table VALUES (300)");
        $session->pg_savepoint("here");
        fails($session, "23505", sub { $session->do("INSERT INTO $table VALUES (300)") });
        $session->pg_rollback_to("here");
        $session->do("INSERT INTO $table VALUES (301)");
        $session->commit;
        equal(noted(300) + noted(301), 2);
    },
    error => sub {
        my $session = session();
        for (1 .. 3) {
            fails($session, "22012", sub { value($session, "SELECT 1/?::integer", 0) });
            fails($session, "42601", sub { value($session, "SELEC 1") });
            equal(value($session, "SELECT 1"), 1);
        }
    },
    error_in_transaction => sub {
        my $session = session();
        for (1 .. 3) {
            $session->begin_work;
            fails($session, "22012", sub { value($session, "SELECT 1/?::integer", 0) });
            fails($session, "25P02", sub { value($session, "SELECT ?::integer", 1) });
            $session->rollback;
            equal(value($session, "SELECT 1"), 1);
        }
    },
    copy_in => sub {
        my $session = session();
        $session->do("COPY $table (id, note) FROM STDIN");
        $session->pg_putcopydata(sprintf("%d\t%s\n", 1_000_000 + $_, $unicode)) for 0 .. 9999;
        $session->pg_putcopyend;
        equal(value($session, "SELECT count(*) FROM $table WHERE id >= ?", 1_000_000), 10000);
    },
    copy_out => sub {
        my $session = session();
        $session->do("COPY (SELECT generate_series(10000, 19999)) TO STDOUT");
        my ($size, $row) = (0, "");
        $size += length $row while $session->pg_getcopydata($row) >= 0;
        equal($size, 60000);
    },
    cursor => sub {
        my $session = session();
        $session->begin_work;
        $session->do("DECLARE portions CURSOR FOR SELECT generate_series(1, 10000)");
        my $sum = 0;
        while (my @rows = @{ $session->selectcol_arrayref("FETCH 100 FROM portions") }) {
            $sum += $_ for @rows;
        }
        $session->commit;
        equal($sum, 50005000);
    },
    cancel => sub {
        my $session = session();
        $session->do("SELECT pg_sleep(30)", { pg_async => PG_ASYNC });
        sleep 0.5;
        $session->pg_cancel or die "nothing was cancelled";
        equal($session->state, "57014");
        equal(value($session, "SELECT 1"), 1);
    },
    listen => sub {
        my ($listener, $sender) = (session(), session());
        $listener->do("LISTEN perl_news");
        value($sender, "SELECT pg_notify('perl_news', ?)", $_) for 0 .. 2;
        my @heard;
        my $deadline = time + 10;
        while (@heard < 3 && time < $deadline) {
            my $one = $listener->pg_notifies;
            $one ? push(@heard, $one->[2]) : sleep 0.02;
        }
        equal("@heard", "0 1 2");
    },
    big_row => sub {
        my $big = "0123456789abcdef" x (4 * 1024 * 1024 / 16);
        equal(value(session(), "SELECT ?::text", $big), $big);
    },
    # It has no pipeline: a string of statements, and execute_array with one statement.
    batch => sub {
        my $session = session();
        $session->do(join "; ", map { "INSERT INTO $table (id) VALUES ($_)" } 500 .. 599);
        my $statement = $session->prepare("UPDATE $table SET note = ? WHERE id = ?");
        equal($statement->execute_array({}, [ ("x") x 100 ], [ 500 .. 599 ]), 100);
    },
    settings => sub {
        my ($session, $other) = (session(), session());
        $session->do("SET work_mem = '7MB'");
        for (1 .. 20) {
            equal(value($session, "SHOW work_mem"), "7MB");
            die "it shows in another session" if value($other, "SHOW work_mem") eq "7MB";
        }
    },
    # Without threads: eight sessions in turn.
    many_connections => sub {
        my $total = "SELECT number FROM $table WHERE id = 0 FOR SHARE";
        my $before = value(session(), $total);
        my @sessions = map { session() } 1 .. 8;
        for (1 .. 10) {
            $_->do("UPDATE $table SET number = number + 1 WHERE id = ?", undef, 0) for @sessions;
        }
        equal(value(session(), $total) - $before, 80);
    },
    replica => sub {
        my $session = session();
        my $deadline = time + 10;
        until (value($session, "SELECT pg_is_in_recovery()")) {
            die "not within 10 s" if time > $deadline;
            sleep 0.05;
        }
    },
    read_your_write => sub {
        my $session = session();
        for my $number (700 .. 749) {
            $session->do("INSERT INTO $table VALUES (?)", undef, $number);
            equal(value($session, "SELECT id FROM $table WHERE id = ?", $number), $number);
        }
    },
);

print $json->encode({ version => "$DBD::Pg::VERSION" }), "\n";
while (my ($check, $work) = splice @checks, 0, 2) {
    local $SIG{ALRM} = sub { die "not within 30 s\n" };
    alarm 30;
    my $ok = eval { $work->(); 1 };
    my $detail = $ok ? "" : substr "$@", 0, 600;
    alarm 0;
    print $json->encode({ check => $check, ok => $ok ? JSON::PP::true : JSON::PP::false, detail => $detail }), "\n";
}
